"""From JAX's general dots and convolutions to the canonical forms that kernels run, and back.

Axes are named ``b`` (batch), ``m`` (rows of the activation), ``k`` (summed) and ``n`` (channels of the weight).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8.kernels.forms import ConvForm, DotForm


def _inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(permutation))


def _prod(sizes: Sequence[int]) -> int:
    return math.prod(sizes)  # of ints, or of symbolic sizes (jax.export)


@dataclasses.dataclass(frozen=True)
class DotLayout:
    """A dot as ``(b, m, k) . (b, k, n)``; the activation may be either operand."""

    form: DotForm
    x_order: tuple[int, ...]  # axes of the activation in the order b m k
    w_order: tuple[int, ...]  # axes of the weight in the order b k n
    counts: tuple[int, int, int, int]  # how many axes b, m, k, n stand for
    sizes: tuple[int, ...]  # of b, m, n, all axes
    swapped: bool  # the weight is the left operand: the result has n before m

    @property
    def row_axes(self) -> tuple[int, ...]:
        """Axes of the activation over which is not summed."""
        b, m, _, _ = self.counts
        return tuple(sorted(self.x_order[: b + m]))

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Axes of the weight over which is not summed."""
        b, _, k, _ = self.counts
        return tuple(sorted(self.w_order[:b] + self.w_order[b + k :]))

    @property
    def form_terms(self) -> int:
        return self.form.k

    def summed(self, axis: int) -> int | None:
        """The axis of the weight that is summed together with an axis of the activation; None if that is not summed."""
        _, _, k, _ = self.counts
        b = self.counts[0]
        summed = self.x_order[len(self.x_order) - k :]
        return self.w_order[b + summed.index(axis)] if axis in summed else None

    def activation(self, codes: Any) -> Any:
        f = self.form
        return jnp.transpose(codes, self.x_order).reshape((f.batch, f.m, f.k) if f.batch else (f.m, f.k))

    def weight(self, codes: Any) -> Any:
        f = self.form
        return jnp.transpose(codes, self.w_order).reshape((f.batch, f.k, f.n) if f.batch else (f.k, f.n))

    def operand(self, codes: Any, permutation: Sequence[int]) -> tuple[DotForm, Any] | None:
        """The weight as it lies before a permutation, if it then has all of n before all of k; and the form that says so.

        XLA:CPU has integer kernels for both orders, but none for a transposition that it folds into the product.
        """
        b, _, k, _ = self.counts
        order = tuple(permutation[axis] for axis in self.w_order)
        if b or (*order[k:], *order[:k]) != tuple(range(len(order))) or not 0 < k < len(order):
            return None
        return dataclasses.replace(self.form, transposed=True), codes.reshape(self.form.n, self.form.k)

    def row_scale(self, scale: Any) -> Any:
        """A scale of the activation, in the rank of the result."""
        b, m, _k, n = self.counts
        moved = jnp.transpose(scale, self.x_order)
        return self._ordered(moved.reshape(moved.shape[: b + m] + (1,) * n))

    def channel_scale(self, scale: Any) -> Any:
        """A scale of the weight, in the rank of the result."""
        b, m, k, _n = self.counts
        moved = jnp.transpose(scale, self.w_order)
        return self._ordered(moved.reshape(moved.shape[:b] + (1,) * m + moved.shape[b + k :]))

    def channel_sum(self, sums: Any) -> Any:
        """A number per channel, ``(n,)`` or ``(b, 1, n)``, in the rank of the result."""
        b, m, _, _ = self.counts
        leading = self.sizes[:b] if self.form.batch else (1,) * b
        return self._ordered(sums.reshape(leading + (1,) * m + self.sizes[b + m :]))

    def result(self, raw: Any) -> Any:
        return self._ordered(raw.reshape(self.sizes))

    def _ordered(self, a: Any) -> Any:
        if not self.swapped:
            return a
        b, m, _, n = self.counts
        return jnp.transpose(a, (*range(b), *range(b + m, b + m + n), *range(b, b + m)))


def dot_layout(
    dimension_numbers: Any, lhs: tuple[int, ...], rhs: tuple[int, ...], swapped: bool, is_weight: bool
) -> DotLayout:
    """The canonical form of ``lax.dot_general``; `swapped` says that the left operand is the weight."""
    (lc, rc), (lb, rb) = dimension_numbers
    x, xc, xb, w, wc, wb = (rhs, rc, rb, lhs, lc, lb) if swapped else (lhs, lc, lb, rhs, rc, rb)
    x_free = tuple(a for a in range(len(x)) if a not in (*xc, *xb))
    w_free = tuple(a for a in range(len(w)) if a not in (*wc, *wb))
    batch, m, n = ([s[a] for a in axes] for s, axes in ((x, xb), (x, x_free), (w, w_free)))
    k = _prod([x[a] for a in xc])
    form = DotForm(_prod(batch) if batch else 0, _prod(m), k, _prod(n), is_weight)
    return DotLayout(
        form, (*xb, *x_free, *xc), (*wb, *wc, *w_free), (len(xb), len(x_free), len(xc), len(w_free)),
        (*batch, *m, *n), swapped,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ConvLayout:
    """A convolution as ``(b, *spatial, c_in) . (*kernel, c_in / groups, c_out)``."""

    form: ConvForm
    x_order: tuple[int, ...]
    w_order: tuple[int, ...]
    out_order: tuple[int, ...]

    row_axes: tuple[int, ...] = ()

    @property
    def channel_axes(self) -> tuple[int, ...]:
        return (self.w_order[-1],)

    @property
    def form_terms(self) -> int:
        return _prod(self.form.kernel) * (self.form.c_in // self.form.groups)

    def summed(self, axis: int) -> int | None:
        """The axis of the weight that is summed together with the channels of the activation; None for any other axis."""
        return self.w_order[-2] if axis == self.x_order[-1] and self.form.groups == 1 else None

    def activation(self, codes: Any) -> Any:
        return jnp.transpose(codes, self.x_order)

    def weight(self, codes: Any) -> Any:
        return jnp.transpose(codes, self.w_order)

    def row_scale(self, scale: Any) -> Any:
        return scale.reshape((1,) * len(self.out_order))

    def channel_scale(self, scale: Any) -> Any:
        return self.channel_sum(scale.reshape(-1))

    def channel_sum(self, sums: Any) -> Any:
        return self.result(sums.reshape((1,) * (len(self.out_order) - 1) + (-1,)))

    def result(self, raw: Any) -> Any:
        return jnp.transpose(raw, _inverse(self.out_order))


def conv_layout(params: Any, x: tuple[int, ...], w: tuple[int, ...]) -> ConvLayout:
    """The canonical form of ``lax.conv_general_dilated``."""
    numbers = params["dimension_numbers"]
    orders = []
    for spec, last in ((numbers.lhs_spec, True), (numbers.rhs_spec, False), (numbers.out_spec, True)):
        first, second, *spatial = spec
        orders.append((first, *spatial, second) if last else (*spatial, second, first))
    x_order, w_order, out_order = orders
    form = ConvForm(
        batch=x[x_order[0]], spatial=tuple(x[a] for a in x_order[1:-1]), c_in=x[x_order[-1]],
        kernel=tuple(w[a] for a in w_order[:-2]), c_out=w[w_order[-1]], strides=tuple(params["window_strides"]),
        padding=tuple((int(a), int(b)) for a, b in params["padding"]), lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]), groups=params["feature_group_count"],
    )  # fmt: skip
    return ConvLayout(form, x_order, w_order, out_order)
