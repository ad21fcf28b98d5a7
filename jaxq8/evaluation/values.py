"""The kinds of value that the evaluator computes with instead of arrays.

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
from jaxq8.kernels.epilogue import numbers_of_codes, real_numbers
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.rounding import straight_through
from jaxq8.operations import is_collecting

INF = math.inf


class Origin(NamedTuple):
    """An array that holds NaN if NaN of the data has come into a value.

    Attributes:
      array: A scale, or the data themselves.
      is_data: The array holds data, which may also be infinite; a scale is NaN or finite.
      masked: A selection stands between the array and the value, and may have removed the NaN.
      everywhere: If one element of the array is NaN, then all its elements and all elements of the value are: the array holds
        the scale of a whole tensor, perhaps once for each channel.
    """

    array: Any
    is_data: bool = False
    everywhere: bool = False
    masked: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Array:
    """An array of floats or of any other dtype.

    Attributes:
      array: The data.
      lo: A lower bound of all elements, by construction (relu: 0); -inf when nothing is known.
      hi: An upper bound of all elements.
      stored: False if the array is an elementwise view of integer data, which every reader computes again.
      argument: The array is an argument of the function, unchanged except for its layout.
      codes: The same values as codes, if a reader needed them; so the array is not encoded twice.
      maker: The equation that made the array; None for arguments, constants and results of control flow.
      origins: Where NaN in the array comes from. None: NaN must be looked for in the array itself.
      number: The number that all elements are equal to, where it is known although the array is traced.

    Example:
      >>> from jaxq8.values import Array
      >>> positive = Array(jnp.float32([0.5, 2.0]), lo=0.0)
      >>> positive.shape, positive.hi
      ((2,), inf)
    """

    array: Any
    lo: float = -INF
    hi: float = INF
    stored: bool = True
    argument: bool = False
    codes: QTensor | None = None
    maker: Any = None
    origins: tuple[Origin, ...] | None = None
    number: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.array))

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.array)


@dataclasses.dataclass(frozen=True, eq=False)
class Broadcast:
    """An array of `shape` as its `small` part: same rank, size 1 on broadcast axes. `origins` are those of an `Array`.

    Example:
      >>> from jaxq8.values import Broadcast, to_real
      >>> bias = Broadcast(jnp.float32([[1.0, 2.0]]), shape=(3, 2))
      >>> to_real(bias).shape
      (3, 2)
    """

    small: Any
    shape: tuple[int, ...]
    origins: tuple[Origin, ...] | None = None

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.small)


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulator:
    """A contraction's int32 result, before any equation has needed it in another form.

    Attributes:
      values: Int32 (float32 while simulated).
      scale: Float32 of the same rank; size 1 on the axes that share a scale.
      offset: Float32, in the shape of a scale.
      rows: A second factor of the scale where rows have scales of their own, in the shape of a scale; None for 1. The two
        factors are kept apart, because their product is as large as `values`.
      lo: Lower clip in real units (relu: 0); -inf for none.
      hi: Upper clip in real units (relu6: 6); inf for none.
      dtype: The float dtype of the array that the accumulator stands for.
      positive: Every scale is known to be positive, so that the largest integer is the largest real. A batch norm makes this
        unknown, because it multiplies the scale by a vector of any sign.
      everywhere: If one element of scale or offset is NaN, all are: scales along channels belong to weights, which hold no
        NaN. False where channels are data (the right operand of a product of two activations, a gate for each channel).
      straight: The clips act on values but not on derivatives, because a custom derivative already covers the clips (only
        while simulated).

    Example:
      >>> from jaxq8.values import Accumulator, to_real
      >>> one = jnp.ones((1, 1), jnp.float32)
      >>> sums = Accumulator(jnp.int32([[-400, 600]]), scale=0.01 * one, offset=one, lo=0.0)  # followed by relu
      >>> to_real(sums)
      Array([[0., 7.]], dtype=float32)
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
        """The arrays beside the values, by the name of their field."""
        smalls = {"scale": self.scale, "offset": self.offset, "rows": self.rows}
        return {field: small for field, small in smalls.items() if small is not None}


