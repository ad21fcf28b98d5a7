"""Bias, batch norm, residuals, relu and clips: arithmetic that changes scale, offset and bounds instead of data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jaxq8._compat import primitives
from jaxq8.evaluation.interpreter import Context, float_fallback, rule
from jaxq8.evaluation.values import (
    INF,
    Accumulator,
    Array,
    Broadcast,
    Value,
    aligned,
    bounds,
    constant,
    is_outer,
    origins,
)
from jaxq8.numerics.qtensor import QTensor


def _after_vector(acc: Accumulator | None, other: Value) -> Accumulator | None:
    """An accumulator after arithmetic with a vector `other`: NaN in a vector of data may be in one channel alone."""
    shape = jnp.shape(other.small) if isinstance(other, Broadcast) else other.shape
    if acc is None or math.prod(shape) == 1 or not origins(other):
        return acc
    return dataclasses.replace(acc, everywhere=False)


def _is_unclipped(acc: Accumulator) -> bool:
    return acc.lo == -INF and acc.hi == INF


def _shifted(acc: Accumulator, vector: Any, sign: float = 1.0) -> Accumulator | None:
    """acc + sign * vector; None if offset and vector vary along different axes."""
    if is_outer(acc.offset, vector):
        return None
    return dataclasses.replace(acc, offset=acc.offset + sign * vector)


def _scaled(acc: Accumulator, vector: Any) -> Accumulator | None:
    """acc * vector for an accumulator without clips; None if scale or offset and vector vary along different axes."""
    if is_outer(acc.scale, vector) or is_outer(acc.offset, vector):
        return None
    return dataclasses.replace(acc, scale=acc.scale * vector, offset=acc.offset * vector, positive=False)


def _times_constant(acc: Accumulator, c: float) -> Accumulator:
    """acc * c for positive c, its clips included."""
    scale, offset = acc.scale * jnp.float32(c), acc.offset * jnp.float32(c)
    return dataclasses.replace(acc, scale=scale, offset=offset, lo=acc.lo * c, hi=acc.hi * c)


def _negated(acc: Accumulator) -> Accumulator:
    """-acc: scale and offset change sign, and the clips change places."""
    return dataclasses.replace(
        acc, scale=-acc.scale, offset=-acc.offset, lo=-acc.hi, hi=-acc.lo, positive=False
    )


def _small_pair(x: Value, y: Value) -> tuple[Any, Any, tuple[int, ...]] | None:
    """The small arrays of two operands and the shape that they stand for, if arithmetic between them stays symbolic."""
    shape = next((v.shape for v in (x, y) if isinstance(v, Broadcast)), None)
    if shape is None:
        return None
    smalls = []
    for value in (x, y):
        if isinstance(value, Broadcast) and value.shape == shape:
            smalls.append(value.small)
        elif isinstance(value, Array) and value.shape == ():
            smalls.append(value.array)
        else:
            return None
    return smalls[0], smalls[1], shape


def _symbolic(ctx: Context, x: Value, y: Value) -> Broadcast | None:
    """Applies the equation to the small arrays of two broadcasts (or a broadcast and a scalar)."""
    pair = _small_pair(x, y)
    if pair is None or tuple(ctx.eqn.outvars[0].aval.shape) != pair[2]:
        return None
    x_small, y_small, shape = pair
    operands = [jnp.reshape(a, (1,) * len(shape)) if jnp.ndim(a) == 0 else a for a in (x_small, y_small)]
    return Broadcast(ctx.eqn.primitive.bind(*operands, **ctx.eqn.params), shape)


def _real(ctx: Context, *values: Value, lo: float = -INF, hi: float = INF) -> Array:
    result = float_fallback(ctx, values)[0]
    assert isinstance(result, Array)
    return dataclasses.replace(result, lo=lo, hi=hi)


@rule(primitives.add_p)
def add(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """A bias, or the shift of a batch norm, changes the offset; a residual is added in float in the loop of its reader."""
    for acc, other in ((x, y), (y, x)):
        if isinstance(acc, Accumulator) and _is_unclipped(acc) and _keeps_shape(ctx, acc):
            vector = aligned(other, acc.shape)
            shifted = None if vector is None else _after_vector(_shifted(acc, vector), other)
            if shifted is not None:
                return shifted
    return _symbolic(ctx, x, y) or _sum(ctx, x, y, 1.0)


@rule(primitives.sub_p)
def sub(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """The mean of a batch norm changes the offset."""
    for acc, other in ((x, y), (y, x)):
        if isinstance(acc, Accumulator) and _is_unclipped(acc) and _keeps_shape(ctx, acc):
            vector = aligned(other, acc.shape)
            if vector is None:
                continue
            shifted = _shifted(acc, vector, -1.0) if acc is x else _shifted(_negated(acc), vector)
            shifted = _after_vector(shifted, other)
            if shifted is not None:
                return shifted
    return _symbolic(ctx, x, y) or _sum(ctx, x, y, -1.0)


def _sum(ctx: Context, x: Value, y: Value, sign: float) -> Array:
    """x + y or x - y in float, with the bounds that follow from those of x and y."""
    (x_lo, x_hi), (y_lo, y_hi) = bounds(x), bounds(y)
    c = constant(y)
    if c is not None:
        y_lo = y_hi = c
    if sign > 0:
        return _real(ctx, x, y, lo=x_lo + y_lo, hi=x_hi + y_hi)
    return _real(ctx, x, y, lo=x_lo - y_hi, hi=x_hi - y_lo)


@rule(primitives.mul_p)
def mul(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """The factor of a batch norm multiplies scale and offset; a positive constant also multiplies scales of codes and clips."""
    for value, other in ((x, y), (y, x)):
        scaled = _times(ctx, value, other)
        if scaled is not None:
            return scaled
    return _symbolic(ctx, x, y) or _product(ctx, x, y)


@rule(primitives.div_p)
def div(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """Division by a vector or a positive constant multiplies the scale by the reciprocal."""
    c = _positive_constant(y)
    if isinstance(x, QTensor) and c is not None:
        return dataclasses.replace(x, scale=x.scale / c)
    if isinstance(x, Accumulator) and _keeps_shape(ctx, x):
        if c is not None:
            return _times_constant(x, 1 / c)
        vector = aligned(y, x.shape)
        if vector is not None and _is_unclipped(x):
            scaled = _after_vector(_scaled(x, 1 / vector), y)
            if scaled is not None:
                return scaled
    symbolic = _symbolic(ctx, x, y)
    if symbolic is not None:
        return symbolic
    lo, hi = bounds(x)
    return _real(ctx, x, y) if c is None else _real(ctx, x, y, lo=lo / c, hi=hi / c)


def _times(ctx: Context, value: Value, other: Value) -> Value | None:
    """value * other without a pass over the data; None if that is impossible."""
    if not isinstance(value, QTensor | Accumulator) or not _keeps_shape(ctx, value):
        return None
    c = _positive_constant(other)
    if isinstance(value, QTensor):
        return None if c is None else dataclasses.replace(value, scale=value.scale * c)
    if c is not None:
        return _times_constant(value, c)
    vector = aligned(other, value.shape)
    if vector is None or not _is_unclipped(value):
        return None
    return _after_vector(_scaled(value, vector), other)


def _product(ctx: Context, x: Value, y: Value) -> Array:
    """x * y in float, with bounds if y is a positive constant or both factors are non-negative."""
    (x_lo, x_hi), (y_lo, y_hi) = bounds(x), bounds(y)
    c = _positive_constant(y)
    if c is not None:
        return _real(ctx, x, y, lo=x_lo * c, hi=x_hi * c)
    if x_lo >= 0 and y_lo >= 0:
        both_bounded = x_hi < INF and y_hi < INF
        return _real(ctx, x, y, lo=0.0, hi=x_hi * y_hi if both_bounded else INF)
    return _real(ctx, x, y)


def _positive_constant(value: Value) -> float | None:
    """The positive number that all elements of a value are equal to, if it is known while tracing."""
    c = constant(value)
    return c if c is not None and c > 0 else None


def _keeps_shape(ctx: Context, value: Value) -> bool:
    return tuple(value.shape) == tuple(ctx.eqn.outvars[0].aval.shape)


@rule(primitives.neg_p)
def neg(ctx: Context, x: Value, **params: Any) -> Value:
    """Scale and offset change sign; clips and bounds change places."""
    if isinstance(x, Accumulator):
        return _negated(x)
    lo, hi = bounds(x)
    return _real(ctx, x, lo=-hi, hi=-lo)


@rule(primitives.max_p)
def maximum(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """relu: the lower clip of an accumulator, or the maximum of codes and the code of zero."""
    return _clipped(ctx, x, y, lower=True)


@rule(primitives.min_p)
def minimum(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """The upper clip of relu6."""
    return _clipped(ctx, x, y, lower=False)


def _clipped(ctx: Context, x: Value, y: Value, lower: bool) -> Value:
    """The maximum (if `lower`) or minimum of a value and a constant."""
    for value, other in ((x, y), (y, x)):
        c = constant(other)
        if c is None or not _keeps_shape(ctx, value) or not jnp.issubdtype(value.dtype, jnp.floating):
            continue
        if isinstance(value, Accumulator):
            # If a custom derivative covers the clips so far, a further clip is not covered: it needs the usual derivative.
            return NotImplemented if value.straight else _clip_accumulator(value, c, lower)
        if isinstance(value, QTensor) and c == 0:
            clip = jnp.maximum if lower else jnp.minimum
            zero = value.zero_point.astype(value.values.dtype)
            return dataclasses.replace(value, values=clip(value.values, zero))
        stricter = max if lower else min
        lo, hi = (stricter(bound, c) for bound in bounds(value))
        return _symbolic(ctx, x, y) or _real(ctx, x, y, lo=lo, hi=hi)
    return _symbolic(ctx, x, y) or NotImplemented


def _clip_accumulator(acc: Accumulator, c: float, lower: bool) -> Accumulator:
    if lower:
        return dataclasses.replace(acc, lo=max(acc.lo, c), hi=max(acc.hi, c))
    return dataclasses.replace(acc, lo=min(acc.lo, c), hi=min(acc.hi, c))


@rule(primitives.clamp_p)
def clamp(ctx: Context, low: Value, x: Value, high: Value, **params: Any) -> Value:
    """A clip between constants: the clips of an accumulator, or the known bounds of a float array."""
    lo, hi = constant(low), constant(high)
    if lo is None or hi is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return NotImplemented
    if isinstance(x, Accumulator) and not x.straight:
        return _clip_accumulator(_clip_accumulator(x, lo, True), hi, False)
    return _real(ctx, low, x, high, lo=lo, hi=hi)


@rule(primitives.convert_element_type_p)
def convert_element_type(ctx: Context, x: Value, *, new_dtype: Any, **params: Any) -> Value:
    """Codes and accumulators that are converted to another float dtype only note the dtype that they stand for."""
    if isinstance(x, Broadcast):
        return Broadcast(ctx.eqn.primitive.bind(x.small, new_dtype=new_dtype, **params), x.shape)
    if not (jnp.issubdtype(new_dtype, jnp.floating) and jnp.issubdtype(x.dtype, jnp.floating)):
        return NotImplemented
    if isinstance(x, QTensor | Accumulator):
        return dataclasses.replace(x, dtype=jnp.dtype(new_dtype))
    result = float_fallback(ctx, (x,))[0]
    assert isinstance(result, Array)
    return dataclasses.replace(result, lo=x.lo, hi=x.hi, argument=x.argument, stored=x.stored)


def _symbolic_unary(ctx: Context, x: Value, **params: Any) -> Value:
    """rsqrt(variance + epsilon) and similar functions of a per-channel vector stay per-channel vectors."""
    if not isinstance(x, Broadcast):
        return NotImplemented
    return Broadcast(ctx.eqn.primitive.bind(x.small, **params), x.shape)


rule(primitives.rsqrt_p, primitives.sqrt_p, primitives.integer_pow_p)(_symbolic_unary)
