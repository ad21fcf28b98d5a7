"""Trails: how an array was made from leaves by layout operations alone, and where the axes of the leaves went.

An equation that reads a transposed or merged weight is still known to read that weight, and which of its axes it sums over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxq8._compat import primitives

Axes = tuple[tuple[int, ...], ...]

KEEPS_AXES = {
    primitives.convert_element_type_p, primitives.copy_p, primitives.rev_p, primitives.slice_p,
    primitives.dynamic_slice_p, primitives.sharding_constraint_p,
}  # fmt: skip
# Primitives of shard_map and of checkpoint policies, by their names: JAX has no public handle on them.
KEEPS_AXES_BY_NAME = {"pvary", "name"}


@dataclasses.dataclass(frozen=True)
class Trail:
    """How an intermediate array was made from leaves by layout operations alone.

    Attributes:
      sources: (leaf, axes) for each leaf, several if leaves were concatenated. `axes` lists for each axis of the array the
        axes of the leaf that are in it.
    """

    sources: tuple[tuple[int, Axes], ...]

    @classmethod
    def of_leaf(cls, leaf: int, rank: int) -> Trail:
        """The trail of a leaf itself."""
        return cls(((leaf, tuple((axis,) for axis in range(rank))),))

    def map(self, move: Callable[[Axes], Axes]) -> Trail:
        """The trail after a layout operation, which does `move` to the axes of the array."""
        return Trail(tuple((leaf, move(axes)) for leaf, axes in self.sources))


def moved_trail(eqn: Any, operands: Sequence[Trail | None]) -> Trail | None:
    """The trail of a layout operation's result; None for anything else."""
    if not operands or operands[0] is None:
        return None
    if eqn.primitive is primitives.concatenate_p:
        return _joined(operands)
    move = _axes_move(eqn)
    return operands[0].map(move) if move else None


def _joined(operands: Sequence[Trail | None]) -> Trail | None:
    """The trail of concatenated weights (merged projections, LSTM gates); None if an operand is no weight."""
    sources: list[tuple[int, Axes]] = []
    for trail in operands:
        if trail is None:
            return None
        sources += trail.sources
    return Trail(tuple(sources))


def _axes_move(eqn: Any) -> Callable[[Axes], Axes] | None:
    """What a layout operation does to the axes of its operand; None for any other operation."""
    p, params = eqn.primitive, eqn.params
    if p in KEEPS_AXES or p.name in KEEPS_AXES_BY_NAME:
        return lambda axes: axes
    if p is primitives.transpose_p:
        return lambda axes: tuple(axes[d] for d in params["permutation"])
    if p is primitives.squeeze_p:
        return lambda axes: tuple(a for d, a in enumerate(axes) if d not in params["dimensions"])
    if p is primitives.broadcast_in_dim_p:
        return lambda axes: _broadcast_axes(axes, params["broadcast_dimensions"], len(params["shape"]))
    if p is primitives.reshape_p and params.get("dimensions") is None:
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        return lambda axes: reshaped_axes(before, after, axes)
    return None


def moved_only(eqn: Any) -> bool:
    """Whether an equation computes nothing, so that its result holds elements of its first operand."""
    return bool(eqn.invars) and _axes_move(eqn) is not None


def _broadcast_axes(axes: Axes, places: Sequence[int], rank: int) -> Axes:
    """The old axes in each new axis of a broadcast, which puts axis i of its operand in the place ``places[i]``."""
    result: list[tuple[int, ...]] = [()] * rank
    for members, place in zip(axes, places, strict=True):
        result[place] = members
    return tuple(result)


def reshaped_axes(before: Sequence[int], after: Sequence[int], axes: Axes) -> Axes:
    """The old axes in each new axis of a reshape; an axis that is split is in all of its parts.

    The new axes are filled one after the other from the old axes that are larger than 1.
    """
    result: list[tuple[int, ...]] = []
    position, left = 0, 1  # the next old axis, and the size that is left of the one before
    taken: tuple[int, ...] = ()
    pool = [(n, members) for n, members in zip(before, axes, strict=True) if n != 1]
    for size in after:
        members: tuple[int, ...] = ()
        need = size
        while need > 1:
            if left == 1:
                left, taken = pool[position]
                position += 1
            members += tuple(a for a in taken if a not in members)
            step = min(need, left)
            need, left = -(-need // step), -(-left // step)
        result.append(members)
    return tuple(result)
