"""NaN and infinity in the data become NaN in the results, even where a range is known and the data are not measured.

A scale that is computed from measured data is NaN if the data hold NaN, and everything decoded with it is NaN. Where the range
is known, the codes of NaN are ordinary numbers; there the scale is made NaN if a *witness* is NaN. Most witnesses cost nothing.
The vectors of an accumulator are computed from the scales of its operands. A float array knows its origins (`values.Origin`):
the scales that it was computed from, through every operation that passes NaN on. The data themselves are read only where they
may bring in NaN: arguments, and results of loops and selections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8._compat import primitive_named, stored
from jaxq8.evaluation.values import Accumulator, Array, Origin, Value, origins
from jaxq8.kernels.epilogue import nan_among, nan_if
from jaxq8.numerics.sizes import certainly_less

# NaN in an operand is NaN in the result. Operations that may lose it (slices, comparisons, x ** 0) are not listed.
PASSING = set(
    primitive_named(
        "abs_p", "max_p", "min_p", "clamp_p", "div_p", "exp_p", "exp2_p", "expm1_p", "log_p", "log1p_p", "tanh_p", "logistic_p",
        "erf_p", "erfc_p", "sin_p", "cos_p", "tan_p", "sqrt_p", "rsqrt_p", "cbrt_p", "reduce_max_p", "reduce_min_p",
        "reduce_prod_p", "floor_p", "ceil_p", "round_p", "reduce_precision_p",
    )
)  # fmt: skip
# These also pass on infinity: as infinity or as NaN.
LINEAR = set(
    primitive_named(
        "add_p", "sub_p", "mul_p", "neg_p", "square_p", "convert_element_type_p", "copy_p", "stop_gradient_p", "reduce_sum_p",
        "cumsum_p", "dot_general_p", "conv_general_dilated_p", "reshape_p", "transpose_p", "squeeze_p", "expand_dims_p",
        "broadcast_in_dim_p", "rev_p", "concatenate_p", "pad_p",
    )
)  # fmt: skip
SELECT, POWER = primitive_named("select_n_p", "integer_pow_p")
MANY = 8  # more scales than this become one number


def inherited(eqn: Any, operands: Sequence[Value], result: Any) -> tuple[Origin, ...] | None:
    """The origins of the result of an operation; None if NaN must be looked for in the result itself."""
    primitive = eqn.primitive
    passes_infinity = primitive in LINEAR or (primitive is POWER and eqn.params["y"] > 0)
    if primitive is not SELECT and primitive not in PASSING and not passes_infinity:
        return None
    found: dict[int, Origin] = {}
    for operand in operands:
        found.update({id(o.array): o for o in origins(operand)})
    if primitive is SELECT:
        # A mask is assumed to leave some elements of each tensor; a selection that removes a whole tensor, which may be NaN
        # everywhere, is not recognised.
        hidden = tuple(o._replace(masked=True) for o in found.values())
        return hidden if all(o.everywhere for o in hidden) else None
    data = [o for o in found.values() if o.is_data]
    smaller = any(certainly_less(result.size, o.array.size) for o in data)
    if data and (smaller or not passes_infinity):
        return None
    scales = [o for o in found.values() if not o.is_data]
    # A residual sum of many layers has the scales of all of them. They are summed to one number, because every layer would
    # otherwise read the scales of all layers before it.
    if len(scales) > MANY:
        everywhere, masked = all(o.everywhere for o in scales), any(o.masked for o in scales)
        scales = [Origin(_total(scales), everywhere=everywhere, masked=masked)]
    return (*data, *scales)


def poisoned(scale: jax.Array, witness: jax.Array | None) -> jax.Array:
    """`scale`, or NaN where the witness is NaN."""
    return scale if witness is None else nan_if(scale, witness)


def in_data(array: Any, keep: tuple[int, ...]) -> jax.Array:
    """NaN for each slice along the axes `keep` that holds NaN or infinity, else 0: a bad row does not affect other rows."""
    shared = tuple(axis for axis in range(jnp.ndim(array)) if axis not in keep)
    return nan_among(array, axes=shared)


def behind(value: Array, keep: tuple[int, ...], measured: bool) -> jax.Array | None:
    """The witness of a float array; None if the array cannot hold NaN.

    It is computed from the origins of the array, but from its data in two cases: where slices along the axes `keep` have
    witnesses of their own, and where the range is measured (so the data are read anyway) and a selection may have removed NaN.
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
    """The witness of an accumulator; None if it has no elements.

    NaN of the data is in the scales of all channels, or of some channels where channels are data (`Accumulator.everywhere`).
    NaN of a row is in the scale of this row alone.

    Args:
      value: The accumulator.
      vectors: The scales and offsets that it is encoded with, computed and stored in memory.
      keep: Axes along which the codes keep scales of their own.
    """
    if 0 in value.shape:
        return None

    def sample(a: Any) -> Any:
        """The first element of each slice along `keep`, where one element tells of all; else a sum over the slice."""
        if not value.everywhere:
            return in_data(a, keep)
        return a[tuple(slice(None) if axis in keep else slice(1) for axis in range(a.ndim))]

    witness = sum(map(sample, vectors), start=jnp.float32(0))
    return witness if value.rows is None else witness + in_data(value.rows, keep)


def _total(known: Sequence[Origin]) -> jax.Array:
    """NaN if any of some origins holds NaN, as one number."""
    # Stored, because XLA would otherwise compute the witness from all sites before it again in every loop that reads the scale.
    return stored(sum((_sample(o).astype(jnp.float32) for o in known), start=jnp.float32(0)))


def _sample(origin: Origin) -> jax.Array:
    """A number that is NaN if there is NaN anywhere in an origin."""
    if origin.is_data:
        return in_data(origin.array, ()).reshape(())
    return jnp.reshape(origin.array, -1)[0] if origin.everywhere else jnp.sum(origin.array)
