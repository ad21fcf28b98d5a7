"""Ranges that are measured while the program runs, by reductions in the forms that XLA:CPU compiles and runs fast."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxq8._compat import stored
from jaxq8.evaluation.values import INF, Accumulator, Array, decode
from jaxq8.numerics.qtensor import extremes
from jaxq8.operations import is_collecting


def per_channel(acc: Accumulator) -> bool:
    """Whether scale and offset vary along the last axis only."""
    leading = (*jnp.shape(acc.scale)[:-1], *jnp.shape(acc.offset)[:-1])
    return acc.rows is None and all(n == 1 for n in leading)


def accumulated_range(acc: Accumulator) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) of an accumulator, from the extreme integers of each channel.

    The integers are reduced over rows, which XLA:CPU vectorises over channels, and only the vectors of extremes are scaled.
    This is several times faster than a reduction of the real numbers. A bound that is known needs no reduction.
    """
    rows = lax.stop_gradient(acc.values).reshape(-1, acc.shape[-1])
    need_least = not (acc.positive and acc.lo >= 0)
    scale, offset = (
        jnp.broadcast_to(v, v.shape[:-1] + acc.shape[-1:]).reshape(-1) for v in (acc.scale, acc.offset)
    )
    extremes_of_channels = [jnp.max(rows, axis=0)]
    if need_least:
        extremes_of_channels.append(jnp.min(rows, axis=0))
    # Stored, because XLA would run the reductions again inside the loop that reduces their vectors.
    vectors = stored(extremes_of_channels)
    reals = [lax.stop_gradient(v.astype(jnp.float32) * scale + offset) for v in vectors]
    if need_least:  # a negative scale exchanges minimum and maximum
        reals = [lax.min(*reals), lax.max(*reals)]
    least, greatest = _extremes(reals[0], reals[-1])
    return _clipped(least, acc), _clipped(greatest, acc)


def _clipped(real: jax.Array, acc: Accumulator) -> jax.Array:
    """A real number between the clips of the accumulator."""
    if acc.lo > -INF:
        real = lax.max(real, jnp.float32(acc.lo))
    if acc.hi < INF:
        real = lax.min(real, jnp.float32(acc.hi))
    return real


def _extremes(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The minimum of one vector and the maximum of the other, reduced together in one loop.

    XLA:CPU turns each separate reduction into two reductions in a row, and a loop for the data that is reduced: six kernels,
    where the joint reduction is one. Both results are stored, because XLA would drop a result that nobody reads and turn the
    rest into an ordinary reduction.
    """
    if is_collecting():  # a region has a step for each
        return lax.reduce_min(low, (0,)), lax.reduce_max(high, (0,))

    def both(x: Any, y: Any) -> Any:
        return lax.min(x[0], y[0]), lax.max(x[1], y[1])

    return stored(lax.reduce((low, high), (jnp.float32(INF), jnp.float32(-INF)), both, (0,)))


def real_range(
    value: Array | Accumulator, keep: tuple[int, ...], saturate: bool
) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) of the real numbers; of the finite ones only if `saturate`. XLA drops a result that is not used."""
    real = decode(value) if isinstance(value, Accumulator) else value.array.astype(jnp.float32)
    if saturate:
        real = jnp.where(jnp.isfinite(real), real, 0)
    real = lax.stop_gradient(real)
    if keep:
        return extremes(real, keep)
    # First over rows, then over the vector that is left: XLA:CPU vectorises the first reduction over the last axis. The data
    # are reshaped to two axes, because XLA:CPU crashes on some reductions of rank 7 and 8.
    rows = real.reshape(-1, real.shape[-1]) if real.ndim > 1 else real.reshape(1, -1)
    # Stored in between, because XLA would merge the two reductions into one slow reduction.
    return jnp.min(stored(jnp.min(rows, axis=0))), jnp.max(stored(jnp.max(rows, axis=0)))
