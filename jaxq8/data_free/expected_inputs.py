"""What each contraction reads on average, with no data: the function runs on numbers drawn from its batch norms' statistics.

Nagel et al. 2019 (data-free quantization, section 4.2.1 and appendix C) derive the mean of a clipped normal distribution in
closed form. Here the result of a batch norm is replaced by normally distributed numbers of its mean and spread, and the
function itself computes what becomes of them. So every activation function, sum, pooling and join is covered, and no formula
is needed. What a layer norm (RMS norm, group norm) reads is unknown as well, but of no account: normally distributed numbers
stand for it, and the function computes the norm of them, whose mean is its shift. What depends on the function's data in any
other way is not computed, and stays unknown.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, bind
from jaxq8.analysis.channel_factors import activation_axis
from jaxq8.analysis.flat_function import Chains, Node, Ref
from jaxq8.data_free.batch_norms import BatchNorm
from jaxq8.data_free.normalized import normalized_values
from jaxq8.data_free.signs import never_negative

FEWEST = 16  # positions for which the spread of a normal distribution can be shown


class Moments(NamedTuple):
    """Mean and variance of what a contraction reads, for each of the channels that it sums over, in float64."""

    mean: np.ndarray
    variance: np.ndarray | None


def expected_inputs(
    chains: Chains, leaves: Mapping[int, Any], norms: Sequence[BatchNorm]
) -> dict[Node, Moments]:
    """The moments of the inputs of those contractions whose inputs are known.

    Args:
      chains: The function.
      leaves: The leaves by number, in float.
      norms: Its batch norms.
    """
    norms = [norm for norm in norms if _positions(norm.result, norm.axis) >= FEWEST]
    free = normalized_values(chains) - never_negative(chains)
    free = {ref for ref in free if ref[1].aval.ndim and _positions(ref, -1) >= FEWEST}
    if not norms and not free:
        return {}
    counts = {_positions(norm.result, norm.axis) for norm in norms} | {_positions(ref, -1) for ref in free}
    run = jax.jit(functools.partial(_moments, chains, norms, free))
    found = jax.device_get(run(dict(leaves), {n: _normal_numbers(n) for n in counts}))
    return {
        node: Moments(*(np.asarray(part, np.float64) for part in moments))
        for (node, _), moments in zip(chains.contractions(), found, strict=True)
        if moments is not None and all(np.isfinite(part).all() for part in moments)
    }


def _positions(ref: Ref, axis: int) -> int:
    """How many numbers a value has in each of the channels along an axis."""
    shape = ref[1].aval.shape
    return int(np.prod(shape, dtype=int)) // max(int(shape[axis]), 1)


def _normal_numbers(count: int) -> np.ndarray:
    """Quantiles of the normal distribution in a fixed random order: their mean is exactly zero, however few they are."""
    normal = statistics.NormalDist()
    half = [normal.inv_cdf((i + 0.5) / count) for i in range(count // 2)]
    even = np.array([*half, *[0.0] * (count % 2), *(-h for h in reversed(half))])
    return np.random.default_rng(0).permutation(even / np.sqrt(np.mean(even**2))).astype(np.float32)


def _moments(
    chains: Chains, norms: Sequence[BatchNorm], free: Set[Ref], leaves: Mapping[int, Any],
    numbers: Mapping[int, jax.Array],
) -> list[tuple[jax.Array, jax.Array] | None]:  # fmt: skip
    """(mean, variance) of the activation of each contraction; None where it is unknown. Runs inside of `jax.jit`."""
    known: dict[Ref, Any] = {}
    for ref, trail in chains.trails.items():
        if ref not in chains.makers and trail.sources[0][0] in leaves:
            known[ref] = leaves[trail.sources[0][0]]
    results = {norm.result: norm for norm in norms}
    order = {norm.result: i for i, norm in enumerate(norms)}
    for node in chains.nodes:
        out = node.outputs[0] if node.outputs else None
        if out is not None and out in results:
            norm = results[out]
            drawn = jnp.roll(numbers[_positions(out, norm.axis)], 997 * order[out])
            known[out] = _drawn(out, norm.axis, norm.result_mean, norm.result_spread, drawn)
            continue
        for operand in node.inputs:
            if operand is not None and operand in free and operand not in known:
                known[operand] = _drawn(operand, -1, 0.0, 1.0, numbers[_positions(operand, -1)])
        operands = [
            variable.val if isinstance(variable, Literal) else known.get(ref) if ref is not None else None
            for ref, variable in zip(node.inputs, node.eqn.invars, strict=True)
        ]
        if all(operand is not None for operand in operands) and not node.eqn.effects:
            known.update(zip(node.outputs, bind(node.eqn, operands), strict=True))
    found: list[tuple[jax.Array, jax.Array] | None] = []
    for node, site in chains.contractions():
        axis, operand = activation_axis(node, site.weight), node.inputs[1 - (site.weight or 0)]
        x = known.get(operand) if operand is not None else None
        found.append(None if x is None or axis is None else _of_channels(x, axis))
    return found


def _drawn(ref: Ref, axis: int, mean: Any, spread: Any, numbers: jax.Array) -> jax.Array:
    """Numbers in the shape of a value, with this mean and spread: each channel has all of them, in an order of its own."""
    aval = ref[1].aval
    axis = axis % aval.ndim
    shape = [n for d, n in enumerate(aval.shape) if d != axis]
    channels, count = aval.shape[axis], numbers.size
    mean, spread = (jnp.asarray(v, jnp.float32) for v in (mean, spread))
    noise = numbers[(jnp.arange(count)[:, None] + 7 * jnp.arange(channels)) % count]
    return jnp.moveaxis((mean + spread * noise).reshape(*shape, channels), -1, axis).astype(aval.dtype)


def _of_channels(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    others = tuple(d for d in range(x.ndim) if d != axis)
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, others, keepdims=True)
    return mean.reshape(-1), jnp.mean(jnp.square(x - mean), others)
