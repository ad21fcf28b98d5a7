"""Scales of weights by least squared error: a smaller step may fit the weights of a channel better.

The scale that the extremes give spends its outermost codes on one weight. With few bits a smaller step that clips this weight
lets all others be nearer to a code. What an error costs is weighed with the variance of what the weight is multiplied with; the
mean error of a channel, which clipping makes as well, is left to `balanced`, which follows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8.data_free.balanced_codes import ends
from jaxq8.numerics.qtensor import QTensor

FACTORS = tuple(1 - 0.02 * i for i in range(21))


def fitted(weight: Any, codes: QTensor, variance: Any = 1.0, factors: tuple[float, ...] = FACTORS) -> QTensor:
    """The nearest codes of a weight, with those scales that have the least squared error.

    Args:
      weight: The weight in float.
      codes: Its codes by the scales of its extremes.
      variance: Of what each weight is multiplied with; broadcasts to the weight.
      factors: Which multiples of the scales are tried.
    """
    if codes.values.dtype not in (jnp.int8, jnp.uint8):
        return codes
    low, high = ends(codes)
    values, scale = _best(
        jnp.asarray(weight, jnp.float32), codes.scale, codes.zero_point, jnp.asarray(variance, jnp.float32),
        jnp.asarray(factors, jnp.float32), low, high,
    )  # fmt: skip
    return dataclasses.replace(codes, values=values.astype(codes.values.dtype), scale=scale)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _best(
    weight: Any, scale: Any, zero: Any, variance: Any, factors: Any, low: int, high: int
) -> tuple[Any, Any]:
    shape, small = weight.shape, scale.shape
    split = [part for n, s in zip(shape, small, strict=True) for part in (s, n // s)]
    inner = tuple(range(1, 2 * len(shape), 2))
    w = weight.reshape(split)
    v = jnp.broadcast_to(variance, shape).reshape(split)
    one = [part for s in small for part in (s, 1)]
    z = zero.reshape(one).astype(jnp.float32)

    def rounded(s: Any) -> Any:
        return jnp.clip(jnp.round(w / s) + z, low, high)

    def error(factor: Any) -> Any:
        s = scale.reshape(one) * factor
        return jnp.sum(v * jnp.square((rounded(s) - z) * s - w), inner, keepdims=True)

    costs = jax.lax.map(error, factors)
    s = scale.reshape(one) * factors[jnp.argmin(costs, 0)]
    return rounded(s).reshape(shape), s.reshape(small)
