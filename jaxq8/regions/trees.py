"""Builds the trees of `jaxq8.regions.expressions` from equations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.epilogue import codes_of, numbers_of_codes, real_numbers
from jaxq8.kernels.registry import contraction
from jaxq8.regions.candidates import CONVERT, NAME_OF, VIEWS
from jaxq8.regions.expressions import Leaf, Node, Tree
from jaxq8.regions.graph import Graph
from jaxq8.regions.vectors import Vector

KNOWN = 1 << 12  # constants of more elements are read as tensors


class Trees:
    """The trees of a group."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._vectors: dict[Any, Vector] = {}

    def of_root(self, variable: Any) -> Tree:
        """The tree that computes a variable, without the clips and the rounding of codes."""
        return self._computed(self.graph.maker(variable), variable, {})

    def _tree(self, atom: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        """What an equation of the tree of `root` reads."""
        atom = self.graph.real(atom)
        if isinstance(atom, Literal):
            return Vector.of(atom.val)
        if atom not in done:
            done[atom] = self._read(atom, root, done)
        return done[atom]

    def _read(self, variable: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        maker = self.graph.maker(variable)
        if maker is None:
            return self._outside(variable)
        base = self.graph.base(variable)
        origin = self.graph.maker(base)
        is_inner = self.graph.roots[variable] in (root, None)
        if origin is not None and origin.primitive is contraction.primitive and self.graph.roots[base] is root:
            return Leaf(base, tuple(variable.aval.shape), self.graph.position[base])
        if maker.primitive in VIEWS or not is_inner:
            return Leaf(variable, tuple(variable.aval.shape))
        return self._computed(maker, root, done)

    def _computed(self, eqn: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        p = eqn.primitive
        operands = [self._tree(v, root, done) for v in eqn.invars]
        if p is real_numbers.primitive:
            values, scale, offset = operands
            return _clipped(_affine(values, scale, offset), eqn.params["lo"], eqn.params["hi"])
        if p is codes_of.primitive:
            values, multiplier, offset = operands
            if eqn.invars[0].aval.dtype == np.float32 and isinstance(multiplier, Vector):
                multiplier = dataclasses.replace(multiplier, positive=True)
            return _affine(values, multiplier, offset)
        if p is numbers_of_codes.primitive:
            values, scale, zero = operands
            return Node("mul", (values if _is_zero(zero) else Node("sub", (values, zero)), scale))
        if p is CONVERT:
            return operands[0]
        return Node(NAME_OF[p], tuple(operands))

    def _outside(self, variable: Any) -> Tree:
        """A variable from outside: a vector if it is small, else a tensor."""
        if variable not in self._vectors:
            found = self._vector(variable)
            if found is None:
                return Leaf(variable, tuple(variable.aval.shape))
            self._vectors[variable] = found
        return self._vectors[variable]

    def _vector(self, variable: Any) -> Vector | None:
        known = self.graph.consts.get(variable)
        if known is not None and isinstance(known, np.ndarray | np.generic) and known.size <= KNOWN:
            return Vector.of(known)
        shape = tuple(variable.aval.shape)
        maker = self.graph.makers.get(variable)
        if maker is not None and maker.primitive is primitives.broadcast_in_dim_p and len(maker.invars) == 1:
            inner = maker.invars[0]
            small = Vector.of(inner.val) if isinstance(inner, Literal) else self._vector(inner)
            if small is not None:
                sizes = [1] * len(shape)
                for axis, n in zip(maker.params["broadcast_dimensions"], small.shape, strict=True):
                    sizes[axis] = n
                return small.reshaped(tuple(sizes))
        return Vector.read(variable) if math.prod(shape) in (1, *shape[-1:]) else None


def _affine(values: Tree, scale: Tree, offset: Tree) -> Tree:
    product = values if isinstance(scale, Vector) and scale.number == 1 else Node("mul", (values, scale))
    return product if _is_zero(offset) else Node("add", (product, offset))


def _is_zero(tree: Tree) -> bool:
    return isinstance(tree, Vector) and tree.number == 0


def _clipped(tree: Tree, lo: float, hi: float) -> Tree:
    if lo > -math.inf:
        tree = Node("max", (tree, Vector.of(lo)))
    return Node("min", (tree, Vector.of(hi))) if hi < math.inf else tree
