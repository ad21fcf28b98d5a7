"""Bias, batch norm, residuals, relu and clips: arithmetic that moves scale, offset and bounds instead of data."""

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


def _by(acc: Accumulator | None, other: Value) -> Accumulator | None:
    """What arithmetic with a vector has made of an accumulator: NaN in a vector of data may be in one channel alone."""
    shape = jnp.shape(other.small) if isinstance(other, Broadcast) else other.shape
    if acc is None or math.prod(shape) == 1 or not origins(other):
        return acc
    return dataclasses.replace(acc, everywhere=False)


def _free(acc: Accumulator) -> bool:
    return acc.lo == -INF and acc.hi == INF


def _shifted(acc: Accumulator, vector: Any, sign: float = 1.0) -> Accumulator | None:
    """acc + sign * vector; None where that varies along more axes than either."""
    if is_outer(acc.offset, vector):
        return None
    return dataclasses.replace(acc, offset=acc.offset + sign * vector)


def _scaled(acc: Accumulator, vector: Any) -> Accumulator | None:
    """acc * vector; clips must have been ruled out. None where that varies along more axes than either."""
    if is_outer(acc.scale, vector) or is_outer(acc.offset, vector):
        return None
    return dataclasses.replace(acc, scale=acc.scale * vector, offset=acc.offset * vector, positive=False)


def _times_constant(acc: Accumulator, c: float) -> Accumulator:
    """acc * c, clips included, for positive c."""
    scale, offset = acc.scale * jnp.float32(c), acc.offset * jnp.float32(c)
    return dataclasses.replace(acc, scale=scale, offset=offset, lo=acc.lo * c, hi=acc.hi * c)


def _negated(acc: Accumulator) -> Accumulator:
    """-acc: the sign moves into the scale; clips change places."""
    return dataclasses.replace(
        acc, scale=-acc.scale, offset=-acc.offset, lo=-acc.hi, hi=-acc.lo, positive=False
    )


def _small_pair(x: Value, y: Value) -> tuple[Any, Any, tuple[int, ...]] | None:
    """The small arrays behind two symbolic operands, so that arithmetic between them stays symbolic."""
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
    rank = len(pair[2])
    small = ctx.eqn.primitive.bind(
        *(jnp.reshape(a, (1,) * rank) if jnp.ndim(a) == 0 else a for a in pair[:2]), **ctx.eqn.params
    )
    return Broadcast(small, pair[2])


def _real(ctx: Context, *values: Value, lo: float = -INF, hi: float = INF) -> Array:
    result = float_fallback(ctx, values)[0]
    assert isinstance(result, Array)
    return dataclasses.replace(result, lo=lo, hi=hi)


