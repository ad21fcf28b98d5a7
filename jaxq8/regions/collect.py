"""Runs a function whose eight-bit operations are collected first: what one native call can do is one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8._compat import Literal, open_jaxpr
from jaxq8.kernels.registry import contraction, sums_of_weights
from jaxq8.native import calls
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.packed_tensor import unpacked_codes
from jaxq8.operations import collected
from jaxq8.regions.candidates import Limits, found
from jaxq8.regions.equations import Equation, flat
from jaxq8.regions.graph import Graph
from jaxq8.regions.lowering import Region, Weight, lower
from jaxq8.regions.native_call import call
from jaxq8.regions.tables import looked_up
from jaxq8.regions.weights import Packable, padded_form, problem_of, weight_origin, why_not


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """A collected program, and how it runs.

    Attributes:
      inputs: Its inputs.
      consts: The values of its constants.
      units: Equations and regions in the order in which they run.
      results: Its results.
    """

    inputs: tuple[Any, ...]
    consts: Mapping[Any, Any]
    units: tuple[Equation | Region, ...]
    results: tuple[Any, ...]

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(unit for unit in self.units if isinstance(unit, Region))

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The results for these inputs."""
        values = dict(zip(self.inputs, arrays, strict=True)) | dict(self.consts)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for unit in self.units:
            if isinstance(unit, Region):
                made = call(unit.program, [jnp.asarray(r.compute(read)) for r in unit.recipes])
                for variables, array in zip(unit.outputs, made, strict=True):
                    values.update((v, array.astype(v.aval.dtype)) for v in variables)
            else:
                values.update(zip(unit.outvars, unit.run([read(v) for v in unit.invars]), strict=True))
        return [read(v) for v in self.results]


def in_regions(
    function: Callable[[Any], Sequence[Any]], inputs: Any, record: Callable[[Collected], None], limits: Limits
) -> list[Any]:
    """``function(inputs)``, with native calls in place of connected eight-bit operations.

    Args:
      function: A function of a pytree.
      inputs: The pytree. Its JAX arrays are inputs of the collected program; everything else in it stays as it is.
      record: Is given the program before it runs.
      limits: Which regions are taken.
    """
    flat, tree = jax.tree_util.tree_flatten(inputs)
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, jax.Array)]

    def of_arrays(*arrays: Any) -> Sequence[Any]:
        full = list(flat)
        for i, array in zip(places, arrays, strict=True):
            full[i] = array
        return function(jax.tree_util.tree_unflatten(tree, full))

    arrays = [flat[i] for i in places]
    jaxpr, consts = traced(of_arrays, *arrays)
    program = arranged(jaxpr, consts, limits)
    record(program)
    return program.run(arrays)


def traced(function: Callable[..., Sequence[Any]], *arguments: Any) -> tuple[Any, Sequence[Any]]:
    """The collected program of a function, and the values of its constants."""

    def whole(*arguments: Any) -> Sequence[Any]:
        with collected():
            return function(*arguments)

    return open_jaxpr(jax.make_jaxpr(whole)(*arguments))


def packable(jaxpr: Any, limits: Limits) -> dict[Any, Packable]:
    """The inputs of a collected program that native contractions read, and how they have to be packed for these.

    An input is left out if several contractions read it in different forms, and if its contraction would be in no region.
    """
    program = flat(jaxpr, [None] * len(jaxpr.constvars))
    eqns = _alive(program.equations, program.results)
    makers = {v: eqn for eqn in eqns for v in eqn.outvars}
    inputs = set(jaxpr.invars)
    ways: dict[int, tuple[Any, Packable]] = {}
    for i, eqn in enumerate(eqns):
        if eqn.primitive is contraction.primitive and not why_not(
            eqn.params["form"], eqn.invars[0].aval.dtype.name
        ):
            origin = weight_origin(eqn, makers)
            if origin is not None and origin.maker is None and origin.variable in inputs:
                form = padded_form(eqn.params["form"], eqn.params["zero_border"])
                ways[i] = (origin.variable, Packable(origin.moves, problem_of(form)))
    groups, _ = found(eqns, ways.__contains__, limits)
    taken = {i for group in groups for i in group.members}
    result: dict[Any, Packable] = {}
    refused = set()
    for i, (variable, way) in ways.items():
        if i not in taken or result.setdefault(variable, way).moves != way.moves:
            refused.add(variable)
    return {variable: way for variable, way in result.items() if variable not in refused}


