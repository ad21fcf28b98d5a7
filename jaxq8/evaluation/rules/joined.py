"""Joined values that a contraction reads directly: parts of unlike size keep scales of their own.

A product over joined channels is the sum of the products of its parts. One range for all parts leaves a small part few codes,
or none; so where ranges are known to differ by more than `UNLIKE`, each part (with the parts of its size) is a product of
its own. What is known: ranges given for the parts (``SITE.part0``, ``SITE.part1``, ... : `calibrate` gives them where they
differ), bounds by construction (a sigmoid beside a relu), and the given range of the whole.
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

# A part whose range is this many times smaller than that of the whole has three bits less than it could have.
UNLIKE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """What was joined.

    Attributes:
      data: The array that the join became, kept so that its identity stays its own.
      parts: The values that were joined.
      dimension: The axis along which they lie side by side.
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
    """Notes what a value was joined from."""
    data = _data(value)
    if data is not None and len(parts) > 1:
        ctx.run.joins[id(data)] = Join(data, tuple(parts), dimension)


def join_of(ctx: Context, value: Value) -> Join | None:
    """What a value was joined from, if it is a join and nothing was done to it since."""
    return ctx.run.joins.get(id(_data(value)))


def _data(value: Value) -> Any:
    return value.values if isinstance(value, QTensor) else value.array if isinstance(value, Array) else None


def groups(ctx: Context, site: str, parts: Sequence[Value]) -> list[Group]:
    """Which parts share a scale at a site, the largest first; one group where nothing tells that they are unlike."""
    given = ctx.run.ranges.get(site)
    whole = given if isinstance(given, Range) else None
    ranges = [_known(ctx, part_name(site, i), part) or whole for i, part in enumerate(parts)]
    found = [Group((i,), None) for i, known in enumerate(ranges) if known is None]
    unknown = [Group(tuple(i for group in found for i in group.members), None)] if found else []
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
    return unknown + grouped


def are_unlike(ranges: Sequence[Range]) -> bool:
    """Whether one scale does not suit all of these ranges."""
    widths = [_width(known) for known in ranges if _width(known)]
    return bool(widths) and not _alike(max(widths), min(widths))


def _alike(large: float, small: float) -> bool:
    """Whether one scale suits both; zeros alone suit any."""
    return small == 0 or large <= UNLIKE * small


def _known(ctx: Context, name: str, part: Value) -> Range | None:
    given = ctx.run.ranges.get(name)
    if isinstance(given, Range):
        return given
    low, high = bounds(part)
    return Range(low, high) if np.isfinite(low) and np.isfinite(high) and low <= high else None


def _width(known: Range | None) -> float:
    """The width of the codes of a range, zero included."""
    return 0.0 if known is None else max(known.maximum, 0.0) - min(known.minimum, 0.0)


def unlike(found: Sequence[Group]) -> str:
    """Why parts do not share one scale, for the Plan; empty if they do."""
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
    """Where each member of a group begins and ends in the value that `together` makes."""
    ends = np.cumsum([join.parts[i].shape[join.dimension] for i in group.members]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def cut(tensor: QTensor, places: Sequence[tuple[int, int]], axis: int) -> QTensor:
    """Stretches of a tensor along an axis, side by side; scales that differ along the axis go with their codes."""

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
