"""Measures the moments of what each contraction reads, and finds where in its leaf each element of a weight lies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.kernels.canonical import ConvLayout, DotLayout
from jaxq8.kernels.forms import ConvForm
from jaxq8.kernels.padding import filled
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder

# Moments are measured on the float function at every contraction, whatever mode the weights are meant for.
EXACT = Config(kernels="xla")
DAMPING = 0.1  # how firmly a weight stays where it is, as a part of the mean diagonal of the second moments


class Moments(NamedTuple):
    """The moments of what a site reads: x in float, and y with the weights that were rounded before it.

    Attributes:
      second: The mean of ``y y^T``, (g, k, k).
      drift: The mean of ``y (x - y)^T``, (g, k, k): zero while nothing before the site is rounded.
      exact: The mean of x, (g, k).
      found: The mean of y, (g, k).
    """

    second: Any
    drift: Any
    exact: Any
    found: Any

    def centred(self) -> Moments:
        """The moments about the means, for sites whose mean error is corrected in a vector after them."""
        outer = self.found[:, :, None]
        return self._replace(
            second=self.second - outer * self.found[:, None],
            drift=self.drift - outer * (self.exact - self.found)[:, None],
        )

    def without_drift(self) -> Moments:
        """The moments as if x were y, so that `aimed` leaves a weight as it is."""
        return self._replace(drift=np.zeros_like(self.drift), exact=self.found)

    def aimed(self, weight: Any) -> Any:
        """The weight whose result for y is closest to the result of `weight` for x: ``w + H^-1 E[y (x - y)^T] w``.

        It is the least-squares solution, damped so that it stays near `weight` where the data say little.
        """
        size = self.second.shape[1]
        mean = np.trace(self.second, axis1=1, axis2=2)[:, None, None] / size
        damped = self.second + np.where(mean > 0, DAMPING * mean, 1) * np.eye(size, dtype=np.float32)
        return (weight + np.linalg.solve(damped, self.drift @ weight)).astype(np.float32)


def patches(form: ConvForm, x: jax.Array) -> jax.Array:
    """The elements that each output of a convolution reads, ``(rows, groups, k)``; k runs over kernel axes, then channels."""
    x = filled(form, x, 0)
    reach = [(n - 1) * s + 1 for n, s in zip(form.out_spatial, form.strides, strict=True)]
    pieces = []
    for place in itertools.product(*map(range, form.kernel)):
        first = [p * d for p, d in zip(place, form.rhs_dilation, strict=True)]
        last = [f + r for f, r in zip(first, reach, strict=True)]
        pieces.append(
            jax.lax.slice(x, (0, *first, 0), (x.shape[0], *last, x.shape[-1]), (1, *form.strides, 1))
        )
    rows = jnp.stack([p.reshape(-1, form.groups, p.shape[-1] // form.groups) for p in pieces], axis=2)
    return rows.reshape(rows.shape[0], form.groups, -1)


def read_rows(layout: DotLayout | ConvLayout, x: jax.Array) -> jax.Array:
    """The rows that a contraction multiplies with its weight, ``(rows, g, k)``."""
    canonical = layout.activation(x)
    if isinstance(layout, ConvLayout):
        return patches(layout.form, canonical)
    return canonical[:, None] if canonical.ndim == 2 else jnp.swapaxes(canonical, 0, 1)


def as_columns(layout: DotLayout | ConvLayout, w: Any) -> Any:
    """A weight as ``(g, k, n)``, with its k in the order of `read_rows`."""
    canonical = layout.weight(w)
    if isinstance(layout, DotLayout):
        return canonical if canonical.ndim == 3 else canonical[None]
    groups = layout.form.groups
    return jnp.moveaxis(canonical.reshape(-1, groups, canonical.shape[-1] // groups), 1, 0)


class Reading(Probe):
    """Keeps what a function makes of the operands of each contraction outside of loops."""

    def __init__(self, keep: Callable[[DotLayout | ConvLayout, QTensor, QTensor], Any], wanted: Any = None):
        super().__init__()
        self._keep, self._wanted = keep, wanted

    def reads(self, name: str, layout: Any, x: QTensor, w: QTensor) -> None:
        if len(self._frames) == 1 and (self._wanted is None or name in self._wanted):
            self.add({name: self._keep(layout, x, w)})


def moments(
    fn: Callable[..., Any],
    variables: tuple[Any, Any],
    inputs: Sequence[Any],
    kwargs: dict[str, Any],
    names: set[str],
) -> dict[str, Moments]:
    """Second and first moments of what each named site reads, over one batch; it can be traced.

    Args:
      fn: The float function.
      variables: The float variables, with which a site reads x, and those rounded so far, with which it reads y.
      inputs: The other positional arguments.
      kwargs: Keyword arguments of `fn`.
      names: The sites.

    Returns:
      A dict of `Moments` by site name.
    """
    rows = []
    for each in variables:
        call = Call.trace(fn, (each, *inputs), kwargs)
        probe = Reading(lambda layout, x, w: read_rows(layout, x.values).astype(jnp.float32), names)
        evaluate_call(
            call, call.arguments.leaves, EXACT, Ranges(), Recorder(), probe, exact=lambda name: True
        )
        rows.append(probe.seen)
    return {name: _moments(rows[0][name], rows[1][name]) for name in rows[0] if name in rows[1]}


def _moments(x: jax.Array, y: jax.Array) -> Moments:
    second = jnp.einsum("rgi,rgj->gij", y, y) / len(x)
    drift = jnp.einsum("rgi,rgj->gij", y, x - y) / len(x)
    return Moments(second, drift, jnp.mean(x, 0), jnp.mean(y, 0))


def places(call: Call, leaves: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """For each contraction, where in its leaf each element of its weight lies: int64 indices, ``(g, k, n)``.

    The weights are replaced by arrays of consecutive numbers. Since only the layout of a weight changes before it is read, the
    numbers arrive unchanged and tell where they come from. Sites where they do not arrive unchanged (because of a dtype
    conversion, or with more than 2**24 elements) are left out.

    Args:
      call: The traced float function.
      leaves: Which leaves of the call's arguments are the weights.
    """

    def run(numbered: list[Any]) -> dict[str, jax.Array]:
        probe = Reading(lambda layout, x, w: as_columns(layout, w.values))
        given = list(call.arguments.leaves)
        for i, numbers in zip(leaves, numbered, strict=True):
            given[i] = numbers
        evaluate_call(call, given, EXACT, Ranges(), Recorder(), probe, exact=lambda name: True)
        return probe.seen

    sizes = [np.shape(call.arguments.leaves[i]) for i in leaves]
    numbered = [jnp.arange(int(np.prod(s)), dtype=jnp.float32).reshape(s) for s in sizes]
    found = {}
    for name, arrived in jax.jit(run)(numbered).items():
        numbers = np.asarray(arrived)
        unchanged = np.array_equal(np.sort(numbers, axis=None), np.arange(numbers.size))
        if unchanged and numbers.size < 2**24:  # float32 holds integers exactly up to 2**24
            found[name] = numbers.astype(np.int64)
    return found
