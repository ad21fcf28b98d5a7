"""Table look-ups: an embedding table stays in eight bits, and the rows that are read keep their scales."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxq8._compat import primitives
from jaxq8.evaluation.interpreter import Context, rule
from jaxq8.evaluation.values import Value
from jaxq8.numerics.qtensor import QTensor


@rule(primitives.gather_p)
def gather(ctx: Context, table: Value, indices: Value, *, slice_sizes: Any, **params: Any) -> Value:
    """Codes and scales are gathered alike; an axis along which the scale is shared must be read as a whole."""
    if not isinstance(table, QTensor) or not _whole_scales(table, slice_sizes, params):
        return NotImplemented
    positions = ctx.real(indices)

    def read(a: Any, fill: Any) -> Any:
        sizes = tuple(1 if n == 1 else s for n, s in zip(a.shape, slice_sizes, strict=True))
        return lax.gather(a, positions, slice_sizes=sizes, **{**params, "fill_value": fill})

    # In float, a row outside the table reads as NaN ("fill" mode). Here its scale is NaN, so the decoded row is NaN too.
    codes, scale, zero = read(table.values, 0), read(table.scale, jnp.nan), read(table.zero_point, 0)
    ctx.record(
        True,
        shapes=f"{'x'.join(map(str, table.shape))} table",
        weights=f"{table.bits} bits",
        kernel="gather of codes",
    )
    return dataclasses.replace(table, values=codes, scale=scale, zero_point=zero)


def _whole_scales(table: QTensor, slice_sizes: Any, params: Any) -> bool:
    """Whether every axis either has a scale for each position or is read as a whole."""
    indexed = set(params["dimension_numbers"].start_index_map)
    for axis, (size, scales) in enumerate(zip(table.shape, table.scale.shape, strict=True)):
        if scales != 1:
            continue
        if axis in indexed or slice_sizes[axis] != size:
            return False
    return bool(jnp.issubdtype(table.dtype, jnp.floating))
