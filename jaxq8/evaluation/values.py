"""The kinds of value that the evaluator computes with in place of arrays.

============  ==========================================================================================
`Array`       an ordinary array, with bounds that are known without looking at it
`Broadcast`   a small array and the shape it stands for: a bias or batch-norm vector stays per-channel
`QTensor`     eight-bit codes with scale and zero point
`Accumulator` an int32 contraction result standing for ``clip(values * scale + offset, lo, hi)``
============  ==========================================================================================
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import stored
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.rounding import straight_through

INF = math.inf


class Origin(NamedTuple):
    """An array with NaN in it if NaN of the data has come into a value.

    Attributes:
      array: A scale, or numbers.
      is_data: They are numbers, and may be infinite too.
      masked: A selection stands between it and the value: it may have taken the NaN out.
      everywhere: NaN is in all of it, and in all of the value: the scale of a whole tensor, for each channel or not.
    """

    array: Any
    is_data: bool = False
    everywhere: bool = False
    masked: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Array:
    """A float (or any other) array.

    Attributes:
      array: The data.
      lo: No element is below it, by construction (relu: 0); -inf when nothing is known.
      hi: No element is above it.
      stored: False if it is an elementwise view of integer data, which every reader computes again.
      argument: It is an argument of the function, unchanged but for layout: its data was never checked for NaN.
      codes: The same values as codes, where a reader needed them (an array is never encoded twice).
      maker: The equation that made it; None for arguments, constants and what comes out of control flow.
      origins: Where NaN in it comes from; None for itself: NaN must be looked for in its own numbers.
    """

    array: Any
    lo: float = -INF
    hi: float = INF
    stored: bool = True
    argument: bool = False
    codes: QTensor | None = None
    maker: Any = None
    origins: tuple[Origin, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.array))

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.array)


@dataclasses.dataclass(frozen=True, eq=False)
class Broadcast:
    """`small` (same rank, 1 on broadcast axes) standing for an array of `shape`; `origins` as of an `Array`."""

    small: Any
    shape: tuple[int, ...]
    origins: tuple[Origin, ...] | None = None

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.small)


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulator:
    """A contraction's int32 result that nobody has needed in another form yet.

    Attributes:
      values: Int32 (float32 while simulated).
      scale: Float32, same rank, 1 on the axes that share it.
      offset: Float32 likewise.
      rows: A second factor of the scale, float32 likewise, where rows have scales of their own; None for 1. Kept apart, because
        the product of both is as large as `values`.
      lo: Lower clip (relu: 0) in real units; -inf for none.
      hi: Upper clip (relu6: 6).
      dtype: The float dtype that it stands for.
      positive: Every scale is known to be positive (until a batch norm multiplies it by who knows what): the largest
        integer is then the largest real.
      everywhere: NaN in scale or offset is in all of it: the vectors along channels are those of weights, which have none. Not
        so where channels are data (the right operand of a product of two activations, a gate for each channel).
      straight: The clips act on values and not on derivatives (while simulated: a custom derivative has said all about them).
    """

    values: Any
    scale: Any
    offset: Any
    lo: float = -INF
    hi: float = INF
    dtype: Any = np.dtype("float32")
    positive: bool = True
    straight: bool = False
    rows: Any = None
    everywhere: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def smalls(self) -> dict[str, Any]:
        """The arrays beside the values, by field."""
        fields = ("scale", "offset", "rows")
        return {field: small for field in fields if (small := getattr(self, field)) is not None}


Value = Array | Broadcast | QTensor | Accumulator


def is_quantized(value: Value) -> bool:
    """Whether a value is integer data."""
    return isinstance(value, QTensor | Accumulator)


def to_real(value: Value) -> Any:
    """The array that a value stands for, in its dtype."""
    if isinstance(value, Array):
        return value.array
    if isinstance(value, Broadcast):
        return jnp.broadcast_to(value.small, value.shape)
    if isinstance(value, QTensor):
        return value.dequantize()
    return decode(value).astype(value.dtype)


def stored_vectors(vectors: dict[str, Any]) -> dict[str, Any]:
    """Small arrays, computed once and kept in memory; those of one shape as one array: one loop in the place of several."""
    shapes = {jnp.shape(v) for v in vectors.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(vectors) == 1 or shape[:1] != (1,):
        return dict(stored(vectors))
    joined = stored(jax.lax.concatenate(list(vectors.values()), 0))
    return {name: jax.lax.slice_in_dim(joined, i, i + 1) for i, name in enumerate(vectors)}


def decode(acc: Accumulator) -> jax.Array:
    """The real numbers of an accumulator in float32."""
    # Vectors in memory: XLA:CPU would compute the batch norm behind them again for every element.
    vectors = stored_vectors(acc.smalls)
    scale = vectors["scale"] * vectors.get("rows", 1)
    real = acc.values.astype(jnp.float32) * scale + vectors["offset"]
    clipped = jnp.maximum(real, jnp.float32(acc.lo)) if acc.lo > -INF else real
    clipped = jnp.minimum(clipped, jnp.float32(acc.hi)) if acc.hi < INF else clipped
    return straight_through(real, clipped) if acc.straight else clipped


def origins(value: Value) -> tuple[Origin, ...]:
    """Where NaN in a value comes from.

    NaN of the data is NaN in the scale of the codes that were made of them. NaN that float arithmetic makes of finite numbers
    later on is in no scale.
    """
    if isinstance(value, QTensor):
        return (Origin(value.scale, everywhere=math.prod(value.scale.shape) == 1),)
    if isinstance(value, Accumulator):
        everywhere = value.rows is None and value.everywhere
        return tuple(Origin(v, everywhere=everywhere) for v in value.smalls.values())
    data = value.small if isinstance(value, Broadcast) else value.array
    if isinstance(data, np.ndarray | np.generic) or not jnp.issubdtype(value.dtype, jnp.inexact):
        return ()
    return (Origin(data, is_data=True),) if value.origins is None else value.origins


def bounds(value: Value) -> tuple[float, float]:
    """(lo, hi) known without looking at the data; infinite where nothing is known."""
    if isinstance(value, Array | Accumulator):
        return value.lo, value.hi
    return -INF, INF


def constant(value: Value) -> float | None:
    """The number that a value is everywhere, if it is known while tracing."""
    data = value.array if isinstance(value, Array) else value.small if isinstance(value, Broadcast) else None
    if isinstance(data, np.ndarray | np.generic | float | int) and np.size(data) == 1:
        number = np.asarray(data)
        return (
            float(number.reshape(()))
            if number.dtype.kind in "fiub" or number.dtype.name == "bfloat16"
            else None
        )
    return None


def is_outer(first: Any, second: Any) -> bool:
    """Whether two arrays vary along different axes: what is computed of both is larger than either."""
    rank = max(jnp.ndim(first), jnp.ndim(second))
    a, b = ((1,) * (rank - jnp.ndim(v)) + jnp.shape(v) for v in (first, second))
    pairs = [(m == 1, n == 1) for m, n in zip(a, b, strict=True)]
    return (True, False) in pairs and (False, True) in pairs


def aligned(value: Value, shape: tuple[int, ...]) -> Any | None:
    """`value` as a small float32 array of the rank of `shape` (size 1 where it is constant), or None if it is not small."""
    if isinstance(value, Broadcast):
        return value.small.astype(jnp.float32) if value.shape == shape else None
    if not isinstance(value, Array) or not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    if value.shape == ():
        return jnp.asarray(value.array, jnp.float32).reshape((1,) * len(shape))
    small = len(value.shape) == len(shape) and any(
        v == 1 and n not in (0, 1) for v, n in zip(value.shape, shape, strict=True)
    )
    return jnp.asarray(value.array, jnp.float32) if small else None
