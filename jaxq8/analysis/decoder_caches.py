"""Caches of a decoder: slices of one array that are updated one by one and stacked again.

A step of a decoder reads the slice of each layer from one array of all layers, writes a new token into it, and stacks the
slices again. XLA copies all of them there. The same numbers come from updates of the array itself, one after the other, and
those XLA makes in place: the array is copied once, or not at all where it is donated or carried by a loop.

What is recognised is the whole pattern, in one jaxpr; whatever differs from it is left as it stands.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8._compat import Literal, primitives
from jaxq8.numerics.sizes import certainly_less

STACK, UNSTACK, SPLIT = "stack", "unstack", "split"  # by their names: not every JAX has the first two
UPDATE = primitives.dynamic_update_slice_p
# With as many elements as their operand these are the same data in the same order.
RESHAPES = {primitives.squeeze_p, primitives.reshape_p, primitives.broadcast_in_dim_p}


@dataclasses.dataclass(frozen=True)
class Chain:
    """A stack of updated slices, as updates of the array that they came from.

    Attributes:
      source: The variable of that array.
      axis: The axis along which it is cut and stacked.
      updates: Index of the equation of each update, in program order -> the slice it belongs to.
      stack: Index of the equation that stacks.
      ordered: Every reader of an update comes before the next update in the flow of data. Then readers can read from the array
        as it is at that point, and the slices need no other form. Otherwise XLA would copy the array for them.
    """

    source: Any
    axis: int
    updates: dict[int, int]
    stack: int
    ordered: bool


class Caches:
    """The chains of one evaluation of a jaxpr, and the arrays as far as they are updated."""

    def __init__(self, jaxpr: Any):
        self._chains = {index: chain for chain in chains(jaxpr) for index in (*chain.updates, chain.stack)}
        self._arrays: dict[int, Any] = {}

    def source(self, index: int) -> Any:
        """The variable of the array that an equation of a chain updates; None for every other equation."""
        chain = self._chains.get(index)
        return None if chain is None else chain.source

    def result(self, index: int, eqn: Any, operands: Sequence[Any], source: Any) -> Any:
        """What an equation of a chain computes.

        Args:
          index: Its place in the jaxpr.
          eqn: The equation.
          operands: Arrays; those of a stack are not read.
          source: The array before the first update.
        """
        chain = self._chains[index]
        array = self._arrays.get(chain.stack, source)
        if index == chain.stack:
            return array
        place, (old, new, *starts) = chain.updates[index], operands
        with_axis = jnp.ndim(old) == jnp.ndim(array)
        if with_axis:
            del starts[chain.axis]  # of an axis of size 1: whatever it says, it means 0
        # Clamped as in the slice: the other axes are as long in the array.
        starts.insert(chain.axis, np.asarray(place, jnp.result_type(starts[0])))
        part = new if with_axis else jnp.expand_dims(new, chain.axis)
        array = self._arrays[chain.stack] = UPDATE.bind(array, part, *starts, **eqn.params)
        if not chain.ordered:
            return UPDATE.bind(*operands, **eqn.params)
        return lax.index_in_dim(array, place, chain.axis, keepdims=with_axis)


def chains(jaxpr: Any) -> list[Chain]:
    """The stacks in a jaxpr that can be chains of updates; equations that are None are left out."""
    stacks = [(i, axis) for i, eqn in enumerate(jaxpr.eqns) if (axis := _stacked_axis(eqn)) is not None]
    if not stacks:
        return []
    makers = {
        v: (i, k) for i, eqn in enumerate(jaxpr.eqns) if eqn is not None for k, v in enumerate(eqn.outvars)
    }
    found: list[Chain] = []
    taken: set[int] = set()
    for index, axis in stacks:
        chain = _chain(jaxpr, index, axis, makers)
        # An update that two stacks share is made once: the second one stays a stack.
        if chain is not None and taken.isdisjoint(chain.updates):
            found.append(chain)
            taken.update(chain.updates)
    return found


def _stacked_axis(eqn: Any) -> int | None:
    """The axis along which an equation joins several parts of size 1; None if it does anything else."""
    if eqn is None or len(eqn.invars) < 2:
        return None
    if eqn.primitive.name == STACK:
        return int(eqn.params["axis"])
    if eqn.primitive is not primitives.concatenate_p:
        return None
    axis = eqn.params["dimension"]
    return axis if all(v.aval.shape[axis] == 1 for v in eqn.invars) else None


def _chain(jaxpr: Any, stack: int, axis: int, makers: Any) -> Chain | None:
    """The stack as a chain, if its parts are slices 0, 1, ... of one array and some of them are updated."""
    eqn = jaxpr.eqns[stack]
    result = eqn.outvars[0].aval
    source: Any = None
    updates: dict[int, int] = {}
    for place, part in enumerate(eqn.invars):
        traced = _traced(part, axis, result.shape, makers, jaxpr.eqns)
        if traced is None or traced[1] != place or (place > 0 and source is not traced[0]):
            return None
        source = traced[0]
        updates.update(dict.fromkeys(traced[2], place))
    if not updates or isinstance(source, Literal) or source.aval.dtype != result.dtype:
        return None
    pays = all(_pays(jaxpr.eqns[i], place) for i, place in updates.items())
    if not pays or source.aval.shape != result.shape:
        return None
    in_order = dict(sorted(updates.items()))
    return Chain(source, axis, in_order, stack, _is_ordered(jaxpr, list(in_order), stack))


def _traced(
    part: Any, axis: int, whole: tuple[Any, ...], makers: Any, eqns: Sequence[Any]
) -> tuple[Any, int, list[int]] | None:
    """(array, place, updates): the slice of an array that a part of a stack was, and the equations that updated it."""
    kept = (*whole[:axis], 1, *whole[axis + 1 :])
    dropped = (*whole[:axis], *whole[axis + 1 :])
    updates: list[int] = []
    while not isinstance(part, Literal) and part in makers:
        index, position = makers[part]
        eqn = eqns[index]
        if tuple(part.aval.shape) not in (kept, dropped):
            return None
        if not eqn.invars:
            return None
        operand, p, params = eqn.invars[0], eqn.primitive, eqn.params
        if p is UPDATE:
            updates.append(index)
        elif p is primitives.slice_p:
            place = _sliced_place(params, axis, whole)
            return None if place is None or operand.aval.shape != whole else (operand, place, updates)
        elif p.name in (UNSTACK, SPLIT):
            matched = (
                params["axis"] == axis and operand.aval.shape == whole and len(eqn.outvars) == whole[axis]
            )
            return (operand, position, updates) if matched else None
        elif p not in RESHAPES or len(eqn.invars) > 1 or _transposes(eqn):
            return None
        part = operand
    return None


def _transposes(eqn: Any) -> bool:
    return eqn.primitive is primitives.reshape_p and eqn.params.get("dimensions") is not None


def _sliced_place(params: Any, axis: int, whole: tuple[Any, ...]) -> int | None:
    """Which slice of size 1 along an axis is cut out, all of it."""
    starts, limits, strides = params["start_indices"], params["limit_indices"], params["strides"]
    if strides is not None and any(s != 1 for s in strides):
        return None
    place = starts[axis]
    first = tuple(place if a == axis else 0 for a in range(len(whole)))
    last = tuple(place + 1 if a == axis else n for a, n in enumerate(whole))
    return place if tuple(starts) == first and tuple(limits) == last else None


def _pays(eqn: Any, place: int) -> bool:
    """Whether an update leaves most of its slice as it is, and its indices can name the slice."""
    old, new, *starts = (v.aval for v in eqn.invars)
    small = certainly_less(2 * math.prod(new.shape), math.prod(old.shape))
    return small and bool(starts) and place <= jnp.iinfo(starts[0].dtype).max


def _is_ordered(jaxpr: Any, updates: Sequence[int], stack: int) -> bool:
    """Whether each update needs, directly or not, everything that reads the update before it."""
    before: dict[Any, int] = {}  # variable -> the equations that it needs, a bit for each
    needs: list[int] = []
    for index, eqn in enumerate(jaxpr.eqns):
        mask = 0
        if eqn is not None:
            for v in eqn.invars:
                mask |= 0 if isinstance(v, Literal) else before.get(v, 0)
            before.update(dict.fromkeys(eqn.outvars, mask | 1 << index))
        needs.append(mask)
    for first, second in itertools.pairwise(updates):
        (result,) = jaxpr.eqns[first].outvars
        readers = _readers(jaxpr, result, stack)
        if readers is None or any(r != second and not needs[second] >> r & 1 for r in readers):
            return False
    return True


def _readers(jaxpr: Any, variable: Any, stack: int) -> list[int] | None:
    """The equations that read a variable, as it is or reshaped, but for a stack; None if the jaxpr returns it."""
    same, readers = {variable}, []
    for index, eqn in enumerate(jaxpr.eqns):
        if (
            eqn is None
            or index == stack
            or same.isdisjoint(v for v in eqn.invars if not isinstance(v, Literal))
        ):
            continue
        if eqn.primitive in RESHAPES:
            same.update(eqn.outvars)
        else:
            readers.append(index)
    returned = any(v in same for v in jaxpr.outvars if not isinstance(v, Literal))
    return None if returned else readers
