"""What one equation and its operands tell without the rest of the evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.elementwise import ELEMENTWISE
from jaxq8.analysis.inner_functions import CONTROL, INLINED, callees
from jaxq8.evaluation import nan_through_ranges
from jaxq8.evaluation.values import Array, Broadcast, Value, is_quantized
from jaxq8.numerics.sizes import certainly_less


def shapes_of(eqn: Any) -> str:
    """Shapes of operands and first result, for the Plan: ``16x32, 32x64 -> 16x64``."""
    operands = ", ".join(_shape_text(v) for v in eqn.invars if hasattr(v.aval, "shape"))
    return f"{operands} -> {_shape_text(eqn.outvars[0])}" if eqn.outvars else operands


def _shape_text(variable: Any) -> str:
    return "x".join(map(str, variable.aval.shape)) or "()"


def is_foldable(eqn: Any, values: Sequence[Value]) -> bool:
    """Whether an equation computes a scalar from scalars that are known while tracing.

    Its result then stays known: a rule may need to see that a clip is at 6.
    """
    if (
        not values
        or eqn.primitive.name == "pvary"
        or eqn.primitive in INLINED | CONTROL
        or eqn.effects
        or eqn.primitive.multiple_results
    ):
        return False
    known = all(
        isinstance(v, Array) and isinstance(v.array, np.ndarray) and v.array.size == 1 for v in values
    )
    out = eqn.outvars[0].aval
    is_number = jnp.issubdtype(out.dtype, jnp.number) or jnp.issubdtype(out.dtype, jnp.bool_)
    return known and is_number and math.prod(out.shape) == 1 and not callees(eqn)


def makes_view(eqn: Any, operands: Sequence[Value]) -> bool:
    """Whether the float result of an equation is an elementwise view of integer data (see `Array.stored`)."""
    if eqn.primitive not in ELEMENTWISE or not any(_is_view(v) for v in operands):
        return False
    return all(_is_view(v) or _is_small(v) for v in operands)


def _is_view(value: Value) -> bool:
    return is_quantized(value) or (isinstance(value, Array) and not value.stored)


def _is_small(value: Value) -> bool:
    """Whether a value is a per-channel vector or a scalar.

    A mean over channels (layer norm) counts as large: what is computed with it is worth storing in float.
    """
    if not isinstance(value, Array):
        return True
    channels = value.shape[-1] if value.shape else 1
    return certainly_less(math.prod(value.shape), channels + 1)


def with_origins(eqn: Any, operands: Sequence[Value], result: Value) -> Value:
    """A float result of an equation with its origins (see `jaxq8.evaluation.nan_through_ranges`)."""
    if not isinstance(result, Array | Broadcast) or eqn.primitive in INLINED:
        return result
    data = result.small if isinstance(result, Broadcast) else result.array
    return dataclasses.replace(result, origins=nan_through_ranges.inherited(eqn, operands, data))
