"""`PackedLayout`: where each code of a weight lies among the bytes of a blocked layout, as oneDNN describes such layouts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from jaxq8.errors import TensorError


@dataclasses.dataclass(frozen=True)
class PackedLayout:
    """How an array of int8 codes lies in bytes: padded with zeros, cut into blocks, the blocks one after the other.

    An axis of `padded` size n with inner blocks of b1 (outermost) and b2 has n / (b1 * b2) outer blocks; index
    ``(outer * b1 + i1) * b2 + i2`` lies at ``outer * stride`` plus the place of (i1, i2) among the inner blocks of all axes.
    The layout is dense: every byte belongs to one element of the padded array. `from_words` makes sure of that.

    A layout is hashable, and equal layouts are equal objects, so it can be a static part of a pytree.

    Attributes:
      dims: The logical sizes.
      padded: The sizes with padding, each a multiple of the axis's inner blocks.
      strides: For each axis the distance of neighbouring outer blocks, in elements.
      inner: (axis, size) of the inner blocks, from the outermost to the innermost; an axis may have several.

    Example:
      >>> from jaxq8.numerics.packed_layout import PackedLayout
      >>> layout = PackedLayout((2, 3), (2, 4), (4, 4), ((1, 4),))  # rows of three codes, padded to four
      >>> layout.pack(np.int8([[1, 2, 3], [4, 5, 6]]))
      array([1, 2, 3, 0, 4, 5, 6, 0], dtype=int8)
    """

    dims: tuple[int, ...]
    padded: tuple[int, ...]
    strides: tuple[int, ...]
    inner: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_words(cls, words: Sequence[int]) -> PackedLayout:
        """Reads the integers in which oneDNN's description of a memory is handed over.

        Args:
          words: ndims, the dims, the padded dims, the strides, the number of inner blocks, their sizes, their axes, and the
            number of bytes.

        Raises:
          TensorError: The integers do not have this form, or do not describe a dense blocked array of so many bytes.
        """
        words = [int(w) for w in words]
        if not words or not 1 <= words[0] <= len(words):
            _refuse(words, "the first integer is not the number of axes")
        n, at = words[0], 1 + 3 * words[0]
        count = words[at] if at < len(words) else -1
        if count < 0 or len(words) != at + 1 + 2 * count + 1:
            _refuse(words, "their number is not that of the axes and inner blocks")
        dims, padded, strides = (tuple(words[1 + i * n : 1 + (i + 1) * n]) for i in range(3))
        sizes, axes = words[at + 1 : at + 1 + count], words[at + 1 + count : at + 1 + 2 * count]
        layout = cls(dims, padded, strides, tuple(zip(axes, sizes, strict=True)))
        layout.check(words[-1])
        return layout

    @property
    def words(self) -> tuple[int, ...]:
        """The integers that `from_words` reads."""
        axes, sizes = (tuple(pair[i] for pair in self.inner) for i in (0, 1))
        shapes = (*self.dims, *self.padded, *self.strides)
        return (len(self.dims), *shapes, len(self.inner), *sizes, *axes, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, padding included."""
        return math.prod(self.padded)

    def check(self, nbytes: int | None = None) -> None:
        """Makes sure that the layout is dense.

        Args:
          nbytes: The number of bytes that the array is said to have; default: not checked.

        Raises:
          TensorError: It is not; the message says what is wrong.
        """
        if not len(self.dims) == len(self.padded) == len(self.strides):
            _refuse(self, "dims, padded dims and strides differ in number")
        if any(not 0 <= axis < len(self.dims) or size < 1 for axis, size in self.inner):
            _refuse(self, "an inner block has no such axis or no elements")
        if any(d < 1 or p < d for d, p in zip(self.dims, self.padded, strict=True)):
            _refuse(self, "a size is not positive or is larger than its padded size")
        if any(p % self._block(axis) for axis, p in enumerate(self.padded)):
            _refuse(self, "a padded size is no multiple of its inner blocks")
        expected = math.prod(size for _, size in self.inner)
        for axis in reversed(self._order()):
            # The stride of an axis with one block is never used, and oneDNN may report anything for it.
            if self._outer(axis) > 1:
                if self.strides[axis] != expected:
                    _refuse(self, f"the stride of axis {axis} is {self.strides[axis]} and not {expected}")
                expected *= self._outer(axis)
        if nbytes is not None and nbytes != self.nbytes:
            _refuse(self, f"it has {self.nbytes} bytes and not {nbytes}")

    def pack(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The bytes of codes.

        Args:
          codes: int8 codes in the logical sizes `dims`.

        Returns:
          An array of the same dtype with one axis of `nbytes` elements; the padding is 0.

        Raises:
          TensorError: The codes have other sizes.
        """
        if tuple(codes.shape) != self.dims:
            raise TensorError(
                f"packed layout: codes of shape {tuple(codes.shape)} do not fit dims {self.dims}"
            )
        more = [(0, p - d) for d, p in zip(self.dims, self.padded, strict=True)]
        whole = np.pad(codes, more) if self.dims != self.padded else codes
        split = whole.reshape([n for axis in range(len(self.dims)) for n in self._parts(axis)])
        return np.ascontiguousarray(split.transpose(self._places())).reshape(-1)

    def unpack(self, packed: Any) -> Any:
        """The codes that bytes hold; the inverse of `pack`, by reshaping, transposing and slicing alone.

        Args:
          packed: An array with one axis of `nbytes` elements, of NumPy or of JAX, traced or not.

        Returns:
          The same kind of array in the logical sizes `dims`.
        """
        places = self._places()
        split = [n for axis in range(len(self.dims)) for n in self._parts(axis)]
        back = sorted(range(len(places)), key=places.__getitem__)
        whole = packed.reshape([split[p] for p in places]).transpose(back).reshape(self.padded)
        return whole[tuple(slice(d) for d in self.dims)] if self.dims != self.padded else whole

    def places(self, axis: int) -> np.ndarray[Any, Any]:
        """Where the indices of an axis lie; the byte of an element is the sum of the places of its indices along all axes.

        Args:
          axis: One of the logical axes.

        Returns:
          An int64 vector with a number for each index of the axis.
        """
        rest, found, size = np.arange(self.dims[axis]), np.zeros(self.dims[axis], np.int64), 1
        for other, n in reversed(self.inner):
            if other == axis:
                found += rest % n * size
                rest //= n
            size *= n
        return found + rest * self.strides[axis]

    def _block(self, axis: int) -> int:
        return math.prod(size for a, size in self.inner if a == axis)

    def _outer(self, axis: int) -> int:
        return self.padded[axis] // self._block(axis)

    def _order(self) -> list[int]:
        """The axes in the order of their outer blocks in memory; the sort is stable, and axes of one block do not matter."""
        return sorted(
            range(len(self.dims)), key=lambda axis: -self.strides[axis] if self._outer(axis) > 1 else 0
        )

    def _parts(self, axis: int) -> list[int]:
        """The sizes into which an axis is split: its outer blocks, then its inner blocks."""
        return [self._outer(axis), *(size for a, size in self.inner if a == axis)]

    def _places(self) -> list[int]:
        """The order in memory of the axes that the split array has: all outer blocks, then the inner blocks."""
        first = [0]
        for axis in range(len(self.dims)):
            first.append(first[-1] + len(self._parts(axis)))
        places, used = [first[axis] for axis in self._order()], [1] * len(self.dims)
        for axis, _ in self.inner:
            places.append(first[axis] + used[axis])
            used[axis] += 1
        return places


def _refuse(what: object, why: str) -> NoReturn:
    raise TensorError(f"packed layout: {str(what)[:300]} is not that of a dense blocked array: {why}")
