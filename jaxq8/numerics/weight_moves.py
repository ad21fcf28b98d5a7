"""The way of a weight from the user's array over the canonical form of its contraction to oneDNN's axes, and back.

Three forms occur::

    the user's      any shape
    canonical       (*kernel, c_in / groups, c_out) of a convolution, (K, N) of a product      jaxq8.kernels.canonical
    logical         (c_out, c_in, *kernel), in groups (groups, c_out / groups, c_in / groups, *kernel), or (K, N)

In groups the canonical output channel is ``group * (c_out / groups) + o``. All functions take arrays of NumPy and of JAX.
"""

from __future__ import annotations

import math
from typing import Any

from jaxq8.errors import TensorError

# Steps that make a user's array canonical, applied in order: ("transpose", permutation) or ("reshape", shape).
Moves = tuple[tuple[str, tuple[int, ...]], ...]


def shapes(shape: tuple[int, ...], moves: Moves) -> list[tuple[int, ...]]:
    """The shapes before, between and after the moves of an array.

    Raises:
      TensorError: A move is unknown or does not fit the shape before it.
    """
    found = [tuple(shape)]
    for kind, argument in moves:
        last = found[-1]
        if kind == "transpose" and sorted(argument) == list(range(len(last))):
            found.append(tuple(last[axis] for axis in argument))
        elif kind == "reshape" and min(argument, default=1) >= 0 and math.prod(argument) == math.prod(last):
            found.append(tuple(argument))
        else:
            raise TensorError(f"packed weight: {kind} by {argument} does not fit an array of shape {last}")
    return found


def to_canonical(x: Any, moves: Moves) -> Any:
    """The user's array in canonical form."""
    for kind, argument in moves:
        x = x.transpose(argument) if kind == "transpose" else x.reshape(argument)
    return x


def from_canonical(x: Any, moves: Moves, shape: tuple[int, ...]) -> Any:
    """The user's array of this shape; the inverse of `to_canonical`."""
    for (kind, argument), before in zip(reversed(moves), reversed(shapes(shape, moves)[:-1]), strict=True):
        back = sorted(range(len(argument)), key=argument.__getitem__)
        x = x.transpose(back) if kind == "transpose" else x.reshape(before)
    return x


def logical_shape(canonical: tuple[int, ...], groups: int | None) -> tuple[int, ...]:
    """The logical sizes of a weight of canonical shape; `groups` is None where the logical form has no axis of groups."""
    *kernel, c_in, c_out = canonical
    if groups is None:
        return (c_out, c_in, *kernel) if kernel else (c_in, c_out)
    return (groups, c_out // groups, c_in, *kernel)


def to_logical(x: Any, groups: int | None = None) -> Any:
    """A canonical weight with the logical axes.

    Args:
      x: Array in canonical form, of at least two axes.
      groups: The number of groups, which divides the output channels; None for a form without an axis of groups.
    """
    spatial = len(x.shape) - 2
    kernel = tuple(range(spatial))
    if groups is None:
        return x.transpose((spatial + 1, spatial, *kernel)) if kernel else x
    split = x.reshape((*x.shape[:-1], groups, x.shape[-1] // groups))
    return split.transpose((spatial + 1, spatial + 2, spatial, *kernel))


def from_logical(x: Any, spatial: int) -> Any:
    """A weight with logical axes in canonical form; the inverse of `to_logical`.

    Args:
      x: Array in logical form; one axis more than the canonical form has is that of groups.
      spatial: The number of axes of the kernel; 0 for a product.
    """
    if len(x.shape) == spatial + 3:
        joined = x.transpose((*range(3, spatial + 3), 2, 0, 1))
        return joined.reshape((*joined.shape[:-2], joined.shape[-2] * joined.shape[-1]))
    return x.transpose((*range(2, spatial + 2), 1, 0)) if spatial else x
