"""Float arithmetic on elements as a tree, and the linear form of a tree.

A tree is built from the equations between a contraction and the codes that follow it. Where the tree is linear in the
contraction's result, the contraction's own step computes it (`linear`); any other tree becomes a step of its own
(`instructions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxq8.regions import steps as p


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A small array of numbers that are known while tracing."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

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
    """

    variable: Any
    shape: tuple[int, ...]
    is_small: bool = False
    contraction: int | None = None
    is_first: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An operation of a tree.

    Attributes:
      name: A name of `program.BINARY` or `program.UNARY`.
      operands: What it is applied to.
      positive: Whether the second factor of a product is known to be positive, or NaN.
    """

    name: str
    operands: tuple[Tree, ...]
    positive: bool = False


Tree = Node | Leaf | Known


def number(value: float) -> Known:
    """A known number."""
    return Known(np.asarray(value, np.float32))


ONE, ZERO = number(1.0), number(0.0)


def known(tree: Tree) -> float | None:
    """The number that a tree is equal to, if it is known while tracing."""
    return tree.number if isinstance(tree, Known) else None


def shape_of(tree: Tree) -> tuple[int, ...]:
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


def is_small(tree: Tree) -> bool:
    """Whether a tree reads only what is small."""
    if isinstance(tree, Node):
        return all(map(is_small, tree.operands))
    return isinstance(tree, Known) or tree.is_small


@dataclasses.dataclass
class Linear:
    """``clip(sum of coefficient * leaf + constant, lo, hi)``; coefficients and constant are small trees."""

    coefficients: dict[int, tuple[Leaf, Tree]]
    constant: Tree
    lo: float = -math.inf
    hi: float = math.inf

    @property
    def is_clipped(self) -> bool:
        return self.lo > -math.inf or self.hi < math.inf


def linear(tree: Tree) -> Linear | None:
    """The linear form of a tree; None if it has none."""
    if is_small(tree):
        return Linear({}, tree)
    if isinstance(tree, Leaf):
        return Linear({id(tree.variable): (tree, ONE)}, ZERO)
    assert isinstance(tree, Node)
    forms = [linear(operand) for operand in tree.operands]
    if any(form is None for form in forms):
        return None
    if tree.name == "neg":
        return _scaled(forms[0], number(-1.0), False)  # type: ignore[arg-type]
    if len(forms) != 2:
        return None
    first, second = forms
    assert first is not None
    assert second is not None
    if tree.name in ("add", "sub"):
        return _summed(first, second if tree.name == "add" else _scaled(second, number(-1.0), False))
    if tree.name == "mul":
        for form, factor in ((first, second), (second, first)):
            if not factor.coefficients:
                return _scaled(form, factor.constant, tree.positive)
    if tree.name == "div" and not second.coefficients:
        return _scaled(first, Node("div", (ONE, second.constant)), False)
    if tree.name in ("max", "min"):
        for form, bound in ((first, second), (second, first)):
            clip = None if bound.coefficients else known(bound.constant)
            if clip is not None:
                return _clipped(form, clip, tree.name == "max")
    return None


def _summed(first: Linear, second: Linear | None) -> Linear | None:
    if second is None:
        return None
    if first.is_clipped or second.is_clipped:
        # A number can be added behind clips that it leaves where they are.
        for form, other in ((first, second), (second, first)):
            if not other.coefficients and known(other.constant) == 0:
                return form
        return None
    coefficients = dict(first.coefficients)
    for key, (leaf, factor) in second.coefficients.items():
        before = coefficients.get(key)
        coefficients[key] = (leaf, factor if before is None else total(before[1], factor))
    return Linear(coefficients, total(first.constant, second.constant))


def _scaled(form: Linear, factor: Tree, positive: bool) -> Linear | None:
    lo, hi = form.lo, form.hi
    if form.is_clipped:
        fixed = known(factor)
        if fixed is not None and fixed > 0:
            lo, hi = lo * fixed, hi * fixed
        elif not (positive and lo == 0 and hi == math.inf):  # the clip at 0 stays where it is
            return None
    coefficients = {key: (leaf, product(c, factor)) for key, (leaf, c) in form.coefficients.items()}
    return Linear(coefficients, product(form.constant, factor), lo, hi)


def _clipped(form: Linear, bound: float, lower: bool) -> Linear:
    if lower:
        lo, hi = max(form.lo, bound), max(form.hi, bound)
    else:
        lo, hi = min(form.lo, bound), min(form.hi, bound)
    return dataclasses.replace(form, lo=lo, hi=hi)


class TooLargeError(Exception):
    """A tree needs more registers than a step has."""


Instruction = tuple[int, int, int, int, int]


def instructions(
    trees: Sequence[Tree], inputs: dict[tuple[int, bool], int], store: int
) -> tuple[Instruction, ...]:
    """The instructions that compute trees and store their results.

    Args:
      trees: The trees; each is an output of the step.
      inputs: ``key of a leaf -> number of the step's input`` (see `key`).
      store: The instruction that stores: `program.STORE` or `program.ENCODE`.

    Raises:
      TooLargeError: The trees need too many registers.
    """
    order, uses = _ordered(trees)
    free, code = list(range(p.REGISTERS))[::-1], []
    made: dict[int, int] = {}

    def used(node: Tree) -> None:
        uses[id(node)] -= 1
        if uses[id(node)] == 0:
            free.append(made[id(node)])

    for node in order:
        operands: Sequence[Tree] = node.operands if isinstance(node, Node) else ()
        sources = [made[id(operand)] for operand in operands]
        for operand in operands:
            used(operand)
        if not free:
            raise TooLargeError
        made[id(node)] = target = free.pop()
        if isinstance(node, Node):
            operation = (p.BINARY | p.UNARY)[node.name]
            code.append((operation, target, sources[0], sources[1] if len(sources) > 1 else 0))
        elif known(node) is not None:
            code.append((p.CONST, target, p.float_bits(known(node) or 0.0), 0))
        else:
            code.append((p.LOAD, target, inputs[key(node)], 0))
        for number, tree in enumerate(trees):
            if tree is node:
                code.append((store, number, target, 0))
                used(node)
    return tuple(code)


def key(leaf: Leaf | Known) -> tuple[int, bool]:
    """What tells leaves apart."""
    return (id(leaf.variable), leaf.is_first) if isinstance(leaf, Leaf) else (id(leaf), False)


def leaves(trees: Sequence[Tree]) -> list[Leaf | Known]:
    """The tensors that trees read, each once; known numbers are written into the instructions."""
    found: dict[tuple[int, bool], Leaf | Known] = {}
    for node in _ordered(trees)[0]:
        if not isinstance(node, Node) and known(node) is None:
            found.setdefault(key(node), node)
    return list(found.values())


def _ordered(trees: Sequence[Tree]) -> tuple[list[Tree], dict[int, int]]:
    """The parts of trees, operands first, and how often each is read or stored."""
    order: list[Tree] = []
    uses: dict[int, int] = {}

    def visit(node: Tree) -> None:
        if id(node) in uses:
            return
        uses[id(node)] = 0
        for operand in node.operands if isinstance(node, Node) else ():
            visit(operand)
            uses[id(operand)] += 1
        order.append(node)

    for tree in trees:
        visit(tree)
        uses[id(tree)] += 1
    return order, uses
