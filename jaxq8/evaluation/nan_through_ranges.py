"""NaN and infinity of the data must come out as NaN, also where a range is known and nobody looks at the data.

A scale that is found in the run is NaN if the data are, and all that is decoded with it is NaN. Where the range is known, the
codes of NaN are numbers; there the scale is made NaN if a *witness* is. Most witnesses cost nothing: an accumulator's vectors
hold the scales that it came with, and a float array knows its origins (`values.Origin`): the scales behind it, through every
operation that passes NaN on. Data are read only where they may bring NaN: arguments, and results of loops and selections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8._compat import primitive_named, stored
from jaxq8.evaluation.values import Accumulator, Array, Origin, Value, origins
from jaxq8.numerics.sizes import certainly_less

# NaN in an operand is NaN in the result. Not here: what may leave it out (slices, comparisons, x ** 0).
PASSING = set(
    primitive_named(
        "abs_p", "max_p", "min_p", "clamp_p", "div_p", "exp_p", "exp2_p", "expm1_p", "log_p", "log1p_p", "tanh_p", "logistic_p",
        "erf_p", "erfc_p", "sin_p", "cos_p", "tan_p", "sqrt_p", "rsqrt_p", "cbrt_p", "reduce_max_p", "reduce_min_p",
        "reduce_prod_p", "floor_p", "ceil_p", "round_p", "reduce_precision_p",
    )
)  # fmt: skip
# These pass on infinity, too: it comes out as infinity or NaN.
LINEAR = set(
    primitive_named(
        "add_p", "sub_p", "mul_p", "neg_p", "square_p", "convert_element_type_p", "copy_p", "stop_gradient_p", "reduce_sum_p",
        "cumsum_p", "dot_general_p", "conv_general_dilated_p", "reshape_p", "transpose_p", "squeeze_p", "expand_dims_p",
        "broadcast_in_dim_p", "rev_p", "concatenate_p", "pad_p",
    )
)  # fmt: skip
SELECT = primitive_named("select_n_p")[0]
MANY = 8


def inherited(primitive: Any, operands: Sequence[Value], result: Any) -> tuple[Origin, ...] | None:
    """The origins of the result of an operation; None if NaN must be looked for in the result itself."""
    if primitive is not SELECT and primitive not in PASSING and primitive not in LINEAR:
        return None
    found = {id(o.array): o for operand in operands for o in origins(operand)}
    if primitive is SELECT:
        # A mask leaves some of each tensor; what leaves out all NaN of a tensor that is NaN everywhere is not thought of.
        hidden = tuple(o._replace(masked=True) for o in found.values())
        return hidden if all(o.everywhere for o in hidden) else None
    data = [o for o in found.values() if o.is_data]
    if data and (primitive not in LINEAR or any(certainly_less(result.size, o.array.size) for o in data)):
        return None
    scales = [o for o in found.values() if not o.is_data]
    # A sum of many layers has the scales of all: kept as one number, or every layer would read those of all before it.
    if len(scales) > MANY:
        everywhere, masked = all(o.everywhere for o in scales), any(o.masked for o in scales)
        scales = [Origin(_total(scales), everywhere=everywhere, masked=masked)]
    return (*data, *scales)


def poisoned(scale: jax.Array, witness: jax.Array | None) -> jax.Array:
    """`scale`, or NaN where the witness is NaN."""
    return scale if witness is None else jnp.where(jnp.isnan(witness), jnp.nan, scale)


def in_data(array: Any, keep: tuple[int, ...]) -> jax.Array:
    """NaN for each slice along the axes `keep` that holds NaN or infinity, else 0: a bad row leaves other rows alone."""
    shared = tuple(axis for axis in range(jnp.ndim(array)) if axis not in keep)
    return jnp.sum(array * 0, axis=shared, keepdims=True)


def behind(value: Array, keep: tuple[int, ...], measured: bool) -> jax.Array | None:
    """The witness of a float array, from its origins.

    From its data where slices along the axes `keep` count for themselves, and where its range is measured and a selection may
    have taken NaN out: the data are read anyway then.
    """
    known = origins(value)
    if not known or 0 in value.shape:
        return None
    if measured and any(o.masked for o in known):
        return in_data(value.array, keep)
    if keep and any(math.prod(jnp.shape(o.array)) != 1 for o in known):
        return in_data(value.array, keep)
    return _total(known).reshape((1,) * len(value.shape))


def accumulated(value: Accumulator, vectors: Sequence[jax.Array], keep: tuple[int, ...]) -> jax.Array | None:
    """The witness of an accumulator.

    NaN of the data is in the scales of all channels, or in some where channels are data (`Accumulator.everywhere`); that of a
    row is in this row alone.

    Args:
      value: The accumulator.
      vectors: What it is encoded with: its scales and offsets, computed and in memory.
      keep: Axes along which the codes keep scales of their own.
    """
    if 0 in value.shape:
        return None

    def some(a: Any) -> Any:
        if not value.everywhere:
            return in_data(a, keep)
        return a[tuple(slice(None) if axis in keep else slice(1) for axis in range(a.ndim))]

    witness = sum(map(some, vectors), start=jnp.float32(0))
    return witness if value.rows is None else witness + in_data(value.rows, keep)


def _total(known: Sequence[Origin]) -> jax.Array:
    # Stored: XLA would follow the NaN back through all sites before, in every loop that reads the scale.
    return stored(sum((_some(o).astype(jnp.float32) for o in known), start=jnp.float32(0)))


def _some(origin: Origin) -> jax.Array:
    """NaN if it is anywhere in an origin."""
    if origin.is_data:
        return in_data(origin.array, ()).reshape(())
    return jnp.reshape(origin.array, -1)[0] if origin.everywhere else jnp.sum(origin.array)
