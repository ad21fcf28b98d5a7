"""Runs a function whose eight-bit operations are collected first: what one native call can do is one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8._compat import Literal, open_jaxpr
from jaxq8.operations import collected
from jaxq8.regions.candidates import Limits, found
from jaxq8.regions.equations import Equation, Flat, flat
from jaxq8.regions.graph import Graph
from jaxq8.regions.lowering import Region, lower
from jaxq8.regions.native_call import call
from jaxq8.regions.prepared import prepared
from jaxq8.regions.scans import Scan, sunk, with_bodies


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


def arranged(jaxpr: Any, consts: Sequence[Any], limits: Limits) -> Collected:
    """The units of a collected program."""
    return _arranged(with_bodies(flat(jaxpr, consts)), tuple(jaxpr.invars), limits)


def _arranged(program: Flat, inputs: tuple[Any, ...], limits: Limits) -> Collected:
    ready = prepared(program)
    eqns, results = ready.eqns, ready.results
    groups, levels = found(eqns, ready.contractions, limits)
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
        graph = Graph(eqns, group.members, wanted, ready.makers, ready.consts)
        units.append(((group.level, 1, 0), lower(graph, ready.weights, ready.loops)))
    for index, eqn in enumerate(eqns):
        if index in taken:
            continue
        if isinstance(eqn, Scan):
            original = ready.loops[index].original if index in ready.loops else eqn
            eqn = _with_arranged_body(original, ready.makers, limits)
        units.append(((levels.of[index], 2 if levels.candidates[index] else 0, index), eqn))
    order = [unit for _, unit in sorted(units, key=lambda pair: pair[0])]
    return Collected(inputs, program.consts, tuple(_needed(order, results)), results)


def _with_arranged_body(scan: Scan, makers: Mapping[Any, Any], limits: Limits) -> Scan:
    """A scan outside of regions, whose body has regions of its own.

    Its body is given packed weights where regions read them, and codes for everything else, so that no step unpacks anything.
    """
    inside, replaced = sunk(scan, makers)
    body = _arranged(inside.body, inside.inputs, limits)
    made = {v for unit in body.units if isinstance(unit, Equation) for v in unit.outvars}
    plain = {variable for unpacked, variable in replaced.items() if unpacked in made}
    if plain:
        inside, _ = sunk(scan, makers, plain)
        body = _arranged(inside.body, inside.inputs, limits)
    return dataclasses.replace(inside, arranged=body)


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
