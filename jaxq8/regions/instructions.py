"""Trees as instructions for the registers of an elementwise step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxq8.regions import steps
from jaxq8.regions.expressions import Known, Leaf, Node, Tree, is_int, known

Instruction = tuple[int, int, int, int, int]
Key = tuple[Any, ...]


class TooLargeError(Exception):
    """A tree needs more registers than a step has."""


def instructions(
    trees: Sequence[Tree], inputs: dict[Key, int], store: Sequence[int]
) -> tuple[Instruction, ...]:
    """The instructions that compute trees and store their results.

    Args:
      trees: The trees; each is an output of the step.
      inputs: ``key of a leaf -> number of the step's input`` (see `key`).
      store: For each tree the instruction that stores it: `steps.STORE`, `steps.ENCODE` or `steps.STORE_INT`.

    Raises:
      TooLargeError: The trees need too many registers.
    """
    order, uses = _ordered(trees)
    free, code = list(range(steps.REGISTERS))[::-1], []
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
        code.append(_computing(node, target, sources, inputs))
        for number, tree in enumerate(trees):
            if tree is node:
                code.append((store[number], number, target, 0, 0))
                used(node)
    return tuple(code)


def _computing(node: Tree, target: int, sources: Sequence[int], inputs: dict[Key, int]) -> Instruction:
    """The instruction that computes a part of a tree from the registers of its operands."""
    if isinstance(node, Node):
        operation = steps.SELECT if node.name == "select" else (steps.BINARY | steps.UNARY)[node.name]
        first, second, third = (*sources, 0, 0)[:3]
        return (operation, target, first, second, third)
    value = known(node)
    if value is None:
        return (steps.LOAD_INT if is_int(node) else steps.LOAD, target, inputs[key(node)], 0, 0)
    if is_int(node):
        return (steps.CONST_INT, target, int(value), 0, 0)
    return (steps.CONST, target, steps.float_bits(value), 0, 0)


def key(leaf: Leaf | Known) -> Key:
    """What tells the tensors of leaves apart."""
    if isinstance(leaf, Leaf):
        return (id(leaf.variable), leaf.is_first, leaf.shape)
    return (id(leaf),)


def leaves(trees: Sequence[Tree]) -> list[Leaf | Known]:
    """The tensors that trees read, each once; known numbers are written into the instructions."""
    found: dict[Key, Leaf | Known] = {}
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
