"""Operations that move data without changing it: codes move as codes, and the scales of moved axes move with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
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
    """A value after `move` is applied to its data and its scales; None if it has no scales.

    `move` must treat axes of size 1 like all others.
    """
    if isinstance(value, QTensor):
        return dataclasses.replace(
            value, values=move(value.values), scale=move(value.scale), zero_point=move(value.zero_point)
        )
    if isinstance(value, Accumulator):
        smalls = {}
        for field, small in value.smalls.items():
            leading = (1,) * (len(value.shape) - jnp.ndim(small))
            smalls[field] = move(jnp.reshape(small, leading + jnp.shape(small)))
        return dataclasses.replace(value, values=move(value.values), **smalls)
    return None


def _smalls(x: QTensor | Accumulator) -> dict[str, Any]:
    """The arrays beside the values, by the name of their field."""
    return x.smalls if isinstance(x, Accumulator) else {"scale": x.scale, "zero_point": x.zero_point}


def _through(ctx: Context, x: Value) -> Array:
    """The float result of a layout operation, with what is known of its operand."""
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
    if isinstance(x, QTensor) and isinstance(result, QTensor):
        # Noted, because a product may read a weight as it lies in memory (`DotLayout.operand`).
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
    """A copy of integer data, or a name for it (`jax.ad_checkpoint.checkpoint_name`), is the same data."""
    return x if isinstance(x, QTensor | Accumulator) else NotImplemented


@rule("pvary")
def pvary(ctx: Context, x: Value, **params: Any) -> Value:
    """Inside `jax.shard_map`: data that is the same on all devices counts from here on as each device's own."""
    if isinstance(x, Array) and constant(x) is not None:
        return Array(ctx.eqn.primitive.bind(x.array, **params), number=constant(x), origins=())
    if not isinstance(x, QTensor | Accumulator):
        return NotImplemented
    fields = _smalls(x) | {"values": x.values}
    varying = {field: ctx.eqn.primitive.bind(a, **params) for field, a in fields.items()}
    return dataclasses.replace(x, **varying)


@rule(primitives.sharding_constraint_p)
def sharding_constraint(ctx: Context, x: Value, **params: Any) -> Value:
    """Codes and accumulators are distributed like the array that they stand for; XLA chooses the place of small vectors."""
    if not isinstance(x, QTensor | Accumulator):
        return NotImplemented
    return dataclasses.replace(x, values=ctx.eqn.primitive.bind(x.values, **params))


@rule(primitives.reshape_p)
def reshape(ctx: Context, x: Value, *, new_sizes: Any, dimensions: Any = None, **params: Any) -> Value:
    """Codes are reshaped, unless an axis with scales of its own is split or merged with an axis without."""
    if dimensions is not None or not isinstance(x, QTensor | Accumulator):
        return _through(ctx, x)
    new = tuple(new_sizes)
    smalls = _smalls(x)
    targets = {field: reshaped_small(tuple(x.shape), new, jnp.shape(a)) for field, a in smalls.items()}
    if None in targets.values():
        return _through(ctx, x)
    reshaped: dict[str, Any] = {field: jnp.reshape(a, targets[field]) for field, a in smalls.items()}
    return dataclasses.replace(x, values=jnp.reshape(x.values, new), **reshaped)


