"""Float arithmetic on elements as a tree, and the linear form of a tree.

A tree is built from the equations between a contraction and the codes that follow it. Where the tree is linear in the
contraction's result, the contraction's own step computes it (`linear`); any other tree becomes a step of its own
(`instructions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxq8.regions import program as p
from jaxq8.regions.vectors import Vector


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A tensor that a tree reads: a variable of the region, or the int32 result of a contraction that is not stored yet.

    Attributes:
      variable: The variable.
      shape: The shape in which the tree reads it.
      contraction: The position of the contraction that makes it; None for a tensor that is stored.
    """

    variable: object
    shape: tuple[int, ...]
    contraction: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An operation of a tree: a name of `program.BINARY` or `program.UNARY`."""

    name: str
    operands: tuple[Tree, ...]


Tree = Node | Leaf | Vector


@dataclasses.dataclass
class Linear:
    """``clip(sum of coefficient * leaf + constant, lo, hi)``."""

    coefficients: dict[int, tuple[Leaf, Vector]]
    constant: Vector
    lo: float = -math.inf
    hi: float = math.inf

    @property
    def is_clipped(self) -> bool:
        return self.lo > -math.inf or self.hi < math.inf


ONE, ZERO = Vector.of(1.0), Vector.of(0.0)


def linear(tree: Tree) -> Linear | None:
    """The linear form of a tree; None if it has none."""
    if isinstance(tree, Vector):
        return Linear({}, tree)
    if isinstance(tree, Leaf):
        return Linear({id(tree.variable): (tree, ONE)}, ZERO)
    forms = [linear(operand) for operand in tree.operands]
    if any(form is None for form in forms):
        return None
    if tree.name == "neg":
        return _scaled(forms[0], Vector.of(-1.0))  # type: ignore[arg-type]
    if len(forms) != 2:
        return None
    first, second = forms
    assert first is not None and second is not None
    if tree.name in ("add", "sub"):
        return _summed(first, second if tree.name == "add" else _scaled(second, Vector.of(-1.0)))
    if tree.name == "mul":
        for form, factor in ((first, second), (second, first)):
            if not factor.coefficients and not factor.is_clipped:
                return _scaled(form, factor.constant)
    if tree.name == "div" and not second.coefficients and not second.is_clipped:
        return _scaled(first, ONE / second.constant)
    if tree.name in ("max", "min"):
        for form, bound in ((first, second), (second, first)):
            if not bound.coefficients and bound.constant.number is not None and not bound.is_clipped:
                return _clipped(form, bound.constant.number, tree.name == "max")
    return None


def _summed(first: Linear, second: Linear | None) -> Linear | None:
    if second is None:
        return None
    if first.is_clipped or second.is_clipped:
        # A number can be added behind clips that it leaves where they are.
        for form, other in ((first, second), (second, first)):
            if not other.coefficients and other.constant.number == 0 and not other.is_clipped:
                return form
        return None
    coefficients = dict(first.coefficients)
    for key, (leaf, factor) in second.coefficients.items():
        before = coefficients.get(key)
        coefficients[key] = (leaf, factor if before is None else before[1] + factor)
    return Linear(coefficients, first.constant + second.constant)


def _scaled(form: Linear, factor: Vector) -> Linear | None:
    lo, hi = form.lo, form.hi
    if form.is_clipped:
        if factor.number is not None and factor.number > 0:
            lo, hi = lo * factor.number, hi * factor.number
        elif not (factor.positive and lo == 0 and hi == math.inf):  # the clip at 0 stays where it is
            return None
    coefficients = {key: (leaf, c * factor) for key, (leaf, c) in form.coefficients.items()}
    return Linear(coefficients, form.constant * factor, lo, hi)


def _clipped(form: Linear, bound: float, lower: bool) -> Linear:
    if lower:
        lo, hi = max(form.lo, bound), max(form.hi, bound)
    else:
        lo, hi = min(form.lo, bound), min(form.hi, bound)
    return dataclasses.replace(form, lo=lo, hi=hi)


class TooLargeError(Exception):
    """A tree needs more registers than a step has."""


def instructions(tree: Tree, inputs: dict[int, int], store: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    """The instructions that compute a tree and store its result.

    Args:
      tree: The tree.
      inputs: ``id of a leaf's variable or of a vector -> number of the step's input``.
      store: The instruction that stores (`program.STORE` or `program.ENCODE`) and the number of the output.

    Raises:
      TooLargeError: The tree needs too many registers.
    """
    order, uses = _ordered(tree)
    free, made, code = list(range(p.REGISTERS))[::-1], {}, []
    for node in order:
        operands: Sequence[Tree] = node.operands if isinstance(node, Node) else ()
        sources = [made[id(operand)] for operand in operands]
        for operand in operands:
            uses[id(operand)] -= 1
            if uses[id(operand)] == 0 and made[id(operand)] not in free:
                free.append(made[id(operand)])
        if not free:
            raise TooLargeError
        made[id(node)] = target = free.pop()
        if isinstance(node, Node):
            number = (p.BINARY | p.UNARY)[node.name]
            code.append((number, target, sources[0], sources[1] if len(sources) > 1 else 0))
        elif isinstance(node, Vector) and node.number is not None:
            code.append((p.CONST, target, p.float_bits(node.number), 0))
        else:
            key = id(node) if isinstance(node, Vector) else id(node.variable)
            code.append((p.LOAD, target, inputs[key], 0))
    code.append((store[0], store[1], made[id(tree)], 0))
    return tuple(code)


def _ordered(tree: Tree) -> tuple[list[Tree], dict[int, int]]:
    """The parts of a tree, operands first, and how often each is read."""
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

    visit(tree)
    return order, uses


def leaves(tree: Tree) -> list[Leaf | Vector]:
    """The tensors and unknown vectors that a tree reads, each once."""
    found = {}
    for node in _ordered(tree)[0]:
        if isinstance(node, Leaf):
            found.setdefault(id(node.variable), node)
        elif isinstance(node, Vector) and node.number is None:
            found.setdefault(id(node), node)
    return list(found.values())
