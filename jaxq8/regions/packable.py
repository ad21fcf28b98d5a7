"""Which inputs of a collected program native contractions read, and how they have to be packed for these."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxq8.regions.candidates import Limits, found
from jaxq8.regions.equations import Equation, Flat, flat
from jaxq8.regions.joined_weights import layout_of, parts_of
from jaxq8.regions.prepared import SEVERAL, alive, computed, sums_of
from jaxq8.regions.scans import Scan, with_bodies
from jaxq8.regions.weights import (
    Moves,
    Origin,
    Packable,
    native_weight,
    origin,
    padded_form,
    problem_of,
)

Way = tuple[Any, Packable]  # an input of the whole program, and how it is read
Part = tuple[Any, Moves]  # an input of the whole program, and the moves that lead from it
Inputs = Mapping[
    Any, tuple[Part, ...]
]  # variables that are inputs of the whole program, or several that are joined


def packable(jaxpr: Any, limits: Limits) -> dict[Any, Packable]:
    """The inputs of a collected program that native contractions read, and how they have to be packed for these.

    An input is left out if several contractions read it in different forms, and if its contraction would be in no region.
    """
    program = with_bodies(flat(jaxpr, [None] * len(jaxpr.constvars)))
    result: dict[Any, Packable] = {}
    refused = set()
    for variable, way in _ways(program, {v: ((v, ()),) for v in jaxpr.invars}).taken(limits):
        if result.setdefault(variable, way).moves != way.moves:
            refused.add(variable)
    return {variable: way for variable, way in result.items() if variable not in refused}


@dataclasses.dataclass(frozen=True, eq=False)
class _Ways:
    """The contractions of a program, or of the body of a scan, whose weights are inputs of the whole program.

    Attributes:
      eqns: The equations of the program.
      results: Its results.
      own: How each of these contractions reads its weight, or the parts of its weight, by its position.
      inner: The same of the bodies of scans.
      sums: The positions of the equations that sum such weights; these sums will be there.
    """

    eqns: list[Equation]
    results: tuple[Any, ...]
    own: Mapping[int, list[Way]]
    inner: Mapping[int, _Ways]
    sums: Collection[int]

    def taken(self, limits: Limits) -> list[Way]:
        """The ways of the contractions that would be in regions."""
        loops = self._loops()

        def count(index: int) -> int:
            return SEVERAL * len(loops[index]) if index in loops else int(index in self.own)

        groups, _ = found(self.eqns, count, limits)
        members = {i for group in groups for i in group.members}
        ways = [way for i in sorted(members) for way in self.own.get(i, ())]
        for i, inner in self.inner.items():
            ways += loops[i] if i in members else inner.taken(limits)
        return ways

    def whole(self, scan: Scan) -> list[Way]:
        """The ways of all contractions of the body of a scan if the scan can be one step; else none."""
        loops = self._loops()
        members = computed(scan, self.eqns, self.results, (*self.own, *loops), self.sums)
        if members is None:
            return []
        ways = {**self.own, **loops}
        return [way for i in members for way in ways.get(i, ())]

    def _loops(self) -> dict[int, list[Way]]:
        found_ways = {i: inner.whole(self.eqns[i]) for i, inner in self.inner.items()}  # type: ignore[arg-type]
        return {i: ways for i, ways in found_ways.items() if ways}


def _ways(program: Flat, inputs: Inputs) -> _Ways:
    eqns = alive(program.equations, program.results)
    makers = {v: eqn for eqn in eqns for v in eqn.outvars}
    own = {i: ways for i, eqn in enumerate(eqns) if (ways := _own(eqn, makers, inputs))}
    inner = {i: _inner(eqn, makers, inputs) for i, eqn in enumerate(eqns) if isinstance(eqn, Scan)}
    sums = sums_of(eqns, makers, lambda o: bool(_parts(o, inputs)))
    return _Ways(eqns, program.results, own, inner, sums)


def _own(eqn: Equation, makers: Mapping[Any, Any], inputs: Inputs) -> list[Way]:
    """How a contraction reads its weight, if that is an input of the whole program, or inputs that are joined."""
    where = native_weight(eqn, makers)
    if where is None:
        return []
    form = padded_form(eqn.params["form"], eqn.params["zero_border"])
    parts = _parts(where, inputs)
    if len(parts) == 1:
        return [(variable, Packable(moves, problem_of(form))) for variable, moves in parts]
    # Parts that are joined are packed as they are, so that their bytes can be joined.
    if not parts or any(moves for _, moves in parts):
        return []
    problems = [problem_of(dataclasses.replace(form, n=v.aval.shape[1])) for v, _ in parts]
    if layout_of(problems) is None:
        return []
    return [(v, Packable((), p)) for (v, _), p in zip(parts, problems, strict=True)]


def _parts(where: Origin, inputs: Inputs) -> tuple[Part, ...]:
    """The inputs of the whole program that a weight consists of; none if it is made of something else."""
    variables = (where.variable,) if where.maker is None else parts_of(where.maker)
    if not all(v in inputs for v in variables):
        return ()
    return tuple((variable, (*moves, *where.moves)) for v in variables for variable, moves in inputs[v])


def _inner(scan: Scan, makers: Mapping[Any, Any], inputs: Inputs) -> _Ways:
    """The ways of the body of a scan: its constants may be inputs of the whole program."""
    known = {}
    for variable, atom in zip(scan.inputs[: scan.consts], scan.invars, strict=False):
        where = origin(atom, makers)
        parts = () if where is None else _parts(where, inputs)
        if parts:
            known[variable] = parts
    return _ways(scan.body, known)
