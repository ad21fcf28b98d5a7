"""`CodeBook`: weights as indices into a short list of values that k-means chooses; the values are eight-bit codes."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.errors import TensorError
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor, describe, is_qtensor, kept_axes
from jaxq8.numerics.spec import Spec

ROUNDS = 25  # of k-means; further rounds change the error of 16 levels by less than one percent


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CodeBook:
    """A weight in which each element is one of a few values, listed in a book for the whole tensor or for each channel.

    ``real = scale * book[index]``. One look-up (`codes`) makes a `QTensor` of eight bits, so everything that computes with
    QTensors, in integers too, also computes with code books. In a file an index takes `bits` bits.

    Attributes:
      indices: uint8, the index of each element's value.
      book: int8, with the axes of `scale` and a last axis of ``2**bits`` values.
      scale: Float32 of the rank of the indices, with size 1 on axes that share a book.
      bits: Width of an index (static).
      dtype: The float dtype that the tensor stands for (static).

    Example:
      >>> kernel = variables["params"]["Dense_0"]["kernel"]  # float32 (256, 128)
      >>> q8.CodeBook.from_float(kernel, q8.Spec(bits=4, levels="kmeans", granularity="channel"))
      CodeBook(256x128, 4 bits, 128 books, stands for float32)
    """

    indices: Any
    book: Any
    scale: Any
    bits: int
    dtype: Any = np.dtype("float32")

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        names = ("indices", "book", "scale")
        children, static = self.tree_flatten()
        return tuple((jax.tree_util.GetAttrKey(n), c) for n, c in zip(names, children, strict=True)), static

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.indices, self.book, self.scale), (self.bits, self.dtype)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> CodeBook:
        return cls(*children, *static)

    @classmethod
    def from_float(cls, x: Any, spec: Spec, *, axis: int | tuple[int, ...] | None = None) -> CodeBook:
        """Chooses the values by k-means (Lloyd 1982) and gives each element the nearest of them.

        K-means starts from the quantiles of the data, from evenly spaced values and from the smallest distinct values, and
        the best of the three results is kept. Apart from the rounding of the book itself to eight bits, the error is
        therefore never above that of an even grid of as many values, and data with no more distinct values than the book has
        are represented exactly.

        Args:
          x: Float array, not empty.
          spec: A `Spec` with ``levels="kmeans"``; its bits are those of an index.
          axis: Axes that keep books of their own; default from the granularity.

        Returns:
          A CodeBook of the same shape.

        Raises:
          TensorError: `x` is not a float array or is empty.

        Example:
          >>> book = q8.CodeBook.from_float(jnp.float32([0, 2, 2, 127]), q8.Spec(bits=2, levels="kmeans"))
          >>> book.dequantize()
          Array([  0.,   2.,   2., 127.], dtype=float32)
        """
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating) or 0 in x.shape:
            raise TensorError(f"CodeBook.from_float: expected a float array with elements, got {describe(x)}")
        # One row for each book: the axes that keep books of their own come first.
        keep = kept_axes(x.ndim, spec, axis)
        order = (*keep, *(a for a in range(x.ndim) if a not in keep))
        moved = jnp.transpose(jnp.asarray(x, jnp.float32), order)
        rows = moved.reshape(int(np.prod([x.shape[a] for a in keep], dtype=int)), -1)
        book, scale, indices = _fitted(rows, 2**spec.bits)
        back = [order.index(a) for a in range(x.ndim)]
        indices = jnp.transpose(indices.reshape(moved.shape), back)
        shape = tuple(n if a in keep else 1 for a, n in enumerate(x.shape))
        return cls(indices, book.reshape(*shape, -1), scale.reshape(shape), spec.bits, np.dtype(x.dtype))

    def codes(self) -> QTensor:
        """The elements as eight-bit codes, the form that every kernel takes."""
        books, count = self.book.reshape(-1), self.book.shape[-1]
        first = jnp.arange(books.size // count).reshape(self.scale.shape) * count
        values = jnp.take(books, first + jnp.asarray(self.indices).astype(jnp.int32), mode="clip")
        return QTensor(values, self.scale, jnp.zeros(self.scale.shape, jnp.int32), 8, True, self.dtype)

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """The real numbers, in `dtype` (default: the dtype that the tensor stands for)."""
        return self.codes().dequantize(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.indices.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __repr__(self) -> str:
        if not hasattr(self.indices, "dtype"):
            return f"CodeBook({self.indices!r}, {self.book!r}, {self.scale!r})"
        shape, books = "x".join(map(str, self.shape)), int(np.prod(self.scale.shape))
        return f"CodeBook({shape}, {self.bits} bits, {books} books, stands for {np.dtype(self.dtype).name})"


def validate_book(b: CodeBook, where: str) -> None:
    """Checks the shapes and dtypes that `CodeBook`'s docstring gives, and reports all violations together.

    Raises:
      TensorError: An invariant is violated; the message names `where` and each violated invariant.
    """
    wrong = []
    fits = all(s in (1, n) for s, n in zip(b.scale.shape, b.shape, strict=False))
    if len(b.scale.shape) != b.ndim or not fits:
        wrong.append(f"scale {b.scale.shape} does not broadcast to indices {b.shape}")
    if tuple(b.book.shape) != (*b.scale.shape, 2**b.bits):
        wrong.append(f"book {b.book.shape} is not that of scale {b.scale.shape} and {b.bits} bits")
    if (np.dtype(b.indices.dtype), np.dtype(b.book.dtype)) != (np.uint8, np.int8):
        wrong.append(f"indices are {b.indices.dtype} and the book is {b.book.dtype}; expected uint8 and int8")
    if wrong:
        raise TensorError(f"{where}: not a valid CodeBook: " + "; ".join(wrong))


def is_encoded(x: Any) -> bool:
    """Whether a leaf is a QTensor, a CodeBook or a PackedTensor; for ``tree_map(..., is_leaf=is_encoded)``."""
    return is_qtensor(x) or isinstance(x, CodeBook | PackedTensor)


def as_codes(x: Any) -> Any:
    """A code book or a packed weight as a QTensor of the same numbers; anything else as it is."""
    if isinstance(x, PackedTensor):
        return x.unpack()
    return x.codes() if isinstance(x, CodeBook) else x


@partial(jax.jit, static_argnums=1)
def _fitted(rows: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The book (r, count) in int8, scale (r,) and indices (r, n) in uint8 of rows (r, n)."""
    middle = (jnp.arange(count) + 0.5) / count
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    even = low + (high - low) * jnp.linspace(0, 1, count)
    starts = jnp.stack([jnp.quantile(rows, middle, axis=1).T, even, _distinct(rows, count)])
    levels, errors = jax.lax.map(lambda start: _kmeans(rows, start), starts)
    best = jnp.take_along_axis(levels, jnp.argmin(errors, 0)[None, :, None], 0)[0]
    size = jnp.abs(best).max(1, keepdims=True) / 127
    scale = jnp.where(size > jnp.finfo(jnp.float32).tiny * 4, size, 1)
    book = jnp.round(best / scale)
    return book.astype(jnp.int8), scale[:, 0], _nearest(rows, book * scale).astype(jnp.uint8)


