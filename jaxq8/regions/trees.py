"""Builds the trees of `jaxq8.regions.expressions` from equations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.epilogue import codes_of, numbers_of_codes, real_numbers
from jaxq8.kernels.registry import contraction
from jaxq8.regions import expressions as ex
from jaxq8.regions.candidates import NAME_OF, POISONED, SAME, VIEWS, is_small, takes_first
from jaxq8.regions.expressions import Known, Leaf, Node, Tree
from jaxq8.regions.graph import Graph


class Trees:
    """The trees of a group."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def of_root(self, variable: Any) -> Tree:
        """The tree that computes a variable, without the clips and the rounding of codes."""
        maker = self.graph.maker(variable)
        if takes_first(maker):
            return ex.first(self._tree(maker.invars[0], variable, {}))
        return self._computed(maker, variable, {})

    def _tree(self, atom: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        """What an equation of the tree of `root` reads."""
        atom = self.graph.real(atom)
        if isinstance(atom, Literal):
            return Known(np.asarray(atom.val, np.float32))
        if atom not in done:
            done[atom] = self._read(atom, root, done)
        return done[atom]

    def _read(self, variable: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        shape, small = tuple(variable.aval.shape), is_small(variable)
        maker = self.graph.maker(variable)
        if maker is None:
            constant = self.constant(variable)
            return Leaf(variable, shape, small) if constant is None else constant
        base = self.graph.base(variable)
        origin = self.graph.maker(base)
        if (
            origin is not None
            and origin.primitive is contraction.primitive
            and self.graph.roots[base] is root
        ):
            return Leaf(base, shape, False, self.graph.position[base])
        if maker.primitive in VIEWS or self.graph.roots[variable] not in (root, None):
            constant = self.constant(variable)
            return Leaf(variable, shape, small) if constant is None else constant
        if takes_first(maker):
            return ex.first(self._tree(maker.invars[0], root, done))
        return self._computed(maker, root, done)

    def _computed(self, eqn: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        p = eqn.primitive
        operands = [self._tree(v, root, done) for v in eqn.invars]
        if p is real_numbers.primitive:
            values, scale, offset = operands
            return _clipped(ex.total(ex.product(values, scale), offset), eqn.params["lo"], eqn.params["hi"])
        if p is codes_of.primitive:
            values, multiplier, offset = operands
            # The multiplier of real numbers is the reciprocal of a scale.
            positive = eqn.invars[0].aval.dtype == np.float32
            return ex.total(ex.product(values, multiplier, positive), offset)
        if p is numbers_of_codes.primitive:
            values, scale, zero = operands
            return ex.product(values if ex.known(zero) == 0 else Node("sub", (values, zero)), scale)
        if p is POISONED:
            scale, witness = operands
            return Node("nan_if", (witness, scale))
        if p in SAME:
            return operands[0]
        if p is primitives.mul_p:
            return ex.product(operands[0], operands[1])
        if p is primitives.add_p:
            return ex.total(operands[0], operands[1])
        return Node(NAME_OF[p], tuple(operands))

    def constant(self, variable: Any) -> Known | None:
        """The known numbers of a variable."""
        found = self._array(variable)
        return None if found is None else Known(np.asarray(found, np.float32))

    def _array(self, atom: Any) -> Any:
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        known = self.graph.consts.get(atom)
        if isinstance(known, np.ndarray | np.generic):
            return known if is_small(atom) else None
        maker = self.graph.makers.get(atom)
        if maker is None or not is_small(atom):
            return None
        shape = tuple(atom.aval.shape)
        if maker.primitive is primitives.broadcast_in_dim_p and len(maker.invars) == 1:
            inner = self._array(maker.invars[0])
            if inner is None:
                return None
            sizes = [1] * len(shape)
            for axis, n in zip(maker.params["broadcast_dimensions"], inner.shape, strict=True):
                sizes[axis] = n
            return np.broadcast_to(inner.reshape(sizes), shape)
        if maker.primitive in VIEWS:
            inner = self._array(maker.invars[0])
            return None if inner is None else inner.reshape(shape)
        return None


def _clipped(tree: Tree, lo: float, hi: float) -> Tree:
    if lo > -math.inf:
        tree = Node("max", (tree, ex.number(lo)))
    return Node("min", (tree, ex.number(hi))) if hi < math.inf else tree
