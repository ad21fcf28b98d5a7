"""From real numbers to codes: where the range comes from, and the one pass that applies it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import parameter, stored
from jaxq8.errors import SpecError, TensorError
from jaxq8.evaluation import nan_through_ranges
from jaxq8.evaluation.measured_ranges import accumulated_range, per_channel, real_range
from jaxq8.evaluation.values import (
    INF,
    Accumulator,
    Array,
    Broadcast,
    Value,
    bounds,
    decode,
    is_outer,
    origins,
    stored_vectors,
    to_real,
)
from jaxq8.kernels import epilogue
from jaxq8.numerics.qtensor import QTensor, describe, kept_axes
from jaxq8.numerics.ranges import LearnedRange, Range
from jaxq8.numerics.rounding import Rounding, straight_through
from jaxq8.numerics.scales import affine, known_affine
from jaxq8.numerics.spec import Spec


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How one value becomes codes.

    Attributes:
      spec: The representation.
      fixed: A range given by calibration or by hand, or one that is trained; None to use known bounds or to measure.
      rounding: The scheme.
      key: PRNG key for schemes that need one.
      simulate: Keep codes in float32 with a straight-through derivative.
      saturate: Measure ranges over finite values only.
      exact: Codes are the real numbers themselves, with scale 1: the float arithmetic of the same evaluation. An array
        of one boolean chooses between that and the codes' numbers while running.
    """

    spec: Spec
    rounding: Rounding
    fixed: Range | LearnedRange | None = None
    key: Any = None
    simulate: bool = False
    saturate: bool = False
    exact: Any = False

    @property
    def range(self) -> Range | None:
        if isinstance(self.spec.range, Range):
            return self.spec.range
        return self.fixed if isinstance(self.fixed, Range) else None


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
        value = Array(value.dequantize(), origins=origins(value))
    if how.exact is not False:
        return _exact(value, how, keep)
    if isinstance(how.fixed, LearnedRange):
        return _learned(value, how, how.fixed)
    if isinstance(value, Broadcast):
        value = Array(to_real(value), origins=origins(value))
    dtype, known, numbers = np.dtype(value.dtype), _known_range(value, how), None
    how = dataclasses.replace(how, spec=_spec_for(how, [known[0]]))
    if INF in map(abs, known):
        value = _ready_to_measure(value, keep)
        scale, zero_point = affine(*_range_of(value, how, keep), how.spec, how.rounding)
        # Or XLA repeats in each loop that encodes or decodes all that leads from the range to the scale.
        scale, zero_point = stored((scale, zero_point))
    else:
        numbers = known_affine(*known, how.spec, how.rounding)
        scale, zero_point = _as_parameters(numbers, how, _kept_shape(value, keep))
    codes, vectors = _apply(value, scale, zero_point, how, numbers)
    # A range that was measured is no witness: XLA:CPU's extremes may pass over NaN.
    if not how.saturate:
        scale = nan_through_ranges.poisoned(scale, _witness(value, vectors, keep, numbers is None))
    return _coded(codes, scale, zero_point, how.spec, dtype)


def _coded(codes: Any, scale: Any, zero_point: Any, spec: Spec, dtype: Any) -> QTensor:
    return QTensor(codes, scale, zero_point, spec.bits, spec.is_symmetric, np.dtype(dtype), spec.is_signed)


def _as_parameters(numbers: tuple[np.ndarray, np.ndarray], how: Encoding, shape: tuple[int, ...]) -> Any:
    """Scale and zero point that are known while tracing, as arrays of which XLA does not know it: see `parameter`."""
    scale, zero_point = (jnp.broadcast_to(parameter(n).reshape((1,) * len(shape)), shape) for n in numbers)
    # Known to be 0 where codes are symmetric: what depends on it falls away.
    return scale, np.zeros(shape, np.int32) if how.spec.is_symmetric else zero_point


def _kept_shape(value: Value, keep: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if a in keep else 1 for a, n in enumerate(value.shape))


def _ready_to_measure(value: Array | Accumulator, keep: tuple[int, ...]) -> Array | Accumulator:
    """A value that is measured and then encoded has two readers, so it is computed once.

    XLA:CPU does not vectorise a reduction together with its producer. Accumulators with one scale a channel stay integers:
    `accumulated_range` reduces these.
    """
    if isinstance(value, Accumulator) and (keep or not per_channel(value)):
        return Array(stored(decode(value)), value.lo, value.hi, origins=origins(value))
    if isinstance(value, Array) and not value.stored:
        return dataclasses.replace(value, array=stored(value.array), stored=True)
    return value


