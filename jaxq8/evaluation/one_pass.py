"""How a value becomes codes, and the one pass over the data that makes them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import stored
from jaxq8.evaluation.values import Accumulator, Array, decode, is_outer, stored_vectors
from jaxq8.kernels import epilogue
from jaxq8.numerics.ranges import LearnedRange, Range
from jaxq8.numerics.rounding import Rounding, straight_through
from jaxq8.numerics.spec import Spec


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How one value becomes codes.

    Attributes:
      spec: The representation.
      fixed: A range given by calibration or by hand, or one that is trained; None to use known bounds or to measure.
      rounding: The rounding scheme.
      key: PRNG key for schemes that need one.
      simulate: Keep codes in float32 with a straight-through derivative.
      saturate: Measure ranges over finite values only.
      exact: If True, codes are the real numbers themselves with scale 1, so that the same evaluation computes in float. An
        array of one boolean chooses while the program runs: true for the real numbers, false for the numbers that codes
        stand for.
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
        """The given range; None where the range is trained, known by construction, or measured."""
        if isinstance(self.spec.range, Range):
            return self.spec.range
        return self.fixed if isinstance(self.fixed, Range) else None


def make_codes(
    value: Array | Accumulator, scale: jax.Array, zero_point: jax.Array, how: Encoding, numbers: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """round(value / scale) + zero_point in one elementwise pass; the clips of an accumulator become bounds of the codes.

    Args:
      value: What is encoded.
      scale: The scale of the codes.
      zero_point: The zero point of the codes.
      how: The representation and the rounding.
      numbers: Scale and zero point if they are known while tracing: bounds that are constants make faster loops.

    Returns:
      The codes, and the small arrays that an accumulator was encoded with; of any other value ().
    """
    zero = zero_point.astype(jnp.float32)
    if how.rounding.keyed or how.rounding.joint:
        smalls = tuple(value.smalls.values()) if isinstance(value, Accumulator) else ()
        return _apply_plainly(value, scale, zero, how), smalls
    codes, vectors = _apply_at_once(value, scale, zero, how, numbers)
    if how.simulate:  # the same codes in float, with the derivative of the plain steps
        codes = straight_through(_apply_plainly(value, scale, zero, how), codes.astype(jnp.float32))
    return codes, vectors


def _apply_at_once(
    value: Array | Accumulator, scale: jax.Array, zero: jax.Array, how: Encoding, numbers: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The codes in one fused step, and the small arrays that an accumulator was encoded with."""
    spec = how.spec
    low, high = float(spec.qmin), float(spec.qmax)
    if isinstance(value, Array):
        multiplier, offset, data = 1.0 / scale, zero, _numbers_of(value, how)
        return epilogue.encode(data, multiplier, offset, low, high, spec.storage, _custom(how.rounding)), ()
    multiplier, offset = _in_codes(value, scale, zero)
    lo, hi = (_code_of(bound, numbers or (scale, zero), spec) for bound in (value.lo, value.hi))
    codes = epilogue.encode(value.values, multiplier, offset, lo, hi, spec.storage, _custom(how.rounding))
    return codes, (multiplier, offset)


def _numbers_of(value: Array, how: Encoding) -> jax.Array:
    """The numbers of an array in float32; NaN is 0 if what is not finite saturates."""
    numbers = value.array.astype(jnp.float32)
    return jnp.where(jnp.isnan(numbers), 0, numbers) if how.saturate else numbers


def _code_of(bound: float, numbers: tuple[Any, Any], spec: Spec) -> Any:
    """The code of a clip, itself clipped to the smallest and largest code."""
    if math.isinf(bound):
        return float(spec.qmin if bound < 0 else spec.qmax)
    scale, zero = numbers
    xp = np if isinstance(scale, np.ndarray) else jnp
    return xp.clip(xp.round(xp.float32(bound) / scale) + zero, spec.qmin, spec.qmax).astype(np.float32)


def _in_codes(acc: Accumulator, scale: jax.Array, zero: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(multiplier, offset) that turn the integers of an accumulator into codes.

    Vectors are stored, so that loops read them instead of computing them. A multiplier that varies along rows and channels is
    as large as the values; then two vectors are stored, and the loop multiplies them.
    """
    if acc.rows is None and not is_outer(acc.scale, scale) and not is_outer(acc.offset, scale):
        vectors = stored_vectors({"multiplier": acc.scale / scale, "offset": acc.offset / scale + zero})
        return vectors["multiplier"], vectors["offset"]
    rows, inverse = 1 if acc.rows is None else acc.rows, 1 / scale
    by_channel, by_row, offset, inverse = stored((acc.scale, rows * inverse, acc.offset, inverse))
    return by_channel * by_row, offset * inverse + zero


def _custom(rounding: Rounding) -> Any:
    """The rounding as `epilogue.encode` takes it: None for half-even."""
    return None if rounding.name == "half_even" else rounding


def _apply_plainly(value: Array | Accumulator, scale: jax.Array, zero: jax.Array, how: Encoding) -> jax.Array:
    """The codes in plain float steps, for schemes that draw numbers and for the differentiable simulation."""
    real = decode(value) if isinstance(value, Accumulator) else _numbers_of(value, how)
    steps = real / scale
    if how.rounding.joint:  # such a scheme rounds value and zero point together
        steps = steps + zero
    rounded = how.rounding(steps, how.key)
    if how.simulate:
        rounded = straight_through(steps, rounded)
    codes = rounded if how.rounding.joint else rounded + zero
    clipped = jnp.clip(codes, how.spec.qmin, how.spec.qmax)
    return _clip_derivative(codes, clipped) if how.simulate else clipped.astype(how.spec.storage)


def _clip_derivative(codes: jax.Array, clipped: jax.Array) -> jax.Array:
    """Clipped codes whose derivative is 1 inside the range and at its ends, and 0 beyond.

    The extremes of a measured range lie at its ends. Nudging the range so that zero is a code may move an extreme out by up
    to one step, so one step beyond the ends still counts as inside.
    """
    inside = jnp.abs(codes - clipped) <= 1
    return jnp.where(inside, straight_through(codes, clipped), jax.lax.stop_gradient(clipped))