def arranged(jaxpr: Any, consts: Sequence[Any], limits: Limits) -> Collected:
    """The units of a collected program."""
    program = flat(jaxpr, consts)
    known = program.consts
    renamed = _sums(program.equations, {v: eqn for eqn in program.equations for v in eqn.outvars})
    results = tuple(v if isinstance(v, Literal) else renamed.get(v, v) for v in program.results)
    read = [eqn.reading(renamed) for eqn in program.equations]
    makers = {v: eqn for eqn in read for v in eqn.outvars}
    eqns = _alive([looked_up(eqn, makers) for eqn in read], results)
    weights = {i: w for i, eqn in enumerate(eqns) if (w := _weight(eqn, makers)) is not None}
    groups, levels = found(eqns, weights.__contains__, limits)
    taken = {i: group for group in groups for i in group.members}
    readers: dict[Any, list[int]] = {}
    for index, eqn in enumerate(eqns):
        for v in eqn.invars:
            if not isinstance(v, Literal):
                readers.setdefault(v, []).append(index)
    units: list[tuple[tuple[int, int, int], Equation | Region]] = []
    ends = {v for v in results if not isinstance(v, Literal)}
    for group in groups:
        made = [v for i in group.members for v in eqns[i].outvars]
        wanted = [v for v in made if v in ends or any(taken.get(r) is not group for r in readers.get(v, ()))]
        graph = Graph(eqns, group.members, wanted, makers, known)
        region = lower(graph, {i: weights[i] for i in group.members if i in weights})
        units.append(((group.level, 1, 0), region))
    candidates = levels.candidates
    for index, eqn in enumerate(eqns):
        if index not in taken:
            units.append(((levels.of[index], 2 if candidates[index] else 0, index), eqn))
    order = [unit for _, unit in sorted(units, key=lambda pair: pair[0])]
    return Collected(tuple(jaxpr.invars), known, tuple(_needed(order, results)), results)


def _sums(eqns: Sequence[Any], makers: Mapping[Any, Any]) -> dict[Any, Any]:
    """Sums of packed weights -> the variables that hold them already."""
    renamed = {}
    for eqn in eqns:
        if eqn.primitive is sums_of_weights.primitive:
            found_at = weight_origin(eqn, makers)
            if found_at is not None and _is_packed(found_at):
                renamed[eqn.outvars[0]] = found_at.maker.invars[1]
    return renamed


def _is_packed(origin: Any) -> bool:
    """Whether a weight comes from packed bytes by exactly the moves that it was packed with."""
    maker = origin.maker
    if maker is None or maker.primitive is not unpacked_codes.primitive:
        return False
    return origin.moves == maker.params["moves"]


def _weight(eqn: Any, makers: Mapping[Any, Any]) -> Weight | None:
    """The packed weight of a contraction that has a native step; None for all other equations."""
    if eqn.primitive is not contraction.primitive or why_not(
        eqn.params["form"], eqn.invars[0].aval.dtype.name
    ):
        return None
    origin = weight_origin(eqn, makers)
    if origin is None or not _is_packed(origin):
        return None
    params = origin.maker.params
    if PackedLayout.from_words(calls.layout(params["problem"])) != params["layout"]:
        return None
    return Weight(origin.maker.invars[0], params["problem"])


def _alive(eqns: Sequence[Equation], results: Sequence[Any]) -> list[Equation]:
    """The equations that the results depend on."""
    needed, alive = {v for v in results if not isinstance(v, Literal)}, []
    for eqn in reversed(eqns):
        if any(v in needed for v in eqn.outvars) or eqn.eqn.effects:
            alive.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return alive[::-1]


def _needed(units: Sequence[Equation | Region], results: Sequence[Any]) -> list[Equation | Region]:
    """The units that the results depend on: a packed weight need not be unpacked where a region reads its bytes."""
    needed, kept = {v for v in results if not isinstance(v, Literal)}, []
    for unit in reversed(units):
        made = [v for names in unit.outputs for v in names] if isinstance(unit, Region) else unit.outvars
        if not any(v in needed for v in made) and not (isinstance(unit, Equation) and unit.eqn.effects):
            continue
        kept.append(unit)
        if isinstance(unit, Region):
            needed.update(v for recipe in unit.recipes for v in recipe.variables)
        else:
            needed.update(v for v in unit.invars if not isinstance(v, Literal))
    return kept[::-1]
