"""Builds the trees of `jaxq8.regions.expressions` from equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.registry import contraction
from jaxq8.regions import expressions as ex
from jaxq8.regions.arithmetic import tree_of
from jaxq8.regions.candidates import VIEWS, is_small, takes_first
from jaxq8.regions.expressions import Known, Leaf, Tree
from jaxq8.regions.functions import KNOWN, Multiple
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
            return _known(_literal(atom))
        if atom not in done:
            done[atom] = self._read(atom, root, done)
        return done[atom]

    def _read(self, variable: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        maker = self.graph.maker(variable)
        if maker is None:
            return self._leaf(variable)
        base = self.graph.base(variable)
        origin = self.graph.maker(base)
        if (
            origin is not None
            and origin.primitive is contraction.primitive
            and self.graph.roots[base] is root
        ):
            shape = tuple(variable.aval.shape)
            return Leaf(base, shape, False, self.graph.position[base], is_int=True)
        if maker.primitive in VIEWS or self.graph.roots[variable] not in (root, None):
            return self._leaf(variable)
        if takes_first(maker):
            return ex.first(self._tree(maker.invars[0], root, done))
        return self._computed(maker, root, done)

    def _computed(self, eqn: Any, root: Any, done: dict[Any, Tree]) -> Tree:
        return tree_of(eqn, [self._tree(v, root, done) for v in eqn.invars])

    def _leaf(self, variable: Any) -> Tree:
        """A variable as it is stored, or its numbers if they are known."""
        constant = self.constant(variable)
        if constant is not None:
            return constant
        shape, is_int = tuple(variable.aval.shape), variable.aval.dtype == np.int32
        return Leaf(variable, shape, is_small(variable), is_int=is_int)

    def multiple(self, tree: Tree) -> Multiple:
        """What a tree of few numbers is a multiple of."""
        if isinstance(tree, Leaf):
            return self._multiple_of(tree.variable)
        number = ex.known(tree)
        if number is not None:
            return Multiple(KNOWN, 0.0, number)
        if isinstance(tree, ex.Node):
            inner = self._through(tree.name, tree.operands, ex.known, self.multiple)
            if inner is not None:
                return inner
        return Multiple(id(tree))

    def _multiple_of(self, variable: Any) -> Multiple:
        """The same for a variable."""
        variable = self.graph.real(variable)
        maker = self.graph.makers.get(variable)
        if maker is None:
            return Multiple(variable)
        atoms = [self.graph.real(v) for v in maker.invars]
        if maker.primitive in VIEWS:
            return self._multiple_of(atoms[0])
        inner = self._through(maker.primitive.name, atoms, self._number, self._multiple_of)
        return Multiple(variable) if inner is None else inner

    def _number(self, atom: Any) -> float | None:
        """The number that a variable is equal to, if it is known; products of known numbers are known, too."""
        known = self.constant(atom)
        if known is not None:
            return known.number
        maker = self.graph.makers.get(atom)
        if maker is None or maker.primitive is not primitives.mul_p:
            return None
        first, second = (self._number(self.graph.real(v)) for v in maker.invars)
        return None if first is None or second is None else float(np.float32(first) * np.float32(second))

    @staticmethod
    def _through(
        name: str, operands: Sequence[Any], known: Callable[[Any], float | None],
        multiple: Callable[[Any], Multiple],
    ) -> Multiple | None:  # fmt: skip
        """The multiple behind an operation with a known number; None for all other operations."""
        if name == "neg":
            return multiple(operands[0]).times(-1.0)
        if name not in ("add", "sub", "mul", "div") or len(operands) != 2:
            return None
        for first, second in (operands, operands[::-1])[: 2 if name in ("add", "mul") else 1]:
            number = known(second)
            if number is None or known(first) is not None:
                continue
            if name in ("add", "sub"):
                return multiple(first).plus(number if name == "add" else -number)
            if number != 0:
                return multiple(first).times(number if name == "mul" else 1 / number)
        return None

    def constant(self, variable: Any) -> Known | None:
        """The known numbers of a variable."""
        found = self._array(variable)
        return None if found is None else _known(found)

    def _array(self, atom: Any) -> Any:
        if isinstance(atom, Literal):
            return _literal(atom)
        known = self.graph.consts.get(atom)
        if isinstance(known, np.ndarray | np.generic):
            return np.asarray(known) if is_small(atom) else None
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


def _literal(atom: Any) -> np.ndarray:
    return np.asarray(atom.val, atom.aval.dtype)


def _known(array: np.ndarray) -> Known:
    return Known(array.astype(np.int32 if array.dtype == np.int32 else np.float32))
