"""`PackedTensor`: a quantized weight whose codes lie as a native kernel wants them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxq8.errors import TensorError
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.qtensor import QTensor, describe, is_concrete, validate
from jaxq8.numerics.weight_moves import (
    Moves,
    from_canonical,
    from_logical,
    logical_shape,
    shapes,
    to_canonical,
    to_logical,
)
from jaxq8.operations import operation

_CHILDREN = ("packed", "sums", "scale", "zero_point")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PackedTensor:
    """A weight of eight-bit codes that lie in the blocked layout of a native kernel; the plain codes are not kept.

    It stands for the same numbers as the `QTensor` that it was packed from, and can be used wherever that can. The kernel
    that it was packed for reads the bytes as they are; everything else reads `unpack`, which is the QTensor bit for bit, on
    any processor. It is a pytree of four arrays: it can be passed to `jax.jit`, replicated, saved and donated like any array.
    Several packed tensors of one kind may be stacked by ``jax.tree.map`` for a scan or vmap that takes them apart again, but
    such a stack is not itself a weight.

    Attributes:
      packed: int8 with one axis, the codes with padding.
      sums: int32 (output channels,), the sum of each output channel's codes, in the order of the canonical form.
      scale: Float32 of the rank of `shape`, as that of the QTensor.
      zero_point: Int32 of the scale's shape, all 0.
      shape: The shape of the weight (static).
      moves: The steps that make an array of this shape canonical (static), see `jaxq8.numerics.weight_moves`.
      layout: Where each code lies (static).
      problem: What it was packed for, in the integers of the kernel (static).
      isa: The instruction set that it was packed for (static).
      bits: Width of a code (static).
      symmetric: Whether the zero point is known to be 0, which it is (static).
      dtype: The float dtype that the tensor stands for (static).
      signed: Whether codes are signed, which they are (static).

    Example:
      >>> kernel = q_vars["params"]["Dense_1"]["kernel"]  # codes (128, 10)
      >>> blocks = (2, 128, 10, 128, 16, 16, 2048, 1, 16, 1, 2048)  # 16 output channels next to each other, padded
      >>> packed = q8.PackedTensor.pack(kernel, layout=blocks, problem=(), isa="avx512_core_vnni")
      >>> packed
      PackedTensor(128x10, 8 bits, 2048 bytes for avx512_core_vnni, stands for float32)
      >>> bool((packed.unpack().values == kernel.values).all())
      True
    """

    packed: Any
    sums: Any
    scale: Any
    zero_point: Any
    shape: tuple[int, ...]
    moves: Moves
    layout: PackedLayout
    problem: tuple[int, ...]
    isa: str
    bits: int = 8
    symmetric: bool = True
    dtype: Any = np.dtype("float32")
    signed: bool | None = True

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        children, static = self.tree_flatten()
        return tuple(
            (jax.tree_util.GetAttrKey(n), c) for n, c in zip(_CHILDREN, children, strict=True)
        ), static

    def tree_flatten(self) -> tuple[Any, Any]:
        static = (
            self.shape, self.moves, self.layout, self.problem, self.isa, self.bits, self.symmetric, self.dtype, self.signed
        )  # fmt: skip
        return (self.packed, self.sums, self.scale, self.zero_point), static

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> PackedTensor:
        return cls(*children, *static)

    @classmethod
    def pack(
        cls, q: QTensor, *, layout: PackedLayout | Sequence[int], problem: Sequence[int], isa: str, moves: Moves = ()
    ) -> PackedTensor:  # fmt: skip
        """Packs the codes of a weight.

        Args:
          q: A weight of int8 codes without zero points, with scales for the tensor or for whole axes.
          layout: Where the codes are to lie, or the integers that `PackedLayout.from_words` reads.
          problem: What the layout is for, in the integers of the kernel; it is kept and not looked at.
          isa: The instruction set that the layout is for.
          moves: The steps that make the weight canonical: ("transpose", permutation) and ("reshape", shape). Of a weight with
            two canonical axes the layout has the same two; of more, it has those of a convolution.

        Returns:
          A PackedTensor that unpacks to `q`.

        Raises:
          TensorError: The codes are not int8, have zero points, or groups share scales; their numbers are not known (inside
            jit); the moves do not fit the weight, or the layout does not.

        Example:
          >>> q = q8.QTensor.from_float(jnp.eye(2), q8.Spec(symmetric=True))
          >>> turned = (2, 2, 2, 2, 2, 1, 2, 0, 4)  # columns, one after the other
          >>> q8.PackedTensor.pack(q, layout=turned, problem=(), isa="any").packed
          Array([127,   0,   0, 127], dtype=int8)
        """
        validate(q, "PackedTensor.pack")
        _check_codes(q)
        if not isinstance(layout, PackedLayout):
            layout = PackedLayout.from_words(layout)
        moves = tuple((str(kind), tuple(int(i) for i in argument)) for kind, argument in moves)
        empty = cls(
            None, None, q.scale, q.zero_point, q.shape, moves, layout, tuple(int(i) for i in problem), isa, q.bits,
            q.symmetric, q.dtype, q.signed,
        )  # fmt: skip
        layout.check()
        _check_axes(empty, "PackedTensor.pack")
        return empty.with_codes(q)

    def with_codes(self, q: QTensor) -> PackedTensor:
        """Other codes of the same shape, packed in the same way; their scale comes with them."""
        codes = to_canonical(np.asarray(q.values), self.moves)
        sums = codes.sum(tuple(range(codes.ndim - 1)), dtype=np.int32)
        packed = self.layout.pack(to_logical(codes, self._groups))
        if isinstance(q.values, jax.Array):
            packed, sums = jax.device_put((packed, sums), _placement(q.values))
        return dataclasses.replace(
            self, packed=packed, sums=sums, scale=q.scale, zero_point=q.zero_point, bits=q.bits,
            symmetric=q.symmetric, dtype=q.dtype, signed=q.signed,
        )  # fmt: skip

    def unpack(self) -> QTensor:
        """The QTensor that was packed, bit for bit; its codes are computed from the bytes, inside jit too."""
        values = unpacked_codes(
            self.packed, self.sums, shape=self.shape, moves=self.moves, layout=self.layout, problem=self.problem, isa=self.isa
        )  # fmt: skip
        return QTensor(
            values, self.scale, self.zero_point, self.bits, self.symmetric, self.dtype, self.signed
        )

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """The real numbers, in `dtype` (default: the dtype that the tensor stands for)."""
        return self.unpack().dequantize(dtype)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """The shape of the weight in canonical form."""
        return shapes(self.shape, self.moves)[-1]

    @property
    def groups(self) -> int:
        """The number of groups of a convolution; 1 of everything else."""
        return self._groups or 1

    @property
    def _groups(self) -> int | None:
        """The groups, or None where the layout has no axis of them."""
        return self.layout.dims[0] if len(self.layout.dims) == len(self.canonical_shape) + 1 else None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of packed codes, sums, scales and zero points together."""
        arrays = (self.packed, self.sums, self.scale, self.zero_point)
        return sum(math.prod(np.shape(a)) * np.dtype(a.dtype).itemsize for a in arrays)

    def __repr__(self) -> str:
        if not hasattr(self.packed, "dtype"):
            return f"PackedTensor({self.packed!r}, {self.sums!r}, {self.scale!r}, {self.zero_point!r})"
        shape, width = "x".join(map(str, self.shape)), f"{self.bits} bits"
        stands = np.dtype(self.dtype).name
        return (
            f"PackedTensor({shape}, {width}, {self.layout.nbytes} bytes for {self.isa}, stands for {stands})"
        )


