"""Arithmetic on elements as trees.

A tree is built from the equations between what a region stores. It computes float32 numbers, or int32 numbers where `is_int`
says so; truths are the numbers 1.0 and 0.0. What is linear in a contraction's result becomes part of the contraction's own step
(`jaxq8.regions.linear`); any other tree becomes a step of its own (`jaxq8.regions.instructions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A small array of numbers that are known while tracing, float32 or int32."""

    array: np.ndarray

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def is_int(self) -> bool:
        return self.array.dtype == np.int32

    @property
    def number(self) -> float | None:
        """The number that all elements are equal to; None if they differ."""
        flat = self.array.reshape(-1)
        return float(flat[0]) if flat.size and bool((flat == flat[0]).all()) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A tensor that a tree reads: a variable, or the int32 result of a contraction that is not stored yet.

    Attributes:
      variable: The variable.
      shape: The shape in which the tree reads it.
      is_small: Whether it is a number or one number for each channel.
      contraction: The position of the contraction that makes it; None for a tensor that is stored.
      is_first: Whether only the first number of a vector is read.
      is_int: Whether its numbers are read as int32.
    """

    variable: Any
    shape: Shape
    is_small: bool = False
    contraction: int | None = None
    is_first: bool = False
    is_int: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An operation of a tree.

    Attributes:
      name: A name of `steps.BINARY` or `steps.UNARY`, or "select": the second operand where the first is not
        0.0, else the third.
      operands: What it is applied to.
      positive: Whether the second factor of a product is known to be positive, or NaN.
    """

    name: str
    operands: tuple[Tree, ...]
    positive: bool = False

    @property
    def is_int(self) -> bool:
        if self.name == "select":
            return is_int(self.operands[1])
        return self.name.startswith("int_") or self.name == "to_int"


Tree = Node | Leaf | Known


def is_int(tree: Tree) -> bool:
    """Whether a tree computes int32 numbers."""
    return tree.is_int


def as_float(tree: Tree) -> Tree:
    """The same numbers as float32."""
    if not tree.is_int:
        return tree
    if isinstance(tree, Known):
        return Known(tree.array.astype(np.float32))
    return Node("to_float", (tree,)) if isinstance(tree, Node) else dataclasses.replace(tree, is_int=False)


def as_int(tree: Tree) -> Tree:
    """The same numbers as int32; fractions are cut off."""
    if tree.is_int:
        return tree
    if isinstance(tree, Known):
        return Known(tree.array.astype(np.int32))
    if isinstance(tree, Leaf) and np.dtype(tree.variable.aval.dtype).kind in "iu":
        return dataclasses.replace(tree, is_int=True)
    return Node("to_int", (tree,))


def number(value: float) -> Known:
    """A known number."""
    return Known(np.asarray(value, np.float32))


ONE, ZERO = number(1.0), number(0.0)


def known(tree: Tree) -> float | None:
    """The number that a tree is equal to, if it is known while tracing."""
    return tree.number if isinstance(tree, Known) else None


def shape_of(tree: Tree) -> Shape:
    """The shape of what a tree computes."""
    if isinstance(tree, Node):
        return tuple(np.broadcast_shapes(*map(shape_of, tree.operands)))
    return tree.shape


def product(first: Tree, second: Tree, positive: bool = False) -> Tree:
    """``first * second``."""
    if known(second) == 1 and len(shape_of(second)) <= len(shape_of(first)):
        return first
    if known(first) == 1 and len(shape_of(first)) <= len(shape_of(second)):
        return second
    return Node("mul", (first, second), positive)


def total(first: Tree, second: Tree) -> Tree:
    """``first + second``."""
    if known(second) == 0 and len(shape_of(second)) <= len(shape_of(first)):
        return first
    if known(first) == 0 and len(shape_of(first)) <= len(shape_of(second)):
        return second
    return Node("add", (first, second))


def first(tree: Tree) -> Tree:
    """The first number of what a small tree computes, in its rank."""
    if isinstance(tree, Node):
        return dataclasses.replace(tree, operands=tuple(map(first, tree.operands)))
    if isinstance(tree, Known):
        return Known(tree.array[..., :1] if tree.array.ndim else tree.array)
    if math.prod(tree.shape) == 1:
        return tree
    return dataclasses.replace(tree, shape=(1,) * len(tree.shape), is_first=True)


def placed(tree: Tree, axes: Sequence[int], rank: int) -> Tree:
    """What a tree computes with other axes: axis i becomes axis ``axes[i]`` of `rank` axes, the others have size 1."""
    if not axes:
        return tree  # one number is broadcast as it is

    def moved(shape: Shape) -> Shape:
        sizes = [1] * rank
        for axis, n in zip(axes, (1,) * (len(axes) - len(shape)) + shape, strict=True):
            sizes[axis] = n
        return tuple(sizes)

    if isinstance(tree, Node):
        operands = tuple(placed(operand, axes, rank) for operand in tree.operands)
        return dataclasses.replace(tree, operands=operands)
    shape = moved(tree.shape)
    if isinstance(tree, Known):
        return Known(tree.array.reshape(shape))
    return dataclasses.replace(tree, shape=shape, is_small=tree.is_small and has_small_shape(shape))


def has_small_shape(shape: Shape) -> bool:
    """Whether an array of this shape is one number, or numbers along the last axis."""
    return math.prod(shape) in (1, *shape[-1:])


def is_small(tree: Tree) -> bool:
    """Whether a tree reads only what is small."""
    if isinstance(tree, Node):
        return all(map(is_small, tree.operands))
    return isinstance(tree, Known) or tree.is_small
