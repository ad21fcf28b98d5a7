"""The functions inside an equation, and how operands reach them. The analysis and the control-flow rules use this file."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxq8._compat import primitive_named, primitives

JIT = set(primitive_named("jit_p", "pjit_p"))
CLOSED = set(primitive_named("closed_call_p", "core_call_p", "remat_p", "checkpoint_p"))
CUSTOM_JVP = set(primitive_named("custom_jvp_call_p"))
CUSTOM_VJP = set(primitive_named("custom_vjp_call_p", "custom_vjp_call_jaxpr_p"))
INLINED = JIT | CLOSED | CUSTOM_JVP | CUSTOM_VJP
SCAN, WHILE, COND = primitives.scan_p, primitives.while_p, primitives.cond_p
CONTROL = {SCAN, WHILE, COND}
SHARD_MAP = "shard_map"  # by its name: JAX has no public handle on this primitive


@dataclasses.dataclass(frozen=True)
class Callee:
    """One function inside an equation.

    Attributes:
      key: What the function adds to the path of its equations: "" for a call that simply runs it, "scan", "while",
        "while_cond", "branch0", ...
      jaxpr: The function, open or closed.
      operands: For each input of the function the position of the equation's operand that it gets.
      stacked: How many of the last inputs are slices of their operand along its first axis (scan's xs).
    """

    key: str
    jaxpr: Any
    operands: tuple[int, ...]
    stacked: int = 0

    def is_stacked(self, position: int) -> bool:
        return position >= len(self.operands) - self.stacked


def callees(eqn: Any) -> tuple[Callee, ...]:
    """The functions that an equation runs, for the primitives that the evaluator enters; () for all others."""
    p, params, count = eqn.primitive, eqn.params, len(eqn.invars)
    if p in INLINED:
        return (Callee("", inlined(eqn), tuple(range(count))),)
    if p is SCAN:
        stacked = count - params["num_consts"] - params["num_carry"]
        return (Callee("scan", params["jaxpr"], tuple(range(count)), stacked),)
    if p is WHILE:
        nc, nb = params["cond_nconsts"], params["body_nconsts"]
        carry = tuple(range(nc + nb, count))
        return (
            Callee("while_cond", params["cond_jaxpr"], tuple(range(nc)) + carry),
            Callee("while", params["body_jaxpr"], tuple(range(nc, nc + nb)) + carry),
        )
    if p is COND:
        operands = tuple(range(1, count))
        return tuple(Callee(f"branch{i}", b, operands) for i, b in enumerate(params["branches"]))
    if p.name == SHARD_MAP:
        return (Callee(SHARD_MAP, params["jaxpr"], tuple(range(count))),)
    return ()


def inlined(eqn: Any) -> Any:
    """The function of a call that simply runs it."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return eqn.params[name]
    raise KeyError(f"{eqn.primitive} has no function among {sorted(eqn.params)}")
