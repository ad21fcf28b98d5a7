"""The layouts that turn JAX's general dots and convolutions into the canonical forms that kernels run, and results back.

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
    return math.prod(sizes)  # the sizes are ints or symbolic (jax.export)


@dataclasses.dataclass(frozen=True)
class DotLayout:
    """A dot as ``(b, m, k) . (b, k, n)``; the activation may be either operand.

    Attributes:
      form: The canonical form.
      x_order: The axes of the activation in the order b, m, k.
      w_order: The axes of the weight in the order b, k, n.
      counts: The number of axes that each of b, m, k and n stands for.
      sizes: The sizes of all axes of b, m and n.
      swapped: Whether the weight is the left operand; the result then has n before m.
    """

    form: DotForm
    x_order: tuple[int, ...]
    w_order: tuple[int, ...]
    counts: tuple[int, int, int, int]
    sizes: tuple[int, ...]
    swapped: bool

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes of the activation that are not summed."""
        b, m, _, _ = self.counts
        return tuple(sorted(self.x_order[: b + m]))

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The axes of the weight that are not summed."""
        b, _, k, _ = self.counts
        return tuple(sorted(self.w_order[:b] + self.w_order[b + k :]))

    @property
    def form_terms(self) -> int:
        """The number of products that are summed into one result."""
        return self.form.k

    def summed(self, axis: int) -> int | None:
        """The axis of the weight that is summed together with an axis of the activation; None if `axis` is not summed."""
        b, _, k, _ = self.counts
        summed = self.x_order[len(self.x_order) - k :]
        return self.w_order[b + summed.index(axis)] if axis in summed else None

    def activation(self, codes: Any) -> Any:
        """The activation in canonical layout."""
        f = self.form
        return jnp.transpose(codes, self.x_order).reshape((f.batch, f.m, f.k) if f.batch else (f.m, f.k))

    def weight(self, codes: Any) -> Any:
        """The weight in canonical layout."""
        f = self.form
        return jnp.transpose(codes, self.w_order).reshape((f.batch, f.k, f.n) if f.batch else (f.k, f.n))

    def operand(self, codes: Any, permutation: Sequence[int]) -> tuple[DotForm, Any] | None:
        """The weight in the layout that it had before a transposition, and the form of the product with it.

        XLA:CPU has integer kernels for a weight with k before n and for one with n before k, but none for a transposition that
        it folds into the product.

        Args:
          codes: The weight before the transposition.
          permutation: What the transposition did.

        Returns:
          The form and the weight as ``(n, k)``; None if all axes of n do not lie before all axes of k in `codes`.
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
        """A number for each channel, ``(n,)`` or ``(b, 1, n)``, in the rank of the result."""
        b, m, _, _ = self.counts
        leading = self.sizes[:b] if self.form.batch else (1,) * b
        return self._ordered(sums.reshape(leading + (1,) * m + self.sizes[b + m :]))

    def result(self, raw: Any) -> Any:
        """The result of the canonical form in the layout of the dot."""
        return self._ordered(raw.reshape(self.sizes))

    def _ordered(self, a: Any) -> Any:
        """An array with the axes b, m, n in the order of the result."""
        if not self.swapped:
            return a
        b, m, _, n = self.counts
        return jnp.transpose(a, (*range(b), *range(b + m, b + m + n), *range(b, b + m)))


def dot_layout(
    dimension_numbers: Any, lhs: tuple[int, ...], rhs: tuple[int, ...], swapped: bool, is_weight: bool
) -> DotLayout:
    """The canonical form of ``lax.dot_general``; `swapped` says that the left operand is the weight."""
    (lc, rc), (lb, rb) = dimension_numbers
    # For the activation x and the weight w: the shape, the contracted (summed) axes and the batch axes.
    x, xc, xb, w, wc, wb = (rhs, rc, rb, lhs, lc, lb) if swapped else (lhs, lc, lb, rhs, rc, rb)
    x_free = tuple(a for a in range(len(x)) if a not in (*xc, *xb))
    w_free = tuple(a for a in range(len(w)) if a not in (*wc, *wb))
    batch = [x[a] for a in xb]
    m = [x[a] for a in x_free]
    k = [x[a] for a in xc]
    n = [w[a] for a in w_free]
    return DotLayout(
        form=DotForm(_prod(batch) if batch else 0, _prod(m), _prod(k), _prod(n), is_weight),
        x_order=(*xb, *x_free, *xc),
        w_order=(*wb, *wc, *w_free),
        counts=(len(batch), len(m), len(k), len(n)),
        sizes=(*batch, *m, *n),
        swapped=swapped,
    )


@dataclasses.dataclass(frozen=True)
class ConvLayout:
    """A convolution as ``(b, *spatial, c_in) . (*kernel, c_in / groups, c_out)``; for its methods see `DotLayout`.

    Attributes:
      form: The canonical form.
      x_order: The axes of the activation in canonical order.
      w_order: The axes of the weight in canonical order.
      out_order: The axes of the result in canonical order.
      row_axes: Empty, because all positions of the activation share one scale.
    """

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
    batch, c_in, *spatial = numbers.lhs_spec
    x_order = (batch, *spatial, c_in)
    c_out, c_in, *kernel = numbers.rhs_spec
    w_order = (*kernel, c_in, c_out)
    batch, c_out, *spatial = numbers.out_spec
    out_order = (batch, *spatial, c_out)
    form = ConvForm(
        batch=x[x_order[0]], spatial=tuple(x[a] for a in x_order[1:-1]), c_in=x[x_order[-1]],
        kernel=tuple(w[a] for a in w_order[:-2]), c_out=w[w_order[-1]], strides=tuple(params["window_strides"]),
        padding=tuple((int(a), int(b)) for a, b in params["padding"]), lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]), groups=params["feature_group_count"],
    )  # fmt: skip
    return ConvLayout(form, x_order, w_order, out_order)
