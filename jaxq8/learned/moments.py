"""The moments of what each contraction reads, and where in their leaves the weights of each contraction are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.config import Config
from jaxq8.forms import ConvLayout, DotLayout
from jaxq8.kernels.base import ConvForm, filled
from jaxq8.plan import Recorder
from jaxq8.probes import Probe
from jaxq8.qtensor import QTensor
from jaxq8.ranges import Ranges
from jaxq8.transform import Call

# Moments are taken of the float function at every contraction, whatever the mode that the weights are for.
EXACT = Config(kernels="xla")
Moments = tuple[jax.Array, jax.Array]


def patches(form: ConvForm, x: jax.Array) -> jax.Array:
    """What each output of a convolution reads: ``(rows, groups, k)`` with k ordered as the kernel's axes, then channels."""
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
    """A weight as ``(g, k, n)``, in the order of `read_rows`."""
    canonical = layout.weight(w)
    if isinstance(layout, DotLayout):
        return canonical if canonical.ndim == 3 else canonical[None]
    groups = layout.form.groups
    return jnp.moveaxis(canonical.reshape(-1, groups, canonical.shape[-1] // groups), 1, 0)


class _Reading(Probe):
    """Keeps, of contractions outside of loops, their moments or the places of their weights."""

    def __init__(self, keep: Callable[[DotLayout | ConvLayout, QTensor, QTensor], Any], wanted: Any = None):
        super().__init__()
        self._keep, self._wanted = keep, wanted

    def reads(self, name: str, layout: Any, x: QTensor, w: QTensor) -> None:
        if len(self._frames) == 1 and (self._wanted is None or name in self._wanted):
            self.add({name: self._keep(layout, x, w)})


def _moments(layout: DotLayout | ConvLayout, x: QTensor, w: QTensor) -> Moments:
    rows = read_rows(layout, x.values).astype(jnp.float32)
    return jnp.einsum("rgi,rgj->gij", rows, rows) / len(rows), jnp.mean(rows, 0)


def moments(
    fn: Callable[..., Any], variables: Any, inputs: Sequence[Any], kwargs: dict[str, Any], names: set[str]
) -> dict[str, Moments]:
    """Of each named site the mean of ``x x^T``, (g, k, k), and of x, (g, k), over one batch; traceable."""
    call, probe = Call.trace(fn, (variables, *inputs), kwargs), _Reading(_moments, names)
    call.evaluate(
        call.arguments.leaves, EXACT, Ranges(), Recorder(), probe, exact=lambda name: True
    )
    return probe.seen


def places(call: Call, leaves: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Where in its leaf each element of a contraction's weight is, ``(g, k, n)`` of int, for weights of the given leaves.

    Found by letting numbered elements take the weights' place: only layout happens to a weight before it is read, so the
    numbers arrive as they are. Sites where they do not (dtype conversions, more than 2**24 elements) are left out.
    """

    def run(numbered: list[Any]) -> dict[str, jax.Array]:
        probe = _Reading(lambda layout, x, w: as_columns(layout, w.values))
        given = list(call.arguments.leaves)
        for i, numbers in zip(leaves, numbered, strict=True):
            given[i] = numbers
        call.evaluate(given, EXACT, Ranges(), Recorder(), probe, exact=lambda name: True)
        return probe.seen

    sizes = [np.shape(call.arguments.leaves[i]) for i in leaves]
    numbered = [jnp.arange(int(np.prod(s)), dtype=jnp.float32).reshape(s) for s in sizes]
    found = {name: np.asarray(numbers) for name, numbers in jax.jit(run)(numbered).items()}
    return {
        name: numbers.astype(np.int64)
        for name, numbers in found.items()
        if np.array_equal(np.sort(numbers, axis=None), np.arange(numbers.size)) and numbers.size < 2**24
    }