def encode_together(values: Sequence[Value], how: Encoding, dimension: int) -> QTensor:
    """Several accumulators or QTensors (one scale each) as one QTensor, joined along an axis.

    QTensors keep the range of their codes; only accumulators are measured. Parts that have the common range already are
    copied as they are.
    """
    if how.exact is not False:
        return _exact(Array(jnp.concatenate([to_real(v) for v in values], dimension)), how, ())
    if isinstance(how.fixed, LearnedRange):
        return _learned(Array(jnp.concatenate([to_real(v) for v in values], dimension)), how, how.fixed)
    rank, numbers = (1,) * len(values[0].shape), None
    how = dataclasses.replace(how, spec=_spec_for(how, [_least_known(v, how) for v in values]))
    if how.range is None:
        low, high = (jnp.stack(ends) for ends in zip(*(_limits(v, how) for v in values), strict=True))
        scale, zero_point = affine(jnp.min(low), jnp.max(high), how.spec, how.rounding)
        scale, zero_point = scale.reshape(rank), zero_point.reshape(rank)
    else:
        numbers = known_affine(*how.range, how.spec, how.rounding)
        scale, zero_point = _as_parameters(numbers, how, rank)
    accumulators = [_as_accumulator(v) for v in values]
    parts = [_apply(acc, scale, zero_point, how, numbers) for acc in accumulators]
    joined = jnp.concatenate([codes for codes, _ in parts], axis=dimension)
    if not how.saturate:
        for acc, (_, vectors) in zip(accumulators, parts, strict=True):
            scale = nan_through_ranges.poisoned(scale, nan_through_ranges.accumulated(acc, vectors, ()))
    return _coded(joined, scale, zero_point, how.spec, values[0].dtype)


def _exact(value: Value, how: Encoding, keep: tuple[int, ...]) -> QTensor:
    """Real numbers in the place of codes; rounded to those that codes stand for where ``how.exact`` is false."""
    real = to_real(value).astype(jnp.float32)
    if how.exact is not True:
        rounded = encode(value, dataclasses.replace(how, exact=False, simulate=True), keep).dequantize()
        real = jnp.where(how.exact, real, rounded.astype(jnp.float32))
    one = jnp.ones((1,) * real.ndim, jnp.float32)
    return QTensor(real, one, jnp.zeros(one.shape, jnp.int32), how.spec.bits, True, np.dtype(value.dtype))


def _learned(value: Value, how: Encoding, ends: LearnedRange) -> QTensor:
    """Simulated codes of a range that is trained: the same codes as with the range given, and derivatives by its ends.

    Inside the range a value's derivative is 1, and that by the step is what rounding leaves (LSQ, Esser et al. 2020, equation
    3); beyond it, 1 by the end that clips (PACT, Choi et al. 2018; both ends: LSQ+, Bhalgat et al. 2020). A range that does not
    reach below zero stays so. Derivatives by the ends are divided by the root of elements times codes (LSQ, section 2.2).
    """
    if not how.simulate:
        raise SpecError(
            "ranges that are trained need Config(kernels='simulate'); after training pass learned_ranges(...)"
        )
    spec, real = how.spec, to_real(value).astype(jnp.float32)
    slower = 1 / np.sqrt(max(real.size, 1) * (spec.qmax - spec.qmin))
    low, high = (
        end * slower + jax.lax.stop_gradient(end * (1 - slower)) for end in (ends.minimum, ends.maximum)
    )
    low, high = (
        end.reshape((1,) * real.ndim)
        for end in (jnp.where(low < 0, low, 0.0), jnp.where(high > 0, high, 0.0))
    )
    scale, zero_point = affine(low, high, spec, how.rounding)
    zero = zero_point.astype(jnp.float32)
    steps = real / scale
    codes = straight_through(steps, how.rounding(steps, how.key)) + zero
    inside = (codes >= spec.qmin) & (codes <= spec.qmax)
    # The zero point moves with the minimum, in value by whole steps and in derivative by fractions; inside it cancels.
    moving = jax.lax.stop_gradient(low / scale) - low / scale
    beyond = jax.lax.stop_gradient(jnp.clip(codes, spec.qmin, spec.qmax)) - (
        0 if spec.is_symmetric else moving
    )
    codes = jnp.where(inside, codes, beyond)
    return _coded(codes, scale, zero_point, spec, value.dtype)


def _limits(value: Value, how: Encoding) -> tuple[jax.Array, jax.Array]:
    if isinstance(value, QTensor):
        return jnp.min(value.minimum), jnp.max(value.maximum)
    assert isinstance(value, Accumulator)
    minimum, maximum = _range_of(value, how, ())
    return minimum.reshape(()), maximum.reshape(())


def _least_known(value: Value, how: Encoding) -> float:
    if isinstance(value, QTensor) and how.range is None:
        return 0.0 if value.symmetric and not value.signed else -INF
    return _known_range(value, how)[0]


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


def _known_range(value: Value, how: Encoding) -> tuple[float, float]:
    """What is known of the range without a look at the data: all of it if given, else what construction tells."""
    if how.range is not None:
        return how.range.minimum, how.range.maximum
    return bounds(value)


def _spec_for(how: Encoding, lows: Sequence[float]) -> Spec:
    """Unsigned codes of values that are never negative have zero point 0, and that is known while tracing.

    The contraction that reads them then needs no correction for the zero point.
    """
    spec = how.spec
    nonnegative = all(low >= 0 for low in lows) and not spec.is_signed and spec.include_zero
    if not nonnegative or spec.is_symmetric or how.rounding.joint:
        return spec
    return dataclasses.replace(spec, symmetric=True, signed=False)


