"""From real numbers to codes: where the range comes from, and the one pass that applies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import primitive_named
from jaxq8.config import Spec
from jaxq8.errors import TensorError
from jaxq8.kernels import epilogue
from jaxq8.qtensor import QTensor, describe, extremes, kept_axes
from jaxq8.ranges import Range, affine
from jaxq8.rounding import Rounding, straight_through
from jaxq8.values import INF, Accumulator, Array, Broadcast, Value, bounds, decode, to_real

# Cheap elementwise operations: XLA computes them again in each reader's loop, so their results are views of their inputs.
ELEMENTWISE = set(
    primitive_named(
        "add_p", "sub_p", "mul_p", "div_p", "neg_p", "max_p", "min_p", "abs_p", "select_n_p", "convert_element_type_p",
        "clamp_p", "copy_p",
    )
)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How one value becomes codes.

    Attributes:
      spec: The representation.
      fixed: A range given by calibration or by hand; None to use known bounds or to measure.
      rounding: The scheme.
      key: PRNG key for schemes that need one.
      simulate: Keep codes in float32 with a straight-through derivative.
      saturate: Measure ranges over finite values only.
    """

    spec: Spec
    rounding: Rounding
    fixed: Range | None = None
    key: Any = None
    simulate: bool = False
    saturate: bool = False

    @property
    def range(self) -> Range | None:
        return self.spec.range if isinstance(self.spec.range, Range) else self.fixed


def encode(value: Value, how: Encoding, keep: tuple[int, ...] | None = None) -> QTensor:
    """Codes of a value.

    Args:
      value: Any value that stands for floats.
      how: Representation, range and rounding.
      keep: Axes that keep scales of their own; default from the spec's granularity.

    Returns:
      A QTensor. One that is wanted in the representation it has is returned unchanged.

    Raises:
      TensorError: The value does not stand for floating-point numbers.
    """
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TensorError(f"cannot encode {describe(value)}: only floating-point numbers have codes")
    keep = kept_axes(len(value.shape), how.spec, None) if keep is None else keep
    if isinstance(value, Array) and value.codes is not None:
        value = value.codes
    if isinstance(value, QTensor):
        if _fits(value, how, keep):
            return value
        value = Array(value.dequantize())
    if isinstance(value, Broadcast):
        value = Array(to_real(value))
    minimum, maximum = _range_of(value, how, keep)
    scale, zero_point = affine(minimum, maximum, how.spec, how.rounding)
    scale = _checked_scale(value, scale, how)
    codes = _apply(value, scale, zero_point, how)
    return QTensor(codes, scale, zero_point, how.spec.bits, how.spec.is_symmetric, np.dtype(value.dtype))


def encode_together(values: Sequence[Value], how: Encoding, dimension: int) -> QTensor:
    """Several accumulators or QTensors (one scale each) as one QTensor, joined along an axis.

    QTensors keep the range of their codes; only accumulators are measured. Parts that have the common range already are
    copied as they are.
    """
    limits = [_limits(v, how) for v in values]
    low, high = (jnp.stack(ends) for ends in zip(*limits, strict=True))
    minimum, maximum = jnp.min(low), jnp.max(high)
    if how.range is not None:
        minimum, maximum = jnp.float32(how.range.minimum), jnp.float32(how.range.maximum)
    scale, zero_point = affine(minimum, maximum, how.spec, how.rounding)
    rank = (1,) * len(values[0].shape)
    scale, zero_point = scale.reshape(rank), zero_point.reshape(rank)
    parts = [_apply(_as_accumulator(v), scale, zero_point, how) for v in values]
    joined = jnp.concatenate(parts, axis=dimension)
    return QTensor(joined, scale, zero_point, how.spec.bits, how.spec.is_symmetric, np.dtype(values[0].dtype))


def _limits(value: Value, how: Encoding) -> tuple[jax.Array, jax.Array]:
    if isinstance(value, QTensor):
        return jnp.min(value.minimum), jnp.max(value.maximum)
    assert isinstance(value, Accumulator)
    minimum, maximum = _range_of(value, how, ())
    return minimum.reshape(()), maximum.reshape(())


def _as_accumulator(value: Value) -> Accumulator:
    """Codes as an accumulator: the same formula encodes both."""
    if isinstance(value, Accumulator):
        return value
    assert isinstance(value, QTensor)
    offset = -value.scale * value.zero_point.astype(jnp.float32)
    return Accumulator(value.values, value.scale, offset, dtype=value.dtype)


