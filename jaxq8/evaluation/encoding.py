"""From real numbers to codes: where the range comes from, and which scale and zero point follow from the range."""

from __future__ import annotations

import dataclasses
import functools
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
from jaxq8.evaluation.one_pass import Encoding, make_codes
from jaxq8.evaluation.values import (
    INF,
    Accumulator,
    Array,
    Broadcast,
    Value,
    bounds,
    decode,
    origins,
    to_real,
)
from jaxq8.numerics.qtensor import QTensor, describe, kept_axes
from jaxq8.numerics.ranges import LearnedRange
from jaxq8.numerics.rounding import straight_through
from jaxq8.numerics.scales import affine, known_affine
from jaxq8.numerics.spec import Spec
from jaxq8.operations import is_collecting


def encode(value: Value, how: Encoding, keep: tuple[int, ...] | None = None) -> QTensor:
    """Codes of a value.

    Args:
      value: Any value that stands for floats.
      how: Representation, range and rounding.
      keep: Axes that keep scales of their own; default from the spec's granularity.

    Returns:
      A QTensor. A value that is already a QTensor in a suitable representation is returned unchanged.

    Raises:
      TensorError: The value does not stand for floating-point numbers.
    """
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TensorError(f"cannot encode {describe(value)}: only floating-point numbers have codes")
    if keep is None:
        keep = kept_axes(len(value.shape), how.spec, None)
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
    return _encoded(value, how, keep)


def _encoded(value: Array | Accumulator, how: Encoding, keep: tuple[int, ...]) -> QTensor:
    """Codes by a range that is given, known by construction, or measured."""
    dtype = np.dtype(value.dtype)
    low, high = _known_range(value, how)
    how = dataclasses.replace(how, spec=_spec_for(how, [low]))
    measured = math.isinf(low) or math.isinf(high)
    numbers = None
    if measured:
        value = _ready_to_measure(value, keep)
        scale, zero_point = affine(*_range_of(value, how, keep), how.spec, how.rounding)
        # Stored, because XLA would otherwise compute the scale from the range again in each loop that encodes or decodes.
        scale, zero_point = stored((scale, zero_point))
    else:
        numbers = known_affine(low, high, how.spec, how.rounding)
        scale, zero_point = _as_parameters(numbers, how, _kept_shape(value, keep))
    codes, vectors = make_codes(value, scale, zero_point, how, numbers)
    # A measured range does not tell whether the data hold NaN: the minimum and maximum of XLA:CPU may pass over NaN.
    if not how.saturate:
        scale = nan_through_ranges.poisoned(scale, _witness(value, vectors, keep, measured))
    return _coded(codes, scale, zero_point, how.spec, dtype)


def _coded(codes: Any, scale: Any, zero_point: Any, spec: Spec, dtype: Any) -> QTensor:
    return QTensor(codes, scale, zero_point, spec.bits, spec.is_symmetric, np.dtype(dtype), spec.is_signed)


def _as_parameters(numbers: tuple[np.ndarray, np.ndarray], how: Encoding, shape: tuple[int, ...]) -> Any:
    """Scale and zero point that are known while tracing, as arrays that XLA does not take for constants: see `parameter`."""
    rank = (1,) * len(shape)
    if is_collecting():  # a region has its numbers in its own memory
        arrays: list[Any] = [np.broadcast_to(np.reshape(n, rank), shape) for n in numbers]
    else:
        arrays = [jnp.broadcast_to(parameter(n).reshape(rank), shape) for n in numbers]
    scale, zero_point = arrays
    if how.spec.is_symmetric:
        # The zero point is the constant 0, so that XLA removes what is computed with it.
        return scale, np.zeros(shape, np.int32)
    return scale, zero_point


