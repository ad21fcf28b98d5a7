"""Caches of a decoder: slices of one array that are updated one by one and stacked again.

A step of a decoder reads the slice of each layer from one array of all layers, writes a new token into the slice, and stacks
all slices again. For the stack XLA copies all slices. Updates of the array itself, one after the other, give the same numbers,
and XLA makes them in place: the array is copied once, or not at all if it is donated or carried by a loop.

Only the whole pattern inside one jaxpr is recognised. Anything that differs from the pattern is evaluated as it stands.
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
# A result of one of these that has as many elements as the operand holds the same data in the same order.
RESHAPES = {primitives.squeeze_p, primitives.reshape_p, primitives.broadcast_in_dim_p}


@dataclasses.dataclass(frozen=True)
class Chain:
    """A stack of updated slices, as updates of the array that the slices came from.

    Attributes:
      source: The variable of that array.
      axis: The axis along which the array is cut and stacked.
      updates: Index of the equation of each update, in program order -> number of the slice that is updated.
      stack: Index of the equation that stacks.
      ordered: Whether the next update always depends on every reader of the update before. If so, readers read from the
        updated array. Otherwise XLA would copy the array for them, so they read an updated slice beside the array.
    """

    source: Any
    axis: int
    updates: dict[int, int]
    stack: int
    ordered: bool


class Caches:
    """The chains of a jaxpr during one evaluation, with the current state of their arrays."""

    def __init__(self, jaxpr: Any):
        self._chains: dict[int, Chain] = {}  # index of an equation -> the chain that it belongs to
        for chain in chains(jaxpr):
            self._chains.update(dict.fromkeys((*chain.updates, chain.stack), chain))
        self._arrays: dict[
            int, Any
        ] = {}  # index of the equation that stacks -> the array after the updates so far

    def source(self, index: int) -> Any:
        """The variable of the array that an equation of a chain updates; None for every other equation."""
        chain = self._chains.get(index)
        return None if chain is None else chain.source

    def result(self, index: int, eqn: Any, operands: Sequence[Any], source: Any) -> Any:
        """The result of an equation of a chain.

        Args:
          index: The index of the equation in the jaxpr.
          eqn: The equation.
          operands: Its operands as arrays; the operands of a stack are not read.
          source: The array before the first update.
        """
        chain = self._chains[index]
        array = self._arrays.get(chain.stack, source)
        if index == chain.stack:
            return array
        place, (old, new, *starts) = chain.updates[index], operands
        with_axis = jnp.ndim(old) == jnp.ndim(array)
        if with_axis:
            del starts[chain.axis]  # the axis has size 1, so any start means 0
        # The starts along the other axes are clamped as in the slice, because these axes are as long in the array.
        starts.insert(chain.axis, np.asarray(place, jnp.result_type(starts[0])))
        part = new if with_axis else jnp.expand_dims(new, chain.axis)
        array = self._arrays[chain.stack] = UPDATE.bind(array, part, *starts, **eqn.params)
        if not chain.ordered:
            return UPDATE.bind(*operands, **eqn.params)
        return lax.index_in_dim(array, place, chain.axis, keepdims=with_axis)


def chains(jaxpr: Any) -> list[Chain]:
    """The stacks in a jaxpr that can be computed as chains of updates; its equations may be None."""
    stacks = [(i, axis) for i, eqn in enumerate(jaxpr.eqns) if (axis := _stacked_axis(eqn)) is not None]
    if not stacks:
        return []
    makers: dict[Any, tuple[int, int]] = {}  # variable -> (index of its equation, position among the results)
    for i, eqn in enumerate(jaxpr.eqns):
        if eqn is not None:
            makers.update({variable: (i, k) for k, variable in enumerate(eqn.outvars)})
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
    """The axis along which an equation joins several parts of size 1; None for any other equation."""
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
        if traced is None:
            return None
        array, place_in_array, updates_of_part = traced
        if place_in_array != place or (place > 0 and array is not source):
            return None
        source = array
        updates.update(dict.fromkeys(updates_of_part, place))
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
    """(array, place, updates) of a part of a stack; None if the part is no slice of an array.

    The part is followed back through updates and reshapes to the equation that cut it out of the array. `place` is the number
    of the slice, `updates` are the equations that updated it.
    """
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
    """The number of the slice that is cut out, if it has size 1 along an axis and is whole along all others; else None."""
    starts, limits, strides = params["start_indices"], params["limit_indices"], params["strides"]
    if strides is not None and any(s != 1 for s in strides):
        return None
    place = starts[axis]
    first, last = [0] * len(whole), list(whole)
    first[axis], last[axis] = place, place + 1
    return place if list(starts) == first and list(limits) == last else None


def _pays(eqn: Any, place: int) -> bool:
    """Whether an update changes less than half of its slice, and the dtype of its indices can hold the slice's number."""
    old, new, *starts = (v.aval for v in eqn.invars)
    small = certainly_less(2 * math.prod(new.shape), math.prod(old.shape))
    return small and bool(starts) and place <= jnp.iinfo(starts[0].dtype).max


def _is_ordered(jaxpr: Any, updates: Sequence[int], stack: int) -> bool:
    """Whether each update depends, directly or not, on every equation that reads the update before it."""
    # Sets of equations are integers with one bit for each equation.
    before: dict[Any, int] = {}  # variable -> the equations that it depends on
    needs: list[int] = []  # equation -> the equations that it depends on
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
    """The equations except `stack` that read a variable or a reshape of it; None if the jaxpr returns it."""
    same, readers = {variable}, []
    for index, eqn in enumerate(jaxpr.eqns):
        if eqn is None or index == stack:
            continue
        operands = [v for v in eqn.invars if not isinstance(v, Literal)]
        if same.isdisjoint(operands):
            continue
        if eqn.primitive in RESHAPES:
            same.update(eqn.outvars)
        else:
            readers.append(index)
    returned = any(v in same for v in jaxpr.outvars if not isinstance(v, Literal))
    return None if returned else readers
