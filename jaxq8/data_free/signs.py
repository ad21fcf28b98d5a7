"""Which values of a function are never negative, whatever its data are: what follows relu, a sigmoid, or a softmax."""

from __future__ import annotations

import numpy as np

from jaxq8._compat import Literal
from jaxq8.analysis.flat_function import Chains, Node, Ref

ALWAYS = {"exp", "exp2", "logistic", "abs", "sqrt", "square", "erfc"}
# The first operand decides; the others are places, lengths and the like.
KEPT = {
    "reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "dynamic_slice", "gather", "rev", "convert_element_type",
    "reduce_precision", "copy", "reduce_sum", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_sum", "cumsum",
    "tanh", "erf", "log1p", "expm1", "round", "floor", "optimization_barrier", "stop_gradient", "split",
}  # fmt: skip
ALL = {
    "add",
    "add_any",
    "mul",
    "div",
    "min",
    "concatenate",
    "pad",
    "rem",
    "pow",
    "dot_general",
    "conv_general_dilated",
}


def never_negative(chains: Chains) -> set[Ref]:
    """The values that cannot be below zero."""
    found: set[Ref] = set()
    for node in chains.nodes:
        if _result_is(node, [_known(node, i, found) for i in range(len(node.inputs))]):
            found.update(node.outputs)
    return found


def _known(node: Node, i: int, found: set[Ref]) -> bool:
    variable = node.eqn.invars[i]
    if isinstance(variable, Literal):
        return bool(np.all(np.asarray(variable.val) >= 0))
    return node.inputs[i] in found


def _result_is(node: Node, known: list[bool]) -> bool:
    """Whether the result of an operation is never negative, where this is known of some of its operands."""
    name, inputs = node.primitive.name, node.inputs
    if name in ALWAYS:
        return True
    if name == "integer_pow":
        return node.eqn.params["y"] % 2 == 0 or known[0]
    if name in KEPT or name == "clamp":  # clamp(low, x, high)
        return known[0]
    if name == "mul" and inputs[0] is not None and inputs[0] == inputs[1]:
        return True
    if name == "max":
        return any(known)
    if name == "select_n":
        return all(known[1:])
    return name in ALL and all(known)