def _plain(packed: Any, sums: Any, *, shape: tuple[int, ...], **static: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, packed.dtype)


@operation(_plain)
def unpacked_codes(
    packed: Any, sums: Any, *, shape: tuple[int, ...], moves: Moves, layout: PackedLayout, problem: tuple[int, ...], isa: str
) -> Any:  # fmt: skip
    """The codes of a packed weight in the user's shape; all unpacking goes through this function.

    Args:
      packed: int8 (layout.nbytes,), of NumPy or JAX, traced or not, or a `jax.ShapeDtypeStruct`.
      sums: int32 (output channels,); not needed to unpack, but whoever reads the packed bytes instead needs them.
      shape: The user's shape.
      moves: The steps that make an array of this shape canonical.
      layout: Where the codes lie.
      problem: What the weight was packed for.
      isa: The instruction set that it was packed for.

    Returns:
      Codes of the same dtype and kind of array.
    """
    if isinstance(packed, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, packed.dtype)
    spatial = len(shapes(shape, moves)[-1]) - 2
    return from_canonical(from_logical(layout.unpack(packed), spatial), moves, shape)


def validate_packed(p: PackedTensor, where: str) -> None:
    """Checks the shapes and dtypes that `PackedTensor`'s docstring gives, and reports all violations together.

    Raises:
      TensorError: Something is violated; the message names `where` and what it is.
    """
    p.layout.check()
    _check_axes(p, where)
    wrong = []
    parts = {
        "packed": (p.packed, np.int8, (p.layout.nbytes,)),
        "sums": (p.sums, np.int32, p.canonical_shape[-1:]),
    }
    for name, (part, dtype, shape) in parts.items():
        if np.dtype(part.dtype) != dtype or tuple(part.shape) != shape:
            wrong.append(f"{name} is {describe(part)}; expected {np.dtype(dtype)}{list(shape)}")
    fits = all(s in (1, n) for s, n in zip(p.scale.shape, p.shape, strict=False))
    if len(p.scale.shape) != p.ndim or not fits or p.zero_point.shape != p.scale.shape:
        wrong.append(
            f"scale {p.scale.shape} and zero_point {p.zero_point.shape} do not broadcast to shape {p.shape}"
        )
    if wrong:
        remedy = (
            "; a stack of packed tensors is taken apart by scan or vmap first" if p.packed.ndim > 1 else ""
        )
        raise TensorError(f"{where}: not a valid PackedTensor: {'; '.join(wrong)}{remedy}")


