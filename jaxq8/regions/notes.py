"""What a Plan says of the native regions of a collected program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from jaxq8._compat import Literal
from jaxq8.kernels.registry import contraction
from jaxq8.plan_native import NativeRegion
from jaxq8.regions.arithmetic import is_arithmetic
from jaxq8.regions.candidates import VIEWS, is_stored
from jaxq8.regions.collect import Collected
from jaxq8.regions.equations import Equation
from jaxq8.regions.lowering import Region
from jaxq8.regions.scans import Scan
from jaxq8.regions.weights import why_not

RESULT = "the result"


def native_regions(program: Collected) -> tuple[NativeRegion, ...]:
    """The regions of a program in the order in which they run, those in the bodies of scans after them."""
    bodies = [unit.arranged for unit in program.units if isinstance(unit, Scan)]
    return (*_own_regions(program), *itertools.chain(*map(native_regions, bodies)))


def _own_regions(program: Collected) -> tuple[NativeRegion, ...]:
    readers: dict[Any, list[Equation | Region]] = {}
    for unit in program.units:
        for variable in _reads(unit):
            readers.setdefault(variable, []).append(unit)
    numbers = {id(region): number for number, region in enumerate(program.regions, 1)}
    results = {v for v in program.results if not isinstance(v, Literal)}

    def ends(variables: list[Any], seen: set[Any]) -> Iterator[str]:
        """What reads these variables, through float arithmetic and moves that regions have steps for."""
        for variable in variables:
            if variable in seen:
                continue
            seen.add(variable)
            if variable in results:
                yield RESULT
            for unit in readers.get(variable, ()):
                if isinstance(unit, Region):
                    yield f"region {numbers[id(unit)]}"
                elif _is_light(unit):
                    yield from ends(list(unit.outvars), seen)
                else:
                    yield _named(unit)

    found = []
    for region in program.regions:
        made = [v for names in region.outputs for v in names]
        steps = region.program
        sites = tuple(step.site for step in steps.contractions)
        found.append(NativeRegion(sites, len(steps.steps), tuple(dict.fromkeys(ends(made, set())))))
    return tuple(found)


def _reads(unit: Equation | Region) -> list[Any]:
    if isinstance(unit, Region):
        return [v for recipe in unit.recipes for v in recipe.variables]
    return [v for v in unit.invars if not isinstance(v, Literal)]


def _is_light(eqn: Equation) -> bool:
    return eqn.primitive in VIEWS or is_stored(eqn) or is_arithmetic(eqn)


def _named(eqn: Equation) -> str:
    if eqn.primitive is contraction.primitive:
        reason = why_not(eqn.params["form"], eqn.invars[0].aval.dtype.name) or "its weight is not packed"
        return f"{eqn.params['site'] or 'a contraction'} ({reason})"
    return str(eqn.primitive.name).removeprefix("jaxq8_")