def _distinct(rows: jax.Array, count: int) -> jax.Array:
    """The `count` smallest distinct values of each row; a row that has no more distinct values is represented exactly."""
    ordered = jnp.sort(rows, axis=1)
    new = jnp.pad(ordered[:, 1:] > ordered[:, :-1], ((0, 0), (1, 0)))
    rest = jnp.repeat(ordered[:, -1:], count, axis=1)
    place = jax.vmap(lambda into, rank, values: into.at[rank].set(values, mode="drop"))
    return place(rest, jnp.cumsum(new, axis=1), ordered)


def _kmeans(rows: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorted levels (r, count) and the squared error of each row; a level that no element is nearest to stays as it is."""

    def improve(_: int, levels: jax.Array) -> jax.Array:
        indices = _nearest(rows, levels)

        def mean(j: jax.Array) -> jax.Array:
            members = indices == j
            sums, counts = jnp.where(members, rows, 0).sum(1), members.sum(1)
            return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), levels[:, j])

        return jax.lax.map(mean, jnp.arange(levels.shape[1])).T

    levels = jax.lax.fori_loop(0, ROUNDS, improve, start)
    found = jnp.take_along_axis(levels, _nearest(rows, levels), 1)
    return levels, ((rows - found) ** 2).sum(1)


def _nearest(rows: jax.Array, levels: jax.Array) -> jax.Array:
    """The index of the nearest of the sorted levels, which is the number of midpoints between levels that lie below."""
    between = (levels[:, 1:] + levels[:, :-1]) / 2

    def count(j: int, indices: jax.Array) -> jax.Array:
        return indices + (rows > between[:, j, None])

    return jax.lax.fori_loop(0, between.shape[1], count, jnp.zeros(rows.shape, jnp.int32))