@rule(primitives.add_p)
def add(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """A bias or the shift of a batch norm moves the offset; a residual is added in float by whoever reads it."""
    for acc, other in ((x, y), (y, x)):
        if isinstance(acc, Accumulator) and _free(acc):
            vector = aligned(other, acc.shape)
            shifted = _shifted(acc, vector) if vector is not None and _keeps_shape(ctx, acc) else None
            shifted = _by(shifted, other)
            if shifted is not None:
                return shifted
    return _symbolic(ctx, x, y) or _sum(ctx, x, y, 1.0)


@rule(primitives.sub_p)
def sub(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """The mean of a batch norm moves the offset."""
    for acc, other in ((x, y), (y, x)):
        if isinstance(acc, Accumulator) and _free(acc) and _keeps_shape(ctx, acc):
            vector = aligned(other, acc.shape)
            shifted = None
            if vector is not None:
                shifted = _shifted(acc, vector, -1.0) if acc is x else _shifted(_negated(acc), vector)
                shifted = _by(shifted, other)
            if shifted is not None:
                return shifted
    return _symbolic(ctx, x, y) or _sum(ctx, x, y, -1.0)


def _sum(ctx: Context, x: Value, y: Value, sign: float) -> Array:
    """x + y or x - y in float, with the bounds that follow."""
    (xl, xh), (yl, yh) = bounds(x), bounds(y)
    c = constant(y)
    if c is not None:
        yl = yh = c
    lo, hi = (xl + yl, xh + yh) if sign > 0 else (xl - yh, xh - yl)
    return _real(ctx, x, y, lo=lo, hi=hi)


@rule(primitives.mul_p)
def mul(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """The factor of a batch norm scales scale and offset; a positive constant also scales codes and clips."""
    for value, other in ((x, y), (y, x)):
        scaled = _times(ctx, value, other)
        if scaled is not None:
            return scaled
    return _symbolic(ctx, x, y) or _product(ctx, x, y)


@rule(primitives.div_p)
def div(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """Division by a vector or constant is multiplication of the scale by its reciprocal."""
    c = constant(y)
    if isinstance(x, QTensor) and c is not None and c > 0:
        return dataclasses.replace(x, scale=x.scale / c)
    if isinstance(x, Accumulator) and _keeps_shape(ctx, x):
        vector = aligned(y, x.shape)
        if c is not None and c > 0:
            return _times_constant(x, 1 / c)
        scaled = _by(_scaled(x, 1 / vector), y) if vector is not None and _free(x) else None
        if scaled is not None:
            return scaled
    lo, hi = bounds(x)
    if c is not None and c > 0:
        return _symbolic(ctx, x, y) or _real(ctx, x, y, lo=lo / c, hi=hi / c)
    return _symbolic(ctx, x, y) or _real(ctx, x, y)


def _times(ctx: Context, value: Value, other: Value) -> Value | None:
    """value * other without touching data, or None."""
    c = constant(other)
    if (
        isinstance(value, QTensor)
        and c is not None
        and c > 0
        and value.shape == ctx.eqn.outvars[0].aval.shape
    ):
        return dataclasses.replace(value, scale=value.scale * c)
    if not isinstance(value, Accumulator) or not _keeps_shape(ctx, value):
        return None
    if c is not None and c > 0:
        return _times_constant(value, c)
    vector = aligned(other, value.shape)
    return _by(_scaled(value, vector), other) if vector is not None and _free(value) else None


def _product(ctx: Context, x: Value, y: Value) -> Array:
    """x * y in float; non-negative if both are, and bounded by a positive constant factor."""
    (xl, xh), (yl, yh) = bounds(x), bounds(y)
    c = constant(y)
    if c is not None and c > 0:
        return _real(ctx, x, y, lo=xl * c, hi=xh * c)
    if xl >= 0 and yl >= 0:
        return _real(ctx, x, y, lo=0.0, hi=xh * yh if xh < INF and yh < INF else INF)
    return _real(ctx, x, y)


def _keeps_shape(ctx: Context, value: Value) -> bool:
    return tuple(value.shape) == tuple(ctx.eqn.outvars[0].aval.shape)


@rule(primitives.neg_p)
def neg(ctx: Context, x: Value, **params: Any) -> Value:
    """The sign moves into the scale; clips change places."""
    if isinstance(x, Accumulator):
        return _negated(x)
    lo, hi = bounds(x)
    return _real(ctx, x, lo=-hi, hi=-lo)


@rule(primitives.max_p)
def maximum(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """relu: the lower clip of an accumulator, or the maximum of codes with the code of the constant."""
    return _clipped(ctx, x, y, lower=True)


@rule(primitives.min_p)
def minimum(ctx: Context, x: Value, y: Value, **params: Any) -> Value:
    """relu6's upper half."""
    return _clipped(ctx, x, y, lower=False)


def _clipped(ctx: Context, x: Value, y: Value, lower: bool) -> Value:
    for value, other in ((x, y), (y, x)):
        c = constant(other)
        if c is None or not _keeps_shape(ctx, value) or not jnp.issubdtype(value.dtype, jnp.floating):
            continue
        if isinstance(value, Accumulator):
            # A clip of its own after one that a custom derivative covers: their derivatives differ.
            return NotImplemented if value.straight else _clip_accumulator(value, c, lower)
        if isinstance(value, QTensor) and c == 0:
            clip = jnp.maximum if lower else jnp.minimum
            zero = value.zero_point.astype(value.values.dtype)
            return dataclasses.replace(value, values=clip(value.values, zero))
        lo, hi = bounds(value)
        clipped = (max(lo, c), max(hi, c)) if lower else (min(lo, c), min(hi, c))
        return _symbolic(ctx, x, y) or _real(ctx, x, y, lo=clipped[0], hi=clipped[1])
    return _symbolic(ctx, x, y) or NotImplemented


def _clip_accumulator(acc: Accumulator, c: float, lower: bool) -> Accumulator:
    if lower:
        return dataclasses.replace(acc, lo=max(acc.lo, c), hi=max(acc.hi, c))
    return dataclasses.replace(acc, lo=min(acc.lo, c), hi=min(acc.hi, c))


@rule(primitives.clamp_p)
def clamp(ctx: Context, low: Value, x: Value, high: Value, **params: Any) -> Value:
    """A clip between constants: the bounds of an accumulator, or known bounds of a float array."""
    lo, hi = constant(low), constant(high)
    if lo is None or hi is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return NotImplemented
    if isinstance(x, Accumulator) and not x.straight:
        return _clip_accumulator(_clip_accumulator(x, lo, True), hi, False)
    return _real(ctx, low, x, high, lo=lo, hi=hi)


@rule(primitives.convert_element_type_p)
def convert_element_type(ctx: Context, x: Value, *, new_dtype: Any, **params: Any) -> Value:
    """Between float dtypes nothing is computed: codes and accumulators only stand for another dtype."""
    if isinstance(x, Broadcast):
        return Broadcast(ctx.eqn.primitive.bind(x.small, new_dtype=new_dtype, **params), x.shape)
    both_float = jnp.issubdtype(new_dtype, jnp.floating) and jnp.issubdtype(x.dtype, jnp.floating)
    if not both_float:
        return NotImplemented
    if isinstance(x, QTensor | Accumulator):
        return dataclasses.replace(x, dtype=jnp.dtype(new_dtype))
    result = float_fallback(ctx, (x,))[0]
    assert isinstance(result, Array)
    return dataclasses.replace(result, lo=x.lo, hi=x.hi, argument=x.argument, stored=x.stored)


def _symbolic_unary(ctx: Context, x: Value, **params: Any) -> Value:
    """rsqrt(variance + epsilon) and the like stay per-channel vectors."""
    if not isinstance(x, Broadcast):
        return NotImplemented
    return Broadcast(ctx.eqn.primitive.bind(x.small, **params), x.shape)


rule(primitives.rsqrt_p, primitives.sqrt_p, primitives.integer_pow_p)(_symbolic_unary)