def _check_codes(q: QTensor) -> None:
    """Refuses weights that native kernels cannot take, or that cannot be packed now."""
    if q.is_grouped:
        raise TensorError(
            f"PackedTensor.pack: groups of neighbours share the scales {q.scale.shape} of the codes {q.shape}, which no "
            "native kernel takes; use granularity 'channel' or 'tensor'"
        )
    if not q.symmetric:
        raise TensorError("PackedTensor.pack: the weight has zero points; encode it with symmetric=True")
    if np.dtype(q.values.dtype) != np.int8:
        raise TensorError(f"PackedTensor.pack: the codes are {describe(q.values)}; only int8 can be packed")
    if not is_concrete(q.values):
        raise TensorError(
            f"PackedTensor.pack: the codes {describe(q.values)} are not known; pack outside of jit"
        )


def _check_axes(p: PackedTensor, where: str) -> None:
    """Makes sure that the moves lead from the shape to the layout's sizes."""
    canonical = shapes(p.shape, p.moves)[-1]
    if len(canonical) < 2:
        raise TensorError(f"{where}: a weight of canonical shape {canonical} is not that of a contraction")
    groups = p._groups
    divides = groups is None or canonical[-1] % groups == 0
    if not divides or logical_shape(canonical, groups) != p.layout.dims:
        raise TensorError(
            f"{where}: canonical shape {canonical} does not fit a layout of dims {p.layout.dims}"
        )


def _placement(x: jax.Array) -> Any:
    """Where the packed codes go: onto the devices of the plain ones, as a copy on each."""
    sharding = x.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding if len(sharding.device_set) == 1 else None
