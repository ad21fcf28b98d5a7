"""`equalize`: cross-layer equalization, which moves a factor for each channel from activations into the weights that read them.

The channels of a component (see `jaxq8.analysis.channel_factors`) are divided by ``s`` where they are computed, and the weights
that read them are multiplied by ``s``. In float this does not change the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.channel_factors import Component, activation_axis, components
from jaxq8.analysis.flat_function import Chains, array_leaves
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.calibrate import each_batch
from jaxq8.config import Config
from jaxq8.errors import ArgumentError
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Value, to_real
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder
from jaxq8.transform import checked_config

# Factors differ from their geometric mean by at most this factor, which preserves float accuracy.
LARGEST = 1e4
# Sites that will run in float are measured too, since their operands may be stored in eight bits all the same.
EVERYWHERE = Config(kernels="xla")


def equalize(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    strength: float = 0.5,
    config: Config | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Any:
    """Makes the ranges of channels more alike, without changing what the function computes in float.

    For every component (see `jaxq8.analysis.channel_factors`) the factor of a channel is
    ``max|x|**strength / max|w|**(1 - strength)`` (SmoothQuant, Xiao et al. 2023, eq. 4; for CNNs this is cross-layer
    equalization, Nagel et al. 2019, with measured activations). One scale then fits all channels of the activation, while the
    weights that read it keep scales of their own.

    Args:
      fn: The float function.
      variables: Its first argument, in float.
      batches: As for `calibrate`; the largest magnitude of each channel is measured on them.
      strength: How much of the difficulty moves from activations into weights, 0 to 1.
      config: As for `quantize`.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      New variables, for which `fn` gives the same results up to float accuracy. Calibrate after equalizing, not before.

    Raises:
      ArgumentError: There are no batches, or `strength` is not between 0 and 1.

    Example:
      >>> even = q8.equalize(model.apply, variables, batches)
      >>> bool(jnp.allclose(model.apply(even, images), model.apply(variables, images), atol=1e-4))
      True
    """
    if not 0 <= strength <= 1:
        raise ArgumentError(f"equalize(strength={strength}): must be between 0 and 1")
    config = checked_config(fn, config)
    step = jax.jit(lambda v, x: _magnitudes(fn, v, x, kwargs))
    largest: dict[str, np.ndarray] = {}
    for inputs in each_batch("equalize", batches, "equalizing", progress):
        for name, new in jax.device_get(step(variables, inputs)).items():
            largest[name] = np.maximum(largest.get(name, 0), new)
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config)
    return _equalized(variables, components(chains), largest, strength)


class _Largest(Probe):
    """Keeps the largest magnitude of each channel of the activations that contractions outside of loops read."""

    def __init__(self, axes: dict[str, int]):
        super().__init__()
        self._axes = axes

    def see(self, name: str, value: Value, codes: QTensor) -> None:
        if name in self._axes and len(self._frames) == 1:
            real, axis = jnp.abs(to_real(value).astype(jnp.float32)), self._axes[name]
            self.seen[name] = jnp.max(real, tuple(a for a in range(real.ndim) if a != axis))


def _magnitudes(fn: Any, variables: Any, inputs: Any, kwargs: Any) -> dict[str, jax.Array]:
    """The largest magnitude of each channel of what each contraction reads, in one batch."""
    chains = Chains.trace(fn, (variables, *inputs), kwargs, EVERYWHERE)
    axes = {site.name: activation_axis(node, site.weight) for node, site in chains.contractions()}
    probe = _Largest({name: axis for name, axis in axes.items() if axis is not None})
    call = Call.trace(fn, (variables, *inputs), kwargs)
    evaluate_call(
        call, call.arguments.leaves, EVERYWHERE, Ranges(), Recorder(), probe, exact=lambda name: True
    )
    return dict(probe.seen)


def _equalized(
    variables: Any, found: list[Component], largest: dict[str, np.ndarray], strength: float
) -> Any:
    """The variables with the factors of all components applied."""
    flat, arrays, tree = array_leaves(variables)
    leaves: dict[int, np.ndarray] = {}
    for component in found:
        for leaf, *_ in component.changes:
            leaves[leaf] = _float64(flat[arrays[leaf]])
    for component in found:
        factors = _factors(component, leaves, largest, strength)
        for leaf, axis, power, ids in component.changes:
            shape = [1] * leaves[leaf].ndim
            shape[axis] = -1
            leaves[leaf] = leaves[leaf] * (factors[component.roots(ids)] ** power).reshape(shape)
    for leaf, data in leaves.items():
        flat[arrays[leaf]] = jnp.asarray(data, flat[arrays[leaf]].dtype)
    return jax.tree_util.tree_unflatten(tree, flat)


def _float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.dequantize() if is_encoded(leaf) else leaf, np.float64)


def _factors(
    component: Component, leaves: dict[int, np.ndarray], largest: dict[str, np.ndarray], strength: float
) -> np.ndarray:
    """One factor for each channel; 1 where the activation or the weight is zero or was not measured."""
    count = len(component.parents)
    x, w = np.zeros(count), np.zeros(count)
    for name, leaf, axis, ids in component.consumers:
        weight, roots = np.abs(leaves[leaf]), component.roots(ids)
        np.maximum.at(w, roots, weight.max(axis=tuple(a for a in range(weight.ndim) if a != axis)))
        if name in largest:
            np.maximum.at(x, roots, largest[name])
    known = (x > 0) & (w > 0)
    factors = np.ones(count)
    if not known.any():
        return factors
    factors[known] = x[known] ** strength / w[known] ** (1 - strength)
    factors[known] /= np.exp(np.log(factors[known]).mean())
    return np.clip(factors, 1 / LARGEST, LARGEST)
