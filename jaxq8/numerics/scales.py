"""Computes the scale and the zero point of codes from a range; `affine` is the only place where this is done."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.numerics.rounding import Rounding
from jaxq8.numerics.spec import Spec


def affine(
    minimum: jax.Array, maximum: jax.Array, spec: Spec, rounding: Rounding
) -> tuple[jax.Array, jax.Array]:
    """The scale and zero point that represent a range.

    The range is widened to contain zero (unless ``spec.include_zero`` is False), and the minimum is rounded to the grid, so
    that zero is exactly a code: ``zero_point = qmin - round(minimum / scale)`` (gemmlowp, Jacob et al. 2018; TensorFlow's
    MIN_FIRST). A symmetric range has zero point 0 and ``scale = max(|minimum|, |maximum|) / qmax`` (TensorFlow's SCALED).
    A range without width gets scale 1, so that the scale is always positive and zeros stay exact. A range that is not finite
    gives the scale NaN: whatever is decoded with it is NaN and cannot be mistaken for a result.

    Args:
      minimum: Smallest real values, a float array of any shape (for example one for each channel).
      maximum: Largest real values, an array of the same shape.
      spec: Bits, sign and symmetry.
      rounding: How the minimum is rounded.

    Returns:
      (scale, zero_point), both of the shape of `minimum`; zero_point is int32, or float for a `joint` rounding.
    """
    # Traced once for all sites of one kind, which saves half of the cost of tracing a site.
    if isinstance(minimum, jax.core.Tracer):
        return _traced_once(minimum, maximum, spec, rounding)
    return _affine(minimum, maximum, spec, rounding)


def _affine(
    minimum: jax.Array, maximum: jax.Array, spec: Spec, rounding: Rounding
) -> tuple[jax.Array, jax.Array]:
    minimum, maximum = _widened(minimum, maximum, spec)
    finite, wide, half, steps = _half(minimum, maximum, spec)
    scale = _known_width(finite, wide, half / steps)
    if spec.is_symmetric:
        return scale, lax.full(scale.shape, 0, jnp.int32)
    per_unit = _known_width(finite, wide, steps / half) if rounding.by_range else None
    offset = in_steps(minimum, scale, per_unit)
    if rounding.joint:
        return scale, spec.qmin - offset
    zero_point = spec.qmin - half_step_free(rounding, offset)
    if spec.include_zero:
        zero_point = lax.clamp(
            jnp.asarray(spec.qmin, scale.dtype), zero_point, jnp.asarray(spec.qmax, scale.dtype)
        )
    return scale, lax.select(jnp.isnan(scale), lax.full_like(scale, 0), zero_point).astype(jnp.int32)


_traced_once = jax.jit(_affine, static_argnums=(2, 3))


@functools.lru_cache(maxsize=4096)
def known_affine(low: float, high: float, spec: Spec, rounding: Rounding) -> tuple[np.ndarray, np.ndarray]:
    """`affine` of a range that is known while tracing: two NumPy numbers, which cost the program no operation."""
    with jax.ensure_compile_time_eval():
        scale, zero_point = _traced_once(jnp.float32(low), jnp.float32(high), spec, rounding)
        return np.asarray(scale), np.asarray(zero_point)


def step(minimum: jax.Array, maximum: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """The size of one step of a range, and the number of steps in one unit, both computed from the range itself.

    `Rounding.by_range` says why. Both are 1 for a range without width, and NaN for a range that is not finite.
    """
    finite, wide, half, steps = _half(*_widened(minimum, maximum, spec), spec)
    return _known_width(finite, wide, half / steps), _known_width(finite, wide, steps / half)


def _half(
    minimum: jax.Array, maximum: jax.Array, spec: Spec
) -> tuple[jax.Array, jax.Array, jax.Array, float]:
    """(whether both ends are finite, whether the range has a width, half of its width, half of its number of steps)."""
    finite = lax.is_finite(minimum) & lax.is_finite(maximum)
    if spec.is_symmetric:
        half, steps = lax.max(lax.abs(minimum), lax.abs(maximum)), float(spec.qmax)
    else:  # each end is halved by itself: the difference of two large ends can overflow although the step does not
        half, steps = maximum * 0.5 - minimum * 0.5, (spec.qmax - spec.qmin) * 0.5
    # For a step below this limit the reciprocal would overflow.
    return finite, half / steps > jnp.finfo(half.dtype).tiny * 4, half, steps


def _known_width(finite: jax.Array, wide: jax.Array, number: jax.Array) -> jax.Array:
    """`number` for a range with a width, 1 for a range without, and NaN for a range that is not finite."""
    number = lax.select(wide, number, lax.full_like(number, 1))
    return lax.select(finite, number, lax.full_like(number, math.nan))


def in_steps(x: jax.Array, scale: jax.Array, per_unit: jax.Array | None = None) -> jax.Array:
    """`x` in units of one step, not rounded yet: ``x / scale`` to the last bit, or ``x * per_unit`` where that is given."""
    # To divide by a broadcast number XLA multiplies with its reciprocal, which misses ties and underflows for huge scales. The
    # result of a `where` is not such a number, so by it XLA really divides.
    quotient = x / jnp.where(jnp.isnan(x), jnp.nan, scale)
    return quotient if per_unit is None else jnp.where(scale > 2.0**100, quotient, x * per_unit)


def _widened(minimum: jax.Array, maximum: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array]:
    if not spec.include_zero:
        return minimum, maximum
    return jnp.minimum(minimum, 0), jnp.maximum(maximum, 0)


def half_step_free(rounding: Rounding, offset: jax.Array) -> jax.Array:
    """Rounds the minimum by the scheme, or to nearest if the scheme draws random numbers, so that ranges stay deterministic."""
    return jnp.round(offset) if rounding.keyed else rounding(offset)
