"""Joined values that a contraction reads directly: parts whose ranges differ much keep scales of their own.

A product over joined channels is the sum of the products of its parts. One range for all parts leaves few codes, or none, for a
part of small numbers. So where ranges are known to differ by more than a factor of `UNLIKE`, the parts are put into groups of
similar ranges, and each group becomes a product of its own. Three kinds of range are known while tracing: ranges given for the
parts (``SITE.part0``, ``SITE.part1``, ...; `calibrate` returns them where they differ), bounds by construction (a sigmoid
beside a relu), and the given range of the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.sites import part_name
from jaxq8.evaluation.interpreter import Context
from jaxq8.evaluation.values import Array, Value, bounds, to_real
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Range

# A part whose range is this many times smaller than the range of the whole loses three bits.
UNLIKE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """A value that was joined from parts.

    Attributes:
      data: The array of the joined value. It is kept so that no other array gets its id.
      parts: The values that were joined.
      dimension: The axis along which the parts lie side by side.
    """

    data: Any
    parts: tuple[Value, ...]
    dimension: int

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where each part begins and ends along the axis."""
        return places_within(self, Group(tuple(range(len(self.parts))), None))


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts that share a scale, and their common range as far as it is known while tracing."""

    members: tuple[int, ...]
    range: Range | None


def remember(ctx: Context, value: Value, parts: Sequence[Value], dimension: int) -> None:
    """Notes that a value was joined from parts."""
    data = _data(value)
    if data is not None and len(parts) > 1:
        ctx.run.joins[id(data)] = Join(data, tuple(parts), dimension)


def join_of(ctx: Context, value: Value) -> Join | None:
    """How a value was joined; None if it is no join, or was changed since."""
    return ctx.run.joins.get(id(_data(value)))


def _data(value: Value) -> Any:
    """The array by whose id a join is remembered."""
    if isinstance(value, QTensor):
        return value.values
    return value.array if isinstance(value, Array) else None


def groups(ctx: Context, site: str, parts: Sequence[Value]) -> list[Group]:
    """Which parts share a scale at a site.

    The parts of unknown range are one group, which comes first. The other groups are ordered by their ranges, the widest first.
    """
    given = ctx.run.ranges.get(site)
    whole = given if isinstance(given, Range) else None
    ranges = [_known(ctx, part_name(site, i), part) or whole for i, part in enumerate(parts)]
    unknown = tuple(i for i, known in enumerate(ranges) if known is None)
    grouped: list[Group] = []
    for i in sorted(range(len(parts)), key=lambda i: -_width(ranges[i])):
        known = ranges[i]
        if known is None:
            continue
        last = grouped[-1] if grouped else None
        if last is not None and last.range is not None and _alike(_width(last.range), _width(known)):
            grouped[-1] = Group((*last.members, i), last.range.union(known))
        else:
            grouped.append(Group((i,), known))
    return [Group(unknown, None), *grouped] if unknown else grouped


def are_unlike(ranges: Sequence[Range]) -> bool:
    """Whether these ranges differ so much that one scale does not suit all of them."""
    widths = [_width(known) for known in ranges if _width(known)]
    return bool(widths) and not _alike(max(widths), min(widths))


def _alike(large: float, small: float) -> bool:
    """Whether one scale suits ranges of both widths; a range of width 0 suits any scale."""
    return small == 0 or large <= UNLIKE * small


def _known(ctx: Context, name: str, part: Value) -> Range | None:
    """The range of a part: the given one, else the one that follows from finite bounds; None if it is unknown."""
    given = ctx.run.ranges.get(name)
    if isinstance(given, Range):
        return given
    low, high = bounds(part)
    return Range(low, high) if np.isfinite(low) and np.isfinite(high) and low <= high else None


def _width(known: Range | None) -> float:
    """The width of a range after it is extended to include zero; 0 for an unknown range."""
    return 0.0 if known is None else max(known.maximum, 0.0) - min(known.minimum, 0.0)


def unlike(found: Sequence[Group]) -> str:
    """The reason why parts do not share one scale, for the Plan; empty if they do."""
    if len(found) < 2:
        return ""
    widths = [_width(group.range) for group in found if group.range is not None]
    if len(widths) < len(found):
        return "ranges that are known beside ranges that are not"
    return f"ranges differ {widths[0] / max(widths[-1], 1e-30):.3g} times"


def together(parts: Sequence[Value], group: Group, dimension: int) -> Value:
    """The parts of a group as one value."""
    if len(group.members) == 1:
        return parts[group.members[0]]
    members = [parts[i] for i in group.members]
    low, high = zip(*map(bounds, members), strict=True)
    joined = jnp.concatenate([to_real(v) for v in members], dimension)
    return Array(joined, lo=min(low), hi=max(high), stored=False)


def places_within(join: Join, group: Group) -> list[tuple[int, int]]:
    """Where each member of a group begins and ends in the value that `together` returns."""
    ends = np.cumsum([join.parts[i].shape[join.dimension] for i in group.members]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def cut(tensor: QTensor, places: Sequence[tuple[int, int]], axis: int) -> QTensor:
    """Stretches of a tensor along an axis, put side by side; scales that differ along the axis are cut like the codes."""

    def stretches(a: Any) -> Any:
        if a.shape[axis] == 1 and tensor.shape[axis] != 1:
            return a
        index = [slice(None)] * a.ndim
        return jnp.concatenate([a[(*index[:axis], slice(*place))] for place in places], axis)

    return dataclasses.replace(
        tensor,
        values=stretches(tensor.values),
        scale=stretches(tensor.scale),
        zero_point=stretches(tensor.zero_point),
    )
