"""The range of a value in this run: reductions in the forms that XLA:CPU compiles and runs fast."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxq8._compat import stored
from jaxq8.evaluation.values import INF, Accumulator, Array, decode
from jaxq8.numerics.qtensor import extremes


def per_channel(acc: Accumulator) -> bool:
    """Whether scale and offset depend on nothing but the last axis."""
    return acc.rows is None and all(n == 1 for v in (acc.scale, acc.offset) for n in jnp.shape(v)[:-1])


def accumulated_range(acc: Accumulator) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) of an accumulator, from the extreme integers of each channel.

    Integers are reduced along rows, which XLA:CPU vectorises over channels, and only the vectors of extremes are scaled:
    several times faster than reducing the real numbers. Bounds that are known need no reduction.
    """
    rows = lax.stop_gradient(acc.values).reshape(-1, acc.shape[-1])
    need_least = not (acc.positive and acc.lo >= 0)
    scale, offset = (
        jnp.broadcast_to(v, v.shape[:-1] + acc.shape[-1:]).reshape(-1) for v in (acc.scale, acc.offset)
    )
    extreme = (jnp.max(rows, axis=0), jnp.min(rows, axis=0)) if need_least else (jnp.max(rows, axis=0),)
    # Stored, because XLA would run the reductions again inside the loop that reduces their vectors.
    reals = [lax.stop_gradient(v.astype(jnp.float32) * scale + offset) for v in stored(extreme)]
    if need_least:  # a negative scale turns them round
        reals = [lax.min(*reals), lax.max(*reals)]
    least, greatest = _extremes(reals[0], reals[-1])
    return _clipped(least, acc), _clipped(greatest, acc)


def _clipped(real: jax.Array, acc: Accumulator) -> jax.Array:
    real = lax.max(real, jnp.float32(acc.lo)) if acc.lo > -INF else real
    return lax.min(real, jnp.float32(acc.hi)) if acc.hi < INF else real


def _extremes(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum of one vector and maximum of the other, in one loop.

    XLA:CPU makes two reductions in a row of each one alone, and a loop for what is reduced: one kernel in the place of six.
    Both are stored, because it drops a result that nobody reads, and makes an ordinary reduction of what is left.
    """

    def both(x: Any, y: Any) -> Any:
        return lax.min(x[0], y[0]), lax.max(x[1], y[1])

    return stored(lax.reduce((low, high), (jnp.float32(INF), jnp.float32(-INF)), both, (0,)))


def real_range(
    value: Array | Accumulator, keep: tuple[int, ...], saturate: bool
) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) of the real numbers, over finite ones alone if `saturate`; unused ones are never computed."""
    real = decode(value) if isinstance(value, Accumulator) else value.array.astype(jnp.float32)
    if saturate:
        real = jnp.where(jnp.isfinite(real), real, 0)
    real = lax.stop_gradient(real)
    if keep:
        return extremes(real, keep)
    # Rows first, then the vector that is left: XLA:CPU vectorises the first over the last axis, and crashes on some
    # reductions of rank 7 and 8.
    rows = real.reshape(-1, real.shape[-1]) if real.ndim > 1 else real.reshape(1, -1)
    # Stored in between, because XLA makes one slow reduction of two in a row.
    return jnp.min(stored(jnp.min(rows, axis=0))), jnp.max(stored(jnp.max(rows, axis=0)))