def reshaped_small(
    before: tuple[int, ...], after: tuple[int, ...], small: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shape of a small array (1 on shared axes) after its tensor is reshaped; None if no shape is right.

    The axes of both sides are cut into the smallest groups of equal size. Within a group the small array must either have
    size 1 on all axes, or vary along all of them.
    """
    small = (1,) * (len(before) - len(small)) + tuple(small)
    if 0 in before:
        return (1,) * len(after) if all(s <= 1 for s in small) else None
    # JAX lets a reshape of a symbolic batch pass that holds for one size only.
    if math.prod(before) != math.prod(after):
        return None
    result: list[int] = []
    for old_axes, new_axes in _groups_of_axes(before, after):
        sizes = small[old_axes]
        if all(s == 1 for s in sizes):
            result += [1] * len(after[new_axes])
        elif sizes == before[old_axes]:
            result += after[new_axes]
        else:
            return None
    return tuple(result)


def _groups_of_axes(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """The smallest groups of axes that a reshape merges or splits: ``(4, 6) -> (2, 2, 6)`` has (4 -> 2, 2) and (6 -> 6)."""
    i = j = 0
    while i < len(before) or j < len(after):
        i_start, j_start = i, j
        left = right = 1  # elements of the group on both sides
        while (i == i_start and j == j_start) or left != right:
            left_is_ahead = i == len(before) or certainly_less(right, left)
            if j == len(after) or not left_is_ahead:
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        yield slice(i_start, i), slice(j_start, j)


@rule(primitives.broadcast_in_dim_p)
def broadcast_in_dim(
    ctx: Context, x: Value, *dyn: Value, shape: Any, broadcast_dimensions: Any, **params: Any
) -> Value:
    """A vector or scalar stays small and notes the shape that it stands for; codes are broadcast as codes."""
    if dyn:
        return NotImplemented
    target, dims = tuple(shape), tuple(broadcast_dimensions)

    def placed(a: Any) -> Any:
        """An array in the rank of the target, with size 1 on the axes that are broadcast."""
        sizes = [1] * len(target)
        for d, n in zip(dims, np.shape(a), strict=True):
            sizes[d] = n
        return np.reshape(a, sizes) if isinstance(a, np.ndarray) else jnp.reshape(a, sizes)

    if isinstance(x, QTensor):
        values = jnp.broadcast_to(placed(x.values), target)
        return dataclasses.replace(x, values=values, scale=placed(x.scale), zero_point=placed(x.zero_point))
    small = None
    if isinstance(x, Broadcast):
        small = x.small
    elif isinstance(x, Array) and x.stored:
        small = x.array
    if small is not None and certainly_less(math.prod(x.shape), math.prod(target)):
        return Broadcast(placed(small), target)
    return _through(ctx, x)


@rule(primitives.slice_p)
def slice_(
    ctx: Context, x: Value, *, start_indices: Any, limit_indices: Any, strides: Any, **params: Any
) -> Value:
    """Codes are sliced, and so are the scales of axes that have scales of their own."""
    if not isinstance(x, QTensor):
        return _through(ctx, x)
    steps = strides or (1,) * len(start_indices)
    window = tuple(slice(a, b, s) for a, b, s in zip(start_indices, limit_indices, steps, strict=True))

    def cut(small: Any) -> Any:
        places = [slice(None) if n == 1 else place for n, place in zip(small.shape, window, strict=True)]
        return small[tuple(places)]

    return dataclasses.replace(x, values=x.values[window], scale=cut(x.scale), zero_point=cut(x.zero_point))


@rule(primitives.pad_p)
def pad(ctx: Context, x: Value, fill: Value, *, padding_config: Any, **params: Any) -> Value:
    """Codes are padded with the zero point, which is exact for any range."""
    if constant(fill) != 0:
        return NotImplemented
    codes = ctx.encode_for_reader(x) if isinstance(x, Accumulator) else x
    if not isinstance(codes, QTensor) or math.prod(codes.scale.shape) != 1:
        return NotImplemented
    zero = codes.zero_point.reshape(()).astype(codes.values.dtype)
    padded = primitives.pad_p.bind(codes.values, zero, padding_config=padding_config)
    return dataclasses.replace(codes, values=padded)


@rule(primitives.concatenate_p)
def concatenate(ctx: Context, *values: Value, dimension: int, **params: Any) -> Value:
    """Codes and accumulators are joined as codes of the one range that holds all parts; weights keep scales per channel."""
    weights = _joined_weights(values, dimension)
    if weights is not None:
        return weights
    result = _joined(ctx, values, dimension)
    if ctx.reader is not None:
        joined.remember(ctx, result, values, dimension)
    return result


def _joined(ctx: Context, values: tuple[Value, ...], dimension: int) -> Value:
    """The join of activations: as codes where that is possible and the parts are not unlike, else in float."""
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
    """The join of weights whose scales vary along the joined axis (merged projections, LSTM gates); None for other values."""
    if not all(isinstance(v, QTensor) and v.scale.shape[dimension] == v.shape[dimension] for v in values):
        return None
    parts: list[Any] = list(values)
    if len({_kind_of_codes(q, dimension) for q in parts}) > 1:
        return None
    codes = jnp.concatenate([q.values for q in parts], dimension)
    scale = jnp.concatenate([q.scale for q in parts], dimension)
    zero_point = jnp.concatenate([q.zero_point for q in parts], dimension)
    return dataclasses.replace(parts[0], values=codes, scale=scale, zero_point=zero_point)


def _kind_of_codes(q: QTensor, dimension: int) -> tuple[Any, ...]:
    """What must be the same in QTensors that are joined along a dimension."""
    scale_shape = (q.scale.shape[:dimension], q.scale.shape[dimension + 1 :])
    return q.bits, q.symmetric, q.signed, str(q.values.dtype), *scale_shape


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