def _fits(q: QTensor, how: Encoding, keep: tuple[int, ...]) -> bool:
    """Whether codes can be used as they are: not finer than asked for in bits, and one scale where one is asked for."""
    shared = all(s == 1 for axis, s in enumerate(q.scale.shape) if axis not in keep)
    return shared and q.bits <= how.spec.bits and (q.symmetric or not how.spec.is_symmetric)


def _range_of(value: Array | Accumulator, how: Encoding, keep: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) in float32: given, known by construction, or measured in this run."""
    shape = tuple(n if a in keep else 1 for a, n in enumerate(value.shape))
    low, high = bounds(value)
    known = how.range or (Range(low, high) if low > -INF and high < INF else None)
    if known is not None:
        return jnp.full(shape, known.minimum, jnp.float32), jnp.full(shape, known.maximum, jnp.float32)
    real = decode(value) if isinstance(value, Accumulator) else value.array.astype(jnp.float32)
    if how.saturate:
        real = jnp.where(jnp.isfinite(real), real, 0)
    real = jax.lax.stop_gradient(real)
    if 0 in value.shape:
        return extremes(real, keep)
    return _measured(real, low, high, keep, shape)


def _measured(
    real: jax.Array, low: float, high: float, keep: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Reductions only for the ends that are not known; the range is widened to hold zero in any case."""
    minimum, maximum = jnp.full(shape, max(low, -3e38)), jnp.full(shape, min(high, 3e38))
    reduced = tuple(a for a in range(real.ndim) if a not in keep)
    if not keep:  # two axes at most: XLA:CPU crashes on some reductions of rank 7 and 8
        real, reduced = real.reshape(-1), (0,)
    if low < 0:
        minimum = jnp.min(real, axis=reduced).reshape(shape)
    if high > 0:
        maximum = jnp.max(real, axis=reduced).reshape(shape)
    return minimum, maximum


def _checked_scale(value: Array | Accumulator, scale: jax.Array, how: Encoding) -> jax.Array:
    """With a given range nobody looks at the data: an argument that holds NaN or infinity must not become finite codes."""
    unchecked = isinstance(value, Array) and value.argument and how.range is not None and not how.saturate
    if not unchecked:
        return scale
    return jnp.where(jnp.isfinite(jnp.sum(to_real(value) * 0)), scale, jnp.nan)


def _apply(value: Array | Accumulator, scale: jax.Array, zero_point: jax.Array, how: Encoding) -> jax.Array:
    """round(value / scale) + zero_point in one elementwise pass, the value's own clips folded into the code's bounds."""
    zero = zero_point.astype(jnp.float32)
    spec = how.spec
    low, high = float(spec.qmin), float(spec.qmax)
    if how.simulate or how.rounding.keyed or how.rounding.joint:
        return _apply_plainly(value, scale, zero, how)
    if isinstance(value, Array):
        multiplier, offset, data = 1.0 / scale, zero, value.array.astype(jnp.float32)
        if how.saturate:
            data = jnp.where(jnp.isnan(data), 0, data)
        return epilogue.encode(data, multiplier, offset, low, high, spec.storage, _custom(how.rounding))
    multiplier, offset = value.scale / scale, value.offset / scale + zero
    lo = low if value.lo == -INF else jnp.maximum(jnp.round(value.lo / scale) + zero, low)
    hi = high if value.hi == INF else jnp.minimum(jnp.round(value.hi / scale) + zero, high)
    return epilogue.encode(value.values, multiplier, offset, lo, hi, spec.storage, _custom(how.rounding))


def _custom(rounding: Rounding) -> Any:
    return None if rounding.name == "half_even" else rounding


def _apply_plainly(value: Array | Accumulator, scale: jax.Array, zero: jax.Array, how: Encoding) -> jax.Array:
    """The same in plain float steps, for schemes that draw numbers and for the differentiable simulation."""
    real = decode(value) if isinstance(value, Accumulator) else value.array.astype(jnp.float32)
    steps = real / scale
    joint = how.rounding.joint
    steps = steps + zero if joint else steps
    rounded = how.rounding(steps, how.key)
    if how.simulate:
        rounded = straight_through(steps, rounded)
    codes = jnp.clip(rounded if joint else rounded + zero, how.spec.qmin, how.spec.qmax)
    return codes if how.simulate else codes.astype(how.spec.storage)
