"""Contractions in the body of a scan that can run before the loop, such as the input projection of a recurrent cell.

What a step computes from its slice of the data and from weights alone does not depend on the steps before it. Before the loop,
one product of all steps reads the weights once. Inside the loop, a product of few rows reads the weights in every step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jaxq8._compat import Literal
from jaxq8.analysis.sites import CONTRACTIONS
from jaxq8.numerics.sizes import certainly_less

# Limit for the results of all steps together. Larger results would cost more, by writing and reading memory, than they save.
MAXIMUM_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a jaxpr: some equations, each in its place, and None in the place of each equation that is left out."""

    invars: tuple[Any, ...]
    eqns: tuple[Any, ...]
    outvars: tuple[Any, ...]
    constvars: tuple[Any, ...] = ()


def parted(
    jaxpr: Any, consts: int, carry: int, length: int, wanted: Callable[[int], int | None]
) -> tuple[Part, Part] | None:
    """Splits the body of a scan into a part that can run before the loop, for all steps at once, and the rest.

    Args:
      jaxpr: The body, open; its inputs are constants, then the carry, then slices.
      consts: Number of constants.
      carry: Number of carried values.
      length: Number of steps.
      wanted: Maps the index of a contraction to the position of its weight, or to None if it shall stay in the loop.

    Returns:
      (before, rest): `before` takes constants and slices, and returns what `rest` takes as its last inputs. None if there is
      nothing to move.
    """
    constants, slices = jaxpr.invars[:consts], jaxpr.invars[consts + carry :]
    from_constants, from_slices = _free_of_carry(jaxpr, constants, slices)
    moved = []
    for index, eqn in enumerate(jaxpr.eqns):
        weight = wanted(index) if eqn.primitive in CONTRACTIONS else None
        if weight is None:
            continue
        if eqn.invars[weight] in from_constants and eqn.invars[1 - weight] in from_slices:
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


def _free_of_carry(jaxpr: Any, constants: Sequence[Any], slices: Sequence[Any]) -> tuple[set[Any], set[Any]]:
    """Variables computed from constants alone, and variables computed from slices and constants; the carry is in neither."""
    from_constants, from_slices = {*constants, *jaxpr.constvars}, set(slices)
    for eqn in jaxpr.eqns:
        operands = {v for v in eqn.invars if not isinstance(v, Literal)}
        if eqn.effects or not operands <= from_constants | from_slices:
            continue
        if operands <= from_constants:
            from_constants.update(eqn.outvars)
        else:
            from_slices.update(eqn.outvars)
    return from_constants, from_slices


def _fits(results: Sequence[Any], length: int) -> bool:
    size = sum(4 * math.prod(v.aval.shape) for v in results) * length
    return certainly_less(size, MAXIMUM_BYTES + 1)


def _live(eqns: Sequence[Any], outvars: Sequence[Any]) -> set[int]:
    """Indices of the equations that some results depend on, and of those that have effects."""
    needed, indices = {v for v in outvars if not isinstance(v, Literal)}, set()
    for index in reversed(range(len(eqns))):
        eqn = eqns[index]
        if eqn is not None and (eqn.effects or needed.intersection(eqn.outvars)):
            indices.add(index)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return indices


def _only(eqns: Sequence[Any], indices: Collection[int]) -> tuple[Any, ...]:
    return tuple(eqn if i in indices else None for i, eqn in enumerate(eqns))
