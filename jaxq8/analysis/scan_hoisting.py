"""Contractions in the body of a scan that no step needs to wait for: the projection of the inputs of a recurrent cell.

What a step computes from its slice of the data and from weights alone is the same before the loop as inside it. Before the
loop all steps are one product, which reads the weights once; inside, a product of a row or a few reads them in every step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jaxq8._compat import Literal
from jaxq8.analysis.sites import CONTRACTIONS
from jaxq8.numerics.sizes import certainly_less

# Results of all steps together: more would be written to memory and read again for less than it saves.
MAXIMUM_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Part:
    """Some equations of a jaxpr, each at its place; None where one is left out."""

    invars: tuple[Any, ...]
    eqns: tuple[Any, ...]
    outvars: tuple[Any, ...]
    constvars: tuple[Any, ...] = ()


def parted(
    jaxpr: Any, consts: int, carry: int, length: int, wanted: Callable[[int], int | None]
) -> tuple[Part, Part] | None:
    """The body of a scan as what can run before the loop, for all steps at once, and the rest of it.

    Args:
      jaxpr: The body, open; its inputs are constants, then the carry, then slices.
      consts: How many constants.
      carry: How many carried values.
      length: Number of steps.
      wanted: For the index of an equation the position of its weight, if it is a contraction to move; else None.

    Returns:
      (before, rest): `before` takes constants and slices and returns what `rest` takes as its last inputs; None if there is
      nothing to move.
    """
    constants, slices = jaxpr.invars[:consts], jaxpr.invars[consts + carry :]
    fixed, free = _free(jaxpr, constants, slices)
    moved = []
    for index, eqn in enumerate(jaxpr.eqns):
        weight = wanted(index) if eqn.primitive in CONTRACTIONS else None
        if weight is not None and eqn.invars[weight] in fixed and eqn.invars[1 - weight] in free:
            moved.append(index)
    results = tuple(jaxpr.eqns[i].outvars[0] for i in moved)
    if not moved or length < 2 or not _fits(results, length):
        return None
    needed = _live(jaxpr.eqns, results)
    left = [None if i in moved else eqn for i, eqn in enumerate(jaxpr.eqns)]
    dead = needed - _live(left, jaxpr.outvars)
    before = Part((*constants, *slices), _only(jaxpr.eqns, needed), results)
    kept = set(range(len(left))) - dead
    return before, Part((*jaxpr.invars, *results), _only(left, kept), tuple(jaxpr.outvars))


def _free(jaxpr: Any, constants: Sequence[Any], slices: Sequence[Any]) -> tuple[set[Any], set[Any]]:
    """Variables that come from constants alone, and those that come from slices too; the carry reaches neither."""
    fixed, free = {*constants, *jaxpr.constvars}, set(slices)
    for eqn in jaxpr.eqns:
        operands = {v for v in eqn.invars if not isinstance(v, Literal)}
        if eqn.effects or not operands <= fixed | free:
            continue
        (fixed if operands <= fixed else free).update(eqn.outvars)
    return fixed, free


def _fits(results: Sequence[Any], length: int) -> bool:
    size = sum(4 * math.prod(v.aval.shape) for v in results) * length
    return certainly_less(size, MAXIMUM_BYTES + 1)


def _live(eqns: Sequence[Any], outvars: Sequence[Any]) -> set[int]:
    """Indices of the equations that results depend on."""
    needed, indices = {v for v in outvars if not isinstance(v, Literal)}, set()
    for index in reversed(range(len(eqns))):
        eqn = eqns[index]
        if eqn is not None and (eqn.effects or needed.intersection(eqn.outvars)):
            indices.add(index)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return indices


def _only(eqns: Sequence[Any], indices: Collection[int]) -> tuple[Any, ...]:
    return tuple(eqn if i in indices else None for i, eqn in enumerate(eqns))
