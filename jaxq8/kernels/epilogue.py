"""From an accumulator to codes in one elementwise pass, and from accumulators and codes to real numbers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.kernels.barred import is_barred
from jaxq8.numerics.qtensor import QTensor
from jaxq8.operations import elementwise_batch, is_collecting, like_first, operation

# Adding 1.5 * 2**23 to a float32 below 2**22 in magnitude rounds it to the nearest integer, ties to even, and leaves that
# integer in the low bits of the sum. XLA:CPU vectorises this; a rounding and two conversions are slower.
_MAGIC = 12582912.0


def encode(
    values: Any, multiplier: Any, offset: Any, lo: Any, hi: Any, dtype: Any, rounding: Any = None
) -> Any:
    """``clip(round(values * multiplier + offset), lo, hi)`` as codes.

    Args:
      values: int32 accumulators, float32 reals or codes.
      multiplier: Float32, broadcastable.
      offset: Float32, broadcastable, the zero point included.
      lo: Smallest code allowed, integer-valued (relu: the zero point).
      hi: Largest code allowed.
      dtype: uint8 or int8.
      rounding: None for half-even, or ``f(x) -> rounded``.

    Returns:
      Codes. NaN becomes some code; the caller makes the scale NaN, so that decoding gives NaN again.
    """
    if rounding is None and isinstance(lo, float | np.floating) and isinstance(hi, float | np.floating):
        return codes_of(values, multiplier, offset, lo=float(lo), hi=float(hi), dtype=np.dtype(dtype))
    if rounding is None and is_collecting():
        return codes_between(values, multiplier, offset, lo, hi, dtype=np.dtype(dtype))
    return _encoded(values, multiplier, offset, lo, hi, dtype, rounding)


def _kept(values: Any, *, axes: tuple[int, ...]) -> Any:
    """The result of a reduction that keeps its axes."""
    shape = [1 if axis in axes else n for axis, n in enumerate(values.shape)]
    return jax.ShapeDtypeStruct(tuple(shape), values.dtype)


@operation(like_first, elementwise_batch)
def codes_of(values: Any, multiplier: Any, offset: Any, *, lo: float, hi: float, dtype: Any) -> Any:
    """`encode` with rounding half to even and bounds that are known while tracing."""
    return _encoded(values, multiplier, offset, lo, hi, dtype, None)


@operation(like_first, elementwise_batch)
def codes_between(values: Any, multiplier: Any, offset: Any, lo: Any, hi: Any, *, dtype: Any) -> Any:
    """`encode` with rounding half to even and bounds that are arrays."""
    return _encoded(values, multiplier, offset, lo, hi, dtype, None)


def _encoded(values: Any, multiplier: Any, offset: Any, lo: Any, hi: Any, dtype: Any, rounding: Any) -> Any:
    real = values.astype(jnp.float32) * multiplier + offset
    if rounding is not None or is_barred("encode"):
        return jnp.clip((rounding or jnp.round)(real), lo, hi).astype(jnp.int32).astype(dtype)
    # The clip stands between the two additions on purpose. XLA would otherwise add the two constants first, which would round
    # the offset to an integer before the value is added.
    clipped = jnp.minimum(jnp.maximum(real, lo), hi)
    return lax.bitcast_convert_type(clipped + jnp.float32(_MAGIC), jnp.int32).astype(dtype)


@operation(like_first, elementwise_batch)
def real_numbers(values: Any, scale: Any, offset: Any, *, lo: float, hi: float) -> Any:
    """``clip(values * scale + offset, lo, hi)`` in float32."""
    real = values.astype(jnp.float32) * scale + offset
    if lo > -math.inf:
        real = jnp.maximum(real, jnp.float32(lo))
    if hi < math.inf:
        real = jnp.minimum(real, jnp.float32(hi))
    return real


@operation(like_first, elementwise_batch)
def numbers_of_codes(values: Any, scale: Any, zero_point: Any) -> Any:
    """``(values - zero_point) * scale`` in float32, for codes whose scales are shared along whole axes."""
    return QTensor(values, scale, zero_point).dequantize()


def _along_later_axes(
    operation: Any, arrays: Any, has_batch: Any, *, axes: tuple[int, ...], **params: Any
) -> Any:
    """A reduction of several batches, whose axes are behind the batch."""
    return operation.primitive.bind(*arrays, axes=tuple(axis + 1 for axis in axes), **params)


@operation(_kept, _along_later_axes)
def nan_among(values: Any, *, axes: tuple[int, ...]) -> Any:
    """NaN for each slice across `axes` that holds NaN or infinity, else 0; these axes stay with size 1."""
    return jnp.sum(values * 0, axis=axes, keepdims=True)


@operation(like_first, elementwise_batch)
def nan_if(scale: Any, witness: Any) -> Any:
    """NaN where `witness` is NaN, else `scale`."""
    return jnp.where(jnp.isnan(witness), jnp.nan, scale)
