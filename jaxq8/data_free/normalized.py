"""The values that a function itself normalizes: what layer norm, RMS norm, group norm and instance norm read.

Such a norm makes its result independent of the size of what it reads, so any numbers can stand for these when the mean of its
result is wanted, which is the norm's shift.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxq8._compat import primitives
from jaxq8.analysis.flat_function import Chains, Node, Ref

ROOTS = {"sqrt", "rsqrt"}
SCALAR = {"add", "sub", "mul", "div", "max", "convert_element_type", "broadcast_in_dim", "reshape", "squeeze"}
POWERS = {"integer_pow", "square", "abs"}


def normalized_values(chains: Chains) -> set[Ref]:
    """The values by whose own spread, over one or several axes, they are divided."""
    found: set[Ref] = set()
    for node in chains.nodes:
        if node.primitive.name in ROOTS and node.inputs[0] is not None:
            sources = set(_summed(chains, node.inputs[0]))
            if len(sources) == 1:
                found |= sources
    return found


def _summed(chains: Chains, ref: Ref) -> Iterator[Ref]:
    """The values over which sums are taken on the way to a value: those of `_plain`."""
    node = chains.makers.get(ref)
    if node is None:
        return
    if node.primitive.name == "reduce_sum" and node.inputs[0] is not None:
        yield _plain(chains, node.inputs[0])
    elif node.primitive.name in SCALAR | POWERS:
        for operand in node.inputs:
            if operand is not None:
                yield from _summed(chains, operand)


def _plain(chains: Chains, ref: Ref) -> Ref:
    """A value before its mean was subtracted, and before it was squared; dtypes and shapes may have changed between."""
    node = chains.makers.get(ref)
    while node is not None and node.inputs[0] is not None:
        name = node.primitive.name
        square = name == "mul" and node.inputs[0] == node.inputs[1]
        centred = node.primitive is primitives.sub_p and _is_mean(chains, node)
        if not (square or centred or name in POWERS or name in ("convert_element_type", "reshape")):
            break
        ref = node.inputs[0]
        node = chains.makers.get(ref)
    return ref


def _is_mean(chains: Chains, node: Node) -> bool:
    """Whether what is subtracted is made from a sum over the value itself."""
    value, other = node.inputs
    if value is None or other is None:
        return False
    sums = set(_summed(chains, other))
    return len(sums) == 1 and sums == {_plain(chains, value)}