def _kept_shape(value: Value, keep: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of scales that are kept along some axes and shared along all others."""
    return tuple(n if a in keep else 1 for a, n in enumerate(value.shape))


def _ready_to_measure(value: Array | Accumulator, keep: tuple[int, ...]) -> Array | Accumulator:
    """A value that is measured and then encoded is read twice, so it is computed once and stored in memory.

    XLA:CPU does not vectorise a reduction together with its producer. Accumulators with one scale per channel stay integers,
    because `accumulated_range` reduces the integers.
    """
    if isinstance(value, Accumulator) and (keep or not per_channel(value)):
        return Array(stored(decode(value)), value.lo, value.hi, origins=origins(value))
    if isinstance(value, Array) and not value.stored:
        return dataclasses.replace(value, array=stored(value.array), stored=True)
    return value


def encode_together(values: Sequence[Value], how: Encoding, dimension: int) -> QTensor:
    """Several accumulators or QTensors (one scale each) as one QTensor with one scale, joined along an axis.

    The range of a QTensor is that of its codes; only accumulators are measured.
    """
    if how.exact is not False:
        return _exact(Array(jnp.concatenate([to_real(v) for v in values], dimension)), how, ())
    if isinstance(how.fixed, LearnedRange):
        return _learned(Array(jnp.concatenate([to_real(v) for v in values], dimension)), how, how.fixed)
    shape, numbers = (1,) * len(values[0].shape), None
    how = dataclasses.replace(how, spec=_spec_for(how, [_least_known(v, how) for v in values]))
    if how.range is None:
        limits = [_limits(v, how) for v in values]
        lows, highs = ([limit[end] for limit in limits] for end in (0, 1))
        if is_collecting():  # a region has steps for extremes of two numbers
            low, high = functools.reduce(jnp.minimum, lows), functools.reduce(jnp.maximum, highs)
        else:
            low, high = jnp.min(jnp.stack(lows)), jnp.max(jnp.stack(highs))
        scale, zero_point = affine(low, high, how.spec, how.rounding)
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    else:
        numbers = known_affine(*how.range, how.spec, how.rounding)
        scale, zero_point = _as_parameters(numbers, how, shape)
    accumulators = [_as_accumulator(v) for v in values]
    parts = [make_codes(acc, scale, zero_point, how, numbers) for acc in accumulators]
    joined = jnp.concatenate([codes for codes, _ in parts], axis=dimension)
    if not how.saturate:
        for acc, (_, vectors) in zip(accumulators, parts, strict=True):
            scale = nan_through_ranges.poisoned(scale, nan_through_ranges.accumulated(acc, vectors, ()))
    return _coded(joined, scale, zero_point, how.spec, values[0].dtype)


def _exact(value: Value, how: Encoding, keep: tuple[int, ...]) -> QTensor:
    """Real numbers in the place of codes; where ``how.exact`` is false, the numbers that codes stand for."""
    real = to_real(value).astype(jnp.float32)
    if how.exact is not True:
        rounded = encode(value, dataclasses.replace(how, exact=False, simulate=True), keep).dequantize()
        real = jnp.where(how.exact, real, rounded.astype(jnp.float32))
    one = jnp.ones((1,) * real.ndim, jnp.float32)
    return QTensor(real, one, jnp.zeros(one.shape, jnp.int32), how.spec.bits, True, np.dtype(value.dtype))


def _learned(value: Value, how: Encoding, ends: LearnedRange) -> QTensor:
    """Simulated codes of a range that is trained: the codes of the same range if it were given, with derivatives by its ends.

    Inside the range, the derivative by the value is 1, and the derivative by the step is the rounding error (LSQ, Esser et al.
    2020, equation 3). Beyond the range, the derivative by the end that clips is 1 (PACT, Choi et al. 2018; for both ends LSQ+,
    Bhalgat et al. 2020). A range that does not reach below zero stays so. Derivatives by the ends are divided by the square
    root of the number of elements times the largest distance of two codes (LSQ, section 2.2).
    """
    if not how.simulate:
        raise SpecError(
            "ranges that are trained need Config(kernels='simulate'); after training pass learned_ranges(...)"
        )
    spec, real = how.spec, to_real(value).astype(jnp.float32)
    slower = 1 / np.sqrt(max(real.size, 1) * (spec.qmax - spec.qmin))
    low, high = (_with_slower_derivative(end, slower) for end in (ends.minimum, ends.maximum))
    low, high = jnp.where(low < 0, low, 0.0), jnp.where(high > 0, high, 0.0)
    low, high = low.reshape((1,) * real.ndim), high.reshape((1,) * real.ndim)
    scale, zero_point = affine(low, high, spec, how.rounding)
    zero = zero_point.astype(jnp.float32)
    steps = real / scale
    codes = straight_through(steps, how.rounding(steps, how.key)) + zero
    inside = (codes >= spec.qmin) & (codes <= spec.qmax)
    # The zero point depends on the minimum: its value moves in whole steps, its derivative is that of -low / scale. Inside the
    # range, encoding adds the zero point and decoding subtracts it, so its derivative cancels.
    moving = jax.lax.stop_gradient(low / scale) - low / scale
    clipped = jax.lax.stop_gradient(jnp.clip(codes, spec.qmin, spec.qmax))
    beyond = clipped - (0 if spec.is_symmetric else moving)
    codes = jnp.where(inside, codes, beyond)
    return _coded(codes, scale, zero_point, spec, value.dtype)


def _with_slower_derivative(x: Any, factor: float) -> Any:
    """`x` itself, with its derivative multiplied by `factor`."""
    return x * factor + jax.lax.stop_gradient(x * (1 - factor))


def _limits(value: Value, how: Encoding) -> tuple[jax.Array, jax.Array]:
    """(minimum, maximum) of codes or of an accumulator, as scalars."""
    if isinstance(value, QTensor):
        return jnp.min(value.minimum), jnp.max(value.maximum)
    assert isinstance(value, Accumulator)
    minimum, maximum = _range_of(value, how, ())
    return minimum.reshape(()), maximum.reshape(())


def _least_known(value: Value, how: Encoding) -> float:
    """The lower end of the range as far as it is known while tracing."""
    if isinstance(value, QTensor) and how.range is None:
        unsigned_from_zero = value.symmetric and not value.signed
        return 0.0 if unsigned_from_zero else -INF
    return _known_range(value, how)[0]


def _as_accumulator(value: Value) -> Accumulator:
    """Codes as an accumulator, so that one formula encodes both."""
    if isinstance(value, Accumulator):
        return value
    assert isinstance(value, QTensor)
    offset = -value.scale * value.zero_point.astype(jnp.float32)
    return Accumulator(value.values, value.scale, offset, dtype=value.dtype)


def _fits(q: QTensor, how: Encoding, keep: tuple[int, ...]) -> bool:
    """Whether codes can be used as they are: no more bits than asked for, and no scales along axes that shall share one."""
    shared = all(s == 1 for axis, s in enumerate(q.scale.shape) if axis not in keep)
    return shared and q.bits <= how.spec.bits and (q.symmetric or not how.spec.is_symmetric)


def _known_range(value: Value, how: Encoding) -> tuple[float, float]:
    """The range as far as it is known while tracing: the given one, else the bounds by construction (infinite if unknown)."""
    if how.range is not None:
        return how.range.minimum, how.range.maximum
    return bounds(value)


def _spec_for(how: Encoding, lows: Sequence[float]) -> Spec:
    """The representation of values whose known lower bounds are `lows`.

    Unsigned codes of values that are never negative have zero point 0, which is known while tracing. The contraction that
    reads them then needs no correction for the zero point.
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
    """One end of a range: the known number if it is finite, else the measured array."""
    if abs(known) < INF:
        return jnp.full(shape, known, jnp.float32)
    return jax.lax.stop_gradient(measured).reshape(shape)


def _witness(
    value: Array | Accumulator, vectors: tuple[jax.Array, ...], keep: tuple[int, ...], measured: bool
) -> jax.Array | None:
    """An array that is NaN where the value holds NaN or infinity; None if the value cannot hold them."""
    if isinstance(value, Accumulator):
        found = nan_through_ranges.accumulated(value, vectors, keep)
    else:
        found = nan_through_ranges.behind(value, keep, measured)
    return None if found is None else jax.lax.stop_gradient(found)