def _range_of(
    value: Array | Accumulator, how: Encoding, keep: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) in float32: given, known by construction, or measured in this run."""
    shape = _kept_shape(value, keep)
    low, high = _known_range(value, how)
    if low > -INF and high < INF:
        return jnp.full(shape, low, jnp.float32), jnp.full(shape, high, jnp.float32)
    if 0 in value.shape:
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    if isinstance(value, Accumulator) and not keep and per_channel(value):
        minimum, maximum = accumulated_range(value)
    else:
        minimum, maximum = real_range(value, keep, how.saturate)
    return _known_or(low, minimum, shape), _known_or(high, maximum, shape)


def _known_or(known: float, measured: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if abs(known) < INF:
        return jnp.full(shape, known, jnp.float32)
    return jax.lax.stop_gradient(measured).reshape(shape)


def _witness(
    value: Array | Accumulator, vectors: tuple[jax.Array, ...], keep: tuple[int, ...], measured: bool
) -> jax.Array | None:
    """NaN where the value is, whatever its range."""
    found = (
        nan_through_ranges.accumulated(value, vectors, keep)
        if isinstance(value, Accumulator)
        else nan_through_ranges.behind(value, keep, measured)
    )
    return None if found is None else jax.lax.stop_gradient(found)


def _apply(
    value: Array | Accumulator, scale: jax.Array, zero_point: jax.Array, how: Encoding, numbers: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """round(value / scale) + zero_point in one elementwise pass, the value's own clips folded into the code's bounds.

    Args:
      value: What is encoded.
      scale: Of the codes.
      zero_point: Likewise.
      how: The representation.
      numbers: Scale and zero point if they are known while tracing: bounds that are constants make faster loops.

    Returns:
      The codes, and the small arrays that they were computed with, if the value is an accumulator.
    """
    zero = zero_point.astype(jnp.float32)
    if how.rounding.keyed or how.rounding.joint:
        smalls = tuple(value.smalls.values()) if isinstance(value, Accumulator) else ()
        return _apply_plainly(value, scale, zero, how), smalls
    codes, vectors = _apply_at_once(value, scale, zero, how, numbers)
    if how.simulate:  # the same codes, in float, with the derivative of the plain steps
        codes = straight_through(_apply_plainly(value, scale, zero, how), codes.astype(jnp.float32))
    return codes, vectors


def _apply_at_once(
    value: Array | Accumulator, scale: jax.Array, zero: jax.Array, how: Encoding, numbers: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    spec = how.spec
    low, high = float(spec.qmin), float(spec.qmax)
    if isinstance(value, Array):
        multiplier, offset, data = 1.0 / scale, zero, value.array.astype(jnp.float32)
        if how.saturate:
            data = jnp.where(jnp.isnan(data), 0, data)
        return epilogue.encode(data, multiplier, offset, low, high, spec.storage, _custom(how.rounding)), ()
    multiplier, offset = _in_codes(value, scale, zero)
    lo, hi = (_code_of(bound, numbers or (scale, zero), spec) for bound in (value.lo, value.hi))
    codes = epilogue.encode(value.values, multiplier, offset, lo, hi, spec.storage, _custom(how.rounding))
    return codes, (multiplier, offset)


def _code_of(bound: float, numbers: tuple[Any, Any], spec: Spec) -> Any:
    """The code of a clip, at most as far out as codes reach."""
    if math.isinf(bound):
        return float(spec.qmin if bound < 0 else spec.qmax)
    scale, zero = numbers
    xp = np if isinstance(scale, np.ndarray) else jnp
    return xp.clip(xp.round(xp.float32(bound) / scale) + zero, spec.qmin, spec.qmax).astype(np.float32)


def _in_codes(acc: Accumulator, scale: jax.Array, zero: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(multiplier, offset) from the integers of an accumulator to codes.

    Vectors are stored, so that loops read them plainly. What varies along rows and channels is as large as the values, and
    is computed of two vectors in the loop instead.
    """
    if acc.rows is None and not is_outer(acc.scale, scale) and not is_outer(acc.offset, scale):
        vectors = stored_vectors({"multiplier": acc.scale / scale, "offset": acc.offset / scale + zero})
        return vectors["multiplier"], vectors["offset"]
    rows, inverse = 1 if acc.rows is None else acc.rows, 1 / scale
    first, second, offset, inverse = stored((acc.scale, rows * inverse, acc.offset, inverse))
    return first * second, offset * inverse + zero


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
    codes = rounded if joint else rounded + zero
    clipped = jnp.clip(codes, how.spec.qmin, how.spec.qmax)
    return _clip_derivative(codes, clipped) if how.simulate else clipped.astype(how.spec.storage)


def _clip_derivative(codes: jax.Array, clipped: jax.Array) -> jax.Array:
    """Derivative one inside the range and at its ends, where the extremes of a measured range lie; zero beyond.

    Nudging the range so that zero is a code may move an extreme out by up to a step.
    """
    inside = jnp.abs(codes - clipped) <= 1
    return jnp.where(inside, straight_through(codes, clipped), jax.lax.stop_gradient(clipped))
