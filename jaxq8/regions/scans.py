"""Scans in a collected program: their bodies are programs of their own, which may run step by step inside of a region.

The body of a scan that the rules have evaluated holds operations that were collected (`jaxq8.operations`), so it cannot be run
as it stands. `Scan` is such an equation with its body as a flat program. Packed weights are carried into the body as they are
(`sunk`), so that its contractions find them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxq8._compat import Literal, open_jaxpr, primitives
from jaxq8.analysis.inner_functions import SCAN, callees
from jaxq8.numerics.packed_tensor import unpacked_codes
from jaxq8.numerics.sizes import certainly_less
from jaxq8.regions.candidates import VIEWS, is_stored
from jaxq8.regions.equations import Equation, Flat, Inner, flat

MOVES = {*VIEWS, primitives.transpose_p}


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Equation):
    """A scan whose body holds collected operations.

    Attributes:
      body: Its body as a flat program.
      inputs: The variables of the body's inputs: constants, then what is carried, then slices. Each belongs to the operand of
        the same number.
      consts: How many of them are constants.
      carried: How many of them are carried.
      arranged: How the body runs where the scan is in no region: a `jaxq8.regions.collect.Collected`.
    """

    body: Flat
    inputs: tuple[Any, ...]
    consts: int
    carried: int
    arranged: Any = None

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Its results: a scan of JAX, whose body runs as it was arranged."""
        first = self.consts + self.carried

        def step(state: Any, slices: Any) -> Any:
            made = self.arranged.run([*arrays[: self.consts], *state, *slices])
            return made[: self.carried], made[self.carried :]

        start, stacked = list(arrays[self.consts : first]), list(arrays[first:])
        final, outputs = jax.lax.scan(
            step, start, stacked, length=self.params["length"], reverse=self.params["reverse"], unroll=self.params["unroll"]
        )  # fmt: skip
        return [*final, *outputs]


def holds_operations(jaxpr: Any) -> bool:
    """Whether a function, or one inside of it, holds collected operations."""
    for eqn in jaxpr.eqns:
        if hasattr(eqn.primitive, "jaxq8_operation"):
            return True
        if any(holds_operations(open_jaxpr(callee.jaxpr)[0]) for callee in callees(eqn)):
            return True
    return False


def with_bodies(program: Flat) -> Flat:
    """A program whose scans have their bodies beside them, where these hold collected operations."""
    made: list[Equation] = []
    for eqn in program.equations:
        scan = _with_body(eqn, program.consts)
        made += [eqn] if scan is None else hoisted(scan)
    return dataclasses.replace(program, equations=tuple(made))


def _with_body(eqn: Equation, known: Mapping[Any, Any]) -> Scan | None:
    if eqn.primitive is not SCAN:
        return None
    jaxpr, consts = open_jaxpr(eqn.params["jaxpr"])
    if not holds_operations(jaxpr):
        return None
    body = with_bodies(flat(jaxpr, consts))
    count = eqn.params["num_consts"]
    constants = dict(body.consts)
    for variable, atom in zip(jaxpr.invars[:count], eqn.invars[:count], strict=True):
        value = atom.val if isinstance(atom, Literal) else known.get(atom)
        if isinstance(value, np.ndarray | np.generic | int | float | bool):
            constants[variable] = np.asarray(value)
    body = dataclasses.replace(body, consts=constants)
    return Scan(eqn.eqn, eqn.invars, eqn.outvars, body, tuple(jaxpr.invars), count, eqn.params["num_carry"])


