"""Pooling and reductions of codes: a maximum of codes is a code, a sum of codes is an accumulator."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jaxq8._compat import primitives
from jaxq8.evaluation.equations import shapes_of
from jaxq8.evaluation.interpreter import Context, float_fallback, rule
from jaxq8.evaluation.values import INF, Accumulator, Array, Value, bounds
from jaxq8.kernels import pooling
from jaxq8.numerics.qtensor import QTensor


def _one_scale(value: Value) -> bool:
    return isinstance(value, QTensor) and math.prod(value.scale.shape) == 1


def _codes(ctx: Context, x: Value) -> QTensor | None:
    """Codes of integer data with one scale; None for float arrays and for QTensors with several scales."""
    if isinstance(x, Accumulator) and ctx.config.mode in ("eightbit", "simulate"):
        return ctx.eight_bit(x, dataclasses.replace(ctx.config.activations, granularity="tensor"))
    return x if isinstance(x, QTensor) and _one_scale(x) else None


@rule(primitives.reduce_window_max_p)
def max_pool(ctx: Context, x: Value, **params: Any) -> Value:
    """The maximum of codes is the code of the maximum; borders hold the smallest code."""
    codes = _codes(ctx, x)
    if codes is None:
        result = float_fallback(ctx, (x,))[0]
        lo, hi = bounds(x)
        return dataclasses.replace(result, lo=lo, hi=hi)  # type: ignore[arg-type]
    ctx.record(
        True, shapes=shapes_of(ctx.eqn), kernel="maximum of shifted codes", activations=f"{codes.bits} bits"
    )
    return dataclasses.replace(
        codes, values=pooling.max_pool(codes.values, lowest=codes.spec.qmin, **_window(params))
    )


@rule(primitives.reduce_window_sum_p)
def sum_pool(ctx: Context, x: Value, **params: Any) -> Value:
    """The int32 sum of codes becomes an accumulator; borders hold the zero point, so they add nothing to the sum."""
    codes = x if _one_scale(x) else None
    if not isinstance(codes, QTensor) or params.get("base_dilation") not in (None, (1,) * len(x.shape)):
        return NotImplemented
    zero = codes.zero_point.reshape(()).astype(codes.values.dtype)
    sums = pooling.sum_pool(codes.values, zero, **_window(params))
    ctx.record(True, shapes=shapes_of(ctx.eqn), kernel="int32 sum of codes", activations=f"{codes.bits} bits")
    return _sum_of(codes, sums, math.prod(params["window_dimensions"]))


def _window(params: Any) -> dict[str, Any]:
    return {
        "window": tuple(params["window_dimensions"]), "strides": tuple(params["window_strides"]),
        "padding": tuple(params["padding"]), "base_dilation": tuple(params["base_dilation"]),
        "window_dilation": tuple(params["window_dilation"]),
    }  # fmt: skip


def _sum_of(codes: QTensor, sums: Any, terms: int) -> Accumulator:
    """The sums of `terms` codes as an accumulator that stands for the sums of the real numbers."""
    rank = (1,) * sums.ndim
    scale = codes.scale.reshape(rank)
    offset = -scale * codes.zero_point.reshape(rank).astype(jnp.float32) * terms
    return Accumulator(sums, scale, offset, dtype=codes.dtype)


@rule(primitives.reduce_sum_p)
def reduce_sum(ctx: Context, x: Value, *, axes: Any, **params: Any) -> Value:
    """Global average pooling reads codes and sums them in int32."""
    if not isinstance(x, QTensor) or not _one_scale(x) or params.get("out_sharding") is not None:
        return _reduced_real(ctx, x, nonnegative=True)
    terms = math.prod([x.shape[a] for a in axes])
    if terms * 255 >= 2**31:
        return NotImplemented
    return _sum_of(x, pooling.total(x.values, axes=tuple(axes)), terms)


def _reduced_real(ctx: Context, x: Value, nonnegative: bool) -> Value:
    result = float_fallback(ctx, (x,))[0]
    lo, hi = bounds(x)
    assert isinstance(result, Array)
    if nonnegative:
        return dataclasses.replace(result, lo=0.0 if lo >= 0 else -INF)
    return dataclasses.replace(result, lo=lo, hi=hi)


@rule(primitives.reduce_max_p)
def reduce_max(ctx: Context, x: Value, *, axes: Any, **params: Any) -> Value:
    """Global max pooling on codes."""
    return _extreme(ctx, x, axes, jnp.max, params)


@rule(primitives.reduce_min_p)
def reduce_min(ctx: Context, x: Value, *, axes: Any, **params: Any) -> Value:
    """Global min pooling on codes."""
    return _extreme(ctx, x, axes, jnp.min, params)


def _extreme(ctx: Context, x: Value, axes: Any, reduce: Any, params: Any) -> Value:
    if not isinstance(x, QTensor) or not _one_scale(x) or params.get("out_sharding") is not None:
        return _reduced_real(ctx, x, nonnegative=False)
    values = reduce(x.values, axis=tuple(axes))
    rank = (1,) * values.ndim
    return dataclasses.replace(
        x, values=values, scale=x.scale.reshape(rank), zero_point=x.zero_point.reshape(rank)
    )
