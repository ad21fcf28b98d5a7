"""Operations that move data without changing it: codes move as codes, with the scales of the axes they belong to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8._compat import primitives
from jaxq8.evaluation.interpreter import Context, float_fallback, rule
from jaxq8.evaluation.rules import joined
from jaxq8.evaluation.values import Accumulator, Array, Broadcast, Value, bounds, constant
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.sizes import certainly_less
from jaxq8.plan import Reason


def moved(value: Value, move: Callable[[Any], Any]) -> Value | None:
    """`move` applied to data and scales alike; for layouts that treat axes of size 1 as any other."""
    if isinstance(value, QTensor):
        return dataclasses.replace(
            value, values=move(value.values), scale=move(value.scale), zero_point=move(value.zero_point)
        )
    if isinstance(value, Accumulator):
        rank = len(value.shape)
        smalls = {
            field: move(jnp.reshape(v, (1,) * (rank - jnp.ndim(v)) + jnp.shape(v)))
            for field, v in value.smalls.items()
        }
        return dataclasses.replace(value, values=move(value.values), **smalls)
    return None


def _smalls(x: QTensor | Accumulator) -> dict[str, Any]:
    """The arrays beside the values, by field."""
    return x.smalls if isinstance(x, Accumulator) else {"scale": x.scale, "zero_point": x.zero_point}


def _through(ctx: Context, x: Value) -> Array:
    """The float result of a layout operation keeps what is known of its operand."""
    result = float_fallback(ctx, (x,), Reason.PER_CHANNEL)[0]
    assert isinstance(result, Array)
    lo, hi = bounds(x)
    if isinstance(x, Array):
        return dataclasses.replace(result, lo=lo, hi=hi, argument=x.argument, stored=x.stored)
    return dataclasses.replace(result, lo=lo, hi=hi, stored=True)


@rule(primitives.transpose_p)
def transpose(ctx: Context, x: Value, *, permutation: Any, **params: Any) -> Value:
    """Codes, scales and zero points are transposed alike."""
    result = moved(x, lambda a: jnp.transpose(a, permutation))
    if isinstance(x, QTensor) and isinstance(
        result, QTensor
    ):  # a product reads the weight as it lies: see `DotLayout.operand`
        ctx.run.transposed[id(result.values)] = (result.values, x.values, tuple(permutation))
    return result or _through(ctx, x)


@rule(primitives.squeeze_p)
def squeeze(ctx: Context, x: Value, *, dimensions: Any, **params: Any) -> Value:
    """Axes of size 1 are dropped from codes and scales alike."""
    return moved(x, lambda a: jnp.squeeze(a, tuple(dimensions))) or _through(ctx, x)


@rule(primitives.rev_p)
def rev(ctx: Context, x: Value, *, dimensions: Any, **params: Any) -> Value:
    """Codes are reversed; so are the scales of axes that have them."""
    return moved(x, lambda a: jnp.flip(a, tuple(dimensions))) or _through(ctx, x)


@rule(primitives.copy_p, "name")
def copy(ctx: Context, x: Value, **params: Any) -> Value:
    """A copy of integer data, or a name for it, is that data."""
    return x if isinstance(x, QTensor | Accumulator) else NotImplemented


@rule("pvary")
def pvary(ctx: Context, x: Value, **params: Any) -> Value:
    """Inside `jax.shard_map`: data that is the same on all devices is from here on each device's own."""
    if not isinstance(x, QTensor | Accumulator):
        return NotImplemented
    smalls = _smalls(x)
    return dataclasses.replace(
        x, **{f: ctx.eqn.primitive.bind(v, **params) for f, v in (smalls | {"values": x.values}).items()}
    )


@rule(primitives.sharding_constraint_p)
def sharding_constraint(ctx: Context, x: Value, **params: Any) -> Value:
    """Codes and accumulators lie on devices as the array that they stand for; their small vectors go where XLA puts them."""
    if not isinstance(x, QTensor | Accumulator):
        return NotImplemented
    return dataclasses.replace(x, values=ctx.eqn.primitive.bind(x.values, **params))


@rule(primitives.reshape_p)
def reshape(ctx: Context, x: Value, *, new_sizes: Any, dimensions: Any = None, **params: Any) -> Value:
    """Codes are reshaped where no axis with scales of its own is cut apart or merged with others."""
    new = tuple(new_sizes)
    if dimensions is None and isinstance(x, QTensor | Accumulator):
        smalls = _smalls(x)
        targets = {f: reshaped_small(tuple(x.shape), new, jnp.shape(s)) for f, s in smalls.items()}
        if None not in targets.values():
            reshaped: dict[str, Any] = {f: jnp.reshape(s, targets[f]) for f, s in smalls.items()}
            return dataclasses.replace(x, values=jnp.reshape(x.values, new), **reshaped)
    return _through(ctx, x)