def hoisted(scan: Scan) -> list[Equation]:
    """The equations of the body that compute the same in every step, as equations before the scan, and the scan without them.

    What grows by them, such as a vector that is repeated for each row, is computed in each step. What depends on no operand at
    all stays, too, so that its numbers are known where they are used; what is computed before has a copy of it.
    """
    names = dict(zip(scan.inputs[: scan.consts], scan.invars[: scan.consts], strict=True))
    free: dict[Any, Equation] = {}  # makers of what depends on no input
    before: list[Equation] = []
    left: list[Equation] = []

    def named(atom: Any) -> Any:
        """The name before the scan of what is the same in every step."""
        if isinstance(atom, Literal):
            return atom
        if atom in names:
            return names[atom]
        maker = free[atom]
        reads = tuple(map(named, maker.invars))
        made = tuple(Inner(v.aval) for v in maker.outvars)
        before.append(dataclasses.replace(maker, invars=reads, outvars=made))
        names.update(zip(maker.outvars, made, strict=True))
        return names[atom]

    for eqn in scan.body.equations:
        atoms = [v for v in eqn.invars if not isinstance(v, Literal)]
        same = not eqn.eqn.effects and not isinstance(eqn, Scan)
        if same and all(v in free for v in atoms):
            free.update(dict.fromkeys(eqn.outvars, eqn))
            left.append(eqn)
        elif same and all(v in names or v in free for v in atoms) and not _grows(eqn):
            made = tuple(Inner(v.aval) for v in eqn.outvars)
            before.append(dataclasses.replace(eqn, invars=tuple(map(named, eqn.invars)), outvars=made))
            names.update(zip(eqn.outvars, made, strict=True))
        else:
            left.append(eqn)
    wanted = {v for eqn in left for v in eqn.invars if not isinstance(v, Literal)}
    wanted |= {v for v in scan.body.results if not isinstance(v, Literal)}
    inside = {v for eqn in left for v in eqn.outvars}
    more = [v for v in names if v in wanted and v not in inside and v not in scan.inputs]
    count = scan.consts
    body = dataclasses.replace(scan.body, equations=tuple(left))
    rest = dataclasses.replace(
        scan, body=body, consts=count + len(more),
        invars=(*scan.invars[:count], *(names[v] for v in more), *scan.invars[count:]),
        inputs=(*scan.inputs[:count], *more, *scan.inputs[count:]),
    )  # fmt: skip
    return [*before, rest]


def _grows(eqn: Equation) -> bool:
    """Whether an equation makes more numbers than it reads."""
    read, made = (sum(math.prod(v.aval.shape) for v in atoms) for atoms in (eqn.invars, eqn.outvars))
    return certainly_less(read, made)


def sunk(scan: Scan, makers: Mapping[Any, Any], without: Collection[Any] = ()) -> tuple[Scan, dict[Any, Any]]:
    """A scan that is given packed weights instead of their codes, which its body then unpacks.

    Args:
      scan: The scan.
      makers: The equation that makes a variable of the program around it.
      without: Inputs of the body that stay as they are.

    Returns:
      The scan, and for the result of each equation that unpacks the input of the body that it replaces.
    """
    replaced: dict[Any, Any] = {}
    operands, inputs, equations = list(scan.invars), list(scan.inputs), []
    extra_operands: list[Any] = []
    extra_inputs: list[Any] = []
    for number, variable in enumerate(scan.inputs[: scan.consts]):
        chain = _unpacking(operands[number], makers)
        if not chain or variable in without:
            continue
        packed, sums = (Inner(v.aval) for v in chain[0].invars)
        operands[number], inputs[number] = chain[0].invars[0], packed
        extra_operands.append(chain[0].invars[1])
        extra_inputs.append(sums)
        reads: tuple[Any, ...] = (packed, sums)
        for position, eqn in enumerate(chain):
            made = variable if position == len(chain) - 1 else Inner(eqn.outvars[0].aval)
            equations.append(Equation(eqn.eqn, reads, (made,)))
            reads = (made,)
            if position == 0:
                replaced[made] = variable
    count = scan.consts
    body = dataclasses.replace(scan.body, equations=(*equations, *scan.body.equations))
    inside = dataclasses.replace(
        scan, body=body, consts=count + len(extra_inputs),
        invars=(*operands[:count], *extra_operands, *operands[count:]),
        inputs=(*inputs[:count], *extra_inputs, *inputs[count:]),
    )  # fmt: skip
    return inside, replaced


def _unpacking(atom: Any, makers: Mapping[Any, Any]) -> list[Equation]:
    """The equations from packed bytes to the codes in a variable, first the one that unpacks; none if it has no such codes."""
    chain: list[Equation] = []
    while not isinstance(atom, Literal):
        eqn = makers.get(atom)
        if eqn is None:
            return []
        chain.append(eqn)
        if eqn.primitive is unpacked_codes.primitive:
            return chain[::-1]
        if eqn.primitive not in MOVES and not (is_stored(eqn) and len(eqn.invars) == 1):
            return []
        atom = eqn.invars[0]
    return []
