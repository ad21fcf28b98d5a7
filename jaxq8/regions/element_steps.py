"""Trees as steps of their own: what they read, what is computed once for many elements, and how they are stored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxq8.regions import expressions as ex
from jaxq8.regions.builder import Builder
from jaxq8.regions.instructions import Key, TooLargeError, instructions, key, leaves
from jaxq8.regions.places import Places
from jaxq8.regions.steps import ENCODE, STORE, STORE_INT, Elementwise

Shape = tuple[int, ...]
FEWER = 4  # a part with so many times fewer elements than its tree is computed in a step before it
_STORES = {"float32": STORE, "int32": STORE_INT}


class ElementSteps:
    """Adds elementwise steps to a program while it is made.

    Attributes:
      places: The tensors of the region's variables.
      accumulator: Stores the int32 result of a leaf's contraction and returns its tensor.
    """

    def __init__(self, places: Places, accumulator: Callable[[ex.Leaf], int]) -> None:
        self.places, self.accumulator = places, accumulator
        self.builder: Builder = places.builder

    def add(self, trees: Sequence[ex.Tree], homes: Sequence[int], shape: Shape) -> None:
        """Adds the step that stores trees of one shape in tensors of this shape."""
        done: dict[int, ex.Tree] = {}
        trees = [self._apart(tree, math.prod(shape), done) for tree in trees]
        self._step(
            trees, homes, shape, lambda leaf: self.builder.expanded(self._stored(leaf), _ranked(leaf, shape))
        )

    def add_flat(self, trees: Sequence[ex.Tree], homes: Sequence[int], shape: Shape) -> None:
        """The same for vectors: each tensor is read as a vector, whatever its axes are."""

        def read(leaf: ex.Leaf | ex.Known) -> int:
            tensor = self.places.dense(self._stored(leaf))
            return self.builder.reshaped(tensor, (math.prod(self.builder.shape(tensor)),))

        self._step(trees, homes, shape, read)

    def _step(
        self, trees: Sequence[ex.Tree], homes: Sequence[int], shape: Shape,
        read: Callable[[ex.Leaf | ex.Known], int],
    ) -> None:  # fmt: skip
        stores = [_STORES.get(self.builder.dtype(home), ENCODE) for home in homes]
        trees = [
            ex.as_int(tree) if store == STORE_INT else ex.as_float(tree)
            for tree, store in zip(trees, stores, strict=True)
        ]
        numbers: dict[Key, int] = {}
        inputs: list[int] = []
        for leaf in leaves(trees):
            numbers[key(leaf)] = len(inputs)
            inputs.append(read(leaf))
        try:
            code = instructions(trees, numbers, stores)
        except TooLargeError:
            self._in_parts(trees, homes, shape, read)
            return
        self.places.add(Elementwise(shape, tuple(inputs), tuple(homes), code))

    def _in_parts(
        self, trees: Sequence[ex.Tree], homes: Sequence[int], shape: Shape,
        read: Callable[[ex.Leaf | ex.Known], int],
    ) -> None:  # fmt: skip
        """Stores trees that need too many registers: the operands of each become tensors first."""
        for tree, home in zip(trees, homes, strict=True):
            assert isinstance(tree, ex.Node)
            parts: list[ex.Tree] = []
            for operand in tree.operands:
                if not isinstance(operand, ex.Node):
                    parts.append(operand)
                    continue
                part = self._temporary(operand, shape)
                self._step([operand], [self.places.tensors[part.variable]], shape, read)
                parts.append(part)
            self._step([dataclasses.replace(tree, operands=tuple(parts))], [home], shape, read)

    def _apart(self, tree: ex.Tree, size: int, done: dict[int, ex.Tree]) -> ex.Tree:
        """A tree in which parts of far fewer elements, such as one for each row, are read from tensors computed before."""
        if not isinstance(tree, ex.Node):
            return tree
        if id(tree) not in done:
            shape = ex.shape_of(tree)
            if math.prod(shape) * FEWER <= size:
                part = self._temporary(tree, shape)
                homes = [self.builder.reshaped(self.places.tensors[part.variable], shape or (1,))]
                self.add([tree], homes, shape or (1,))
                done[id(tree)] = part
            else:
                operands = tuple(self._apart(operand, size, done) for operand in tree.operands)
                done[id(tree)] = dataclasses.replace(tree, operands=operands)
        return done[id(tree)]

    def _temporary(self, tree: ex.Node, shape: Shape) -> ex.Leaf:
        """A leaf in place of a part of a tree, with a tensor that holds it."""
        part = ex.Leaf(object(), shape, is_int=tree.is_int)
        dtype = np.int32 if tree.is_int else np.float32
        self.places.tensors[part.variable] = self.builder.temporary(shape, dtype)
        return part

    def _stored(self, leaf: ex.Leaf | ex.Known) -> int:
        """The tensor of a leaf; the accumulator of a contraction is stored as int32 for it."""
        if isinstance(leaf, ex.Known):
            return self.places.constant(leaf, leaf.shape)
        if leaf.contraction is not None:
            return self.builder.reshaped(self.accumulator(leaf), leaf.shape)
        tensor = self.places.tensor(leaf.variable)
        if not leaf.is_first:
            return tensor
        ones = (1,) * len(self.builder.shape(tensor))
        return self.builder.cut(tensor, (0,) * len(ones), ones)


def _ranked(leaf: ex.Leaf | ex.Known, shape: Shape) -> Shape:
    """The shape of a leaf with as many axes as the step has."""
    return (1,) * (len(shape) - len(leaf.shape)) + leaf.shape