def reshaped_small(
    before: tuple[int, ...], after: tuple[int, ...], small: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shape of a small array (1 on shared axes) after its tensor is reshaped, or None if that needs data.

    Axes are cut into the smallest groups of equal size on both sides; within a group the small array must be either all
    ones or full.
    """
    small = (1,) * (len(before) - len(small)) + tuple(small)
    if 0 in before:
        return (1,) * len(after) if all(s <= 1 for s in small) else None
    result: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = right = 1
        while (i == i0 and j == j0) or left != right:
            if i < len(before) and not certainly_less(right, left):
                left *= before[i]
                i += 1
            elif j < len(after):
                right *= after[j]
                j += 1
            else:
                left *= before[i]
                i += 1
        group = small[i0:i]
        if all(s == 1 for s in group):
            result += [1] * (j - j0)
        elif group == before[i0:i]:
            result += after[j0:j]
        else:
            return None
    return tuple(result)


@rule(primitives.broadcast_in_dim_p)
def broadcast_in_dim(
    ctx: Context, x: Value, *dyn: Value, shape: Any, broadcast_dimensions: Any, **params: Any
) -> Value:
    """A vector or scalar stays small, with the shape it stands for; codes are broadcast as codes."""
    if dyn:
        return NotImplemented
    target, dims = tuple(shape), tuple(broadcast_dimensions)

    def placed(a: Any) -> Any:
        sizes = [1] * len(target)
        for d, n in zip(dims, np.shape(a), strict=True):
            sizes[d] = n
        return np.reshape(a, sizes) if isinstance(a, np.ndarray) else jnp.reshape(a, sizes)

    if isinstance(x, QTensor):
        values = jnp.broadcast_to(placed(x.values), target)
        return dataclasses.replace(x, values=values, scale=placed(x.scale), zero_point=placed(x.zero_point))
    small = x.small if isinstance(x, Broadcast) else x.array if isinstance(x, Array) and x.stored else None
    if small is not None and certainly_less(math.prod(x.shape), math.prod(target)):
        return Broadcast(placed(small), target)
    return _through(ctx, x)


@rule(primitives.slice_p)
def slice_(
    ctx: Context, x: Value, *, start_indices: Any, limit_indices: Any, strides: Any, **params: Any
) -> Value:
    """Codes are sliced; so are the scales of axes that have them."""
    steps = strides or (1,) * len(start_indices)
    window = tuple(slice(a, b, s) for a, b, s in zip(start_indices, limit_indices, steps, strict=True))
    if isinstance(x, QTensor):

        def cut(small: Any) -> Any:
            return small[
                tuple(slice(None) if n == 1 else w for n, w in zip(small.shape, window, strict=True))
            ]

        return dataclasses.replace(
            x, values=x.values[window], scale=cut(x.scale), zero_point=cut(x.zero_point)
        )
    return _through(ctx, x)


@rule(primitives.pad_p)
def pad(ctx: Context, x: Value, fill: Value, *, padding_config: Any, **params: Any) -> Value:
    """Zeros are padded as the zero point: exact, whatever the range."""
    one_scale = isinstance(x, QTensor) and math.prod(x.scale.shape) == 1
    if not one_scale or constant(fill) != 0:
        codes = ctx.encode_for_reader(x) if isinstance(x, Accumulator) and constant(fill) == 0 else None
        return NotImplemented if codes is None else pad(ctx, codes, fill, padding_config=padding_config)
    assert isinstance(x, QTensor)
    zero = x.zero_point.reshape(()).astype(x.values.dtype)
    return dataclasses.replace(x, values=primitives.pad_p.bind(x.values, zero, padding_config=padding_config))


@rule(primitives.concatenate_p)
def concatenate(ctx: Context, *values: Value, dimension: int, **params: Any) -> Value:
    """Parts with one common scale are joined as codes; accumulators are first encoded with the range that holds them all."""
    weights = _joined_weights(values, dimension)
    if weights is not None:
        return weights
    result = _joined(ctx, values, dimension)
    if ctx.reader is not None:
        joined.remember(ctx, result, values, dimension)
    return result


def _joined(ctx: Context, values: tuple[Value, ...], dimension: int) -> Value:
    if not any(isinstance(v, QTensor | Accumulator) for v in values):
        return float_fallback(ctx, values)[0]
    unlike = "" if ctx.reader is None else joined.unlike(joined.groups(ctx, ctx.reader, values))
    if unlike and ctx.config.mode in ("eightbit", "simulate"):
        ctx.record(
            True, shapes=f"{len(values)} parts", kernel="none: parts are read one by one", detail=unlike
        )
        return float_fallback(dataclasses.replace(ctx, quiet=True), values)[0]
    codes = _joined_codes(ctx, values, dimension)
    if codes is None:
        return float_fallback(ctx, values, Reason.PER_CHANNEL)[0]
    ctx.record(True, shapes=f"{len(values)} parts", activations="as encoded", kernel="copy of codes")
    return codes


def _joined_weights(values: tuple[Value, ...], dimension: int) -> QTensor | None:
    """Weights with scales of their own along the axis that joins them (merged projections, LSTM gates) stay codes."""
    if not all(isinstance(v, QTensor) and v.scale.shape[dimension] == v.shape[dimension] for v in values):
        return None
    parts: list[Any] = list(values)
    same = len({(q.bits, q.symmetric, q.signed, str(q.values.dtype), q.scale.shape[:dimension], q.scale.shape[dimension + 1 :])
                for q in parts}) == 1  # fmt: skip
    if not same:
        return None
    codes, scale, zero = (
        jnp.concatenate([getattr(q, f) for q in parts], dimension) for f in ("values", "scale", "zero_point")
    )
    return dataclasses.replace(parts[0], values=codes, scale=scale, zero_point=zero)


def _joined_codes(ctx: Context, values: tuple[Value, ...], dimension: int) -> QTensor | None:
    """One QTensor of all parts, or None where a part is not integer data or has scales of its own."""
    config = ctx.config
    if config.mode not in ("eightbit", "simulate"):
        return None
    if not all(isinstance(v, QTensor | Accumulator) for v in values):
        return None
    if any(isinstance(v, QTensor) and math.prod(v.scale.shape) != 1 for v in values):
        return None
    return ctx.eight_bit_together(values, dimension)