Value = Array | Broadcast | QTensor | Accumulator
"""What a rule takes and returns: one of these types."""


def is_quantized(value: Value) -> bool:
    """Whether a value is integer data."""
    return isinstance(value, QTensor | Accumulator)


def to_real(value: Value) -> Any:
    """The array that a value stands for, in its dtype.

    Example:
      >>> from jaxq8.values import Array, to_real
      >>> to_real(Array(jnp.float32([1.0])))
      Array([1.], dtype=float32)
    """
    if isinstance(value, Array):
        return value.array
    if isinstance(value, Broadcast):
        return jnp.broadcast_to(value.small, value.shape)
    if isinstance(value, QTensor):
        if is_collecting() and not value.is_grouped:
            return numbers_of_codes(value.values, value.scale, value.zero_point).astype(value.dtype)
        return value.dequantize()
    return decode(value).astype(value.dtype)


def stored_vectors(vectors: dict[str, Any]) -> dict[str, Any]:
    """Small arrays, computed once and kept in memory. If all have one shape, a single loop computes them as one array."""
    if is_collecting():  # what a region reads is computed once anyway
        return dict(vectors)
    shapes = {jnp.shape(v) for v in vectors.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(vectors) == 1 or shape[:1] != (1,):
        return dict(stored(vectors))
    joined = stored(jax.lax.concatenate(list(vectors.values()), 0))
    return {name: jax.lax.slice_in_dim(joined, i, i + 1) for i, name in enumerate(vectors)}


def decode(acc: Accumulator) -> jax.Array:
    """The real numbers of an accumulator in float32."""
    # Stored, because XLA:CPU would otherwise compute the batch norm behind the vectors again for every element.
    vectors = stored_vectors(acc.smalls)
    scale = vectors["scale"] * vectors.get("rows", 1)
    real = real_numbers(acc.values, scale, vectors["offset"], lo=acc.lo, hi=acc.hi)
    if acc.straight:
        return straight_through(real_numbers(acc.values, scale, vectors["offset"], lo=-INF, hi=INF), real)
    return real


def origins(value: Value) -> tuple[Origin, ...]:
    """Where NaN in a value comes from.

    If data hold NaN, the scale of their codes is NaN. NaN that float arithmetic makes of finite numbers later on is in no
    scale.
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
    """(lo, hi) that are known while tracing; infinite where nothing is known."""
    if isinstance(value, Array | Accumulator):
        return value.lo, value.hi
    return -INF, INF


def constant(value: Value) -> float | None:
    """The number that all elements of a value are equal to, if it is known while tracing."""
    if isinstance(value, Array):
        if value.number is not None:
            return value.number
        data = value.array
    elif isinstance(value, Broadcast):
        data = value.small
    else:
        return None
    if not isinstance(data, np.ndarray | np.generic | float | int) or np.size(data) != 1:
        return None
    number = np.asarray(data)
    is_real = number.dtype.kind in "fiub" or number.dtype.name == "bfloat16"
    return float(number.reshape(())) if is_real else None


def is_outer(first: Any, second: Any) -> bool:
    """Whether two arrays vary along different axes, so that what is computed from both is larger than either."""
    rank = max(jnp.ndim(first), jnp.ndim(second))
    a, b = ((1,) * (rank - jnp.ndim(v)) + jnp.shape(v) for v in (first, second))
    pairs = [(m == 1, n == 1) for m, n in zip(a, b, strict=True)]
    return (True, False) in pairs and (False, True) in pairs


def aligned(value: Value, shape: tuple[int, ...]) -> Any | None:
    """`value` as a small float32 array of the rank of `shape`, with size 1 where it is constant; None if it is not small."""
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
