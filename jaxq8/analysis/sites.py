"""Which equations are sites, what they are called, which leaves are their weights, and who needs codes next.

One walk over the jaxpr, before anything is evaluated. Names follow a ladder:

1. the path of the weight that reaches the site, and the operation: ``params/Conv_0/kernel:conv``;
2. else the scopes around it: ``Encoder_0/SelfAttention_0:dot``;
3. else the operation alone: ``dot``.

A name that occurs again gets ``#2``, ``#3``, ... in program order, counted among equal names only: nothing else in the model
shifts it. Batch sizes, `jit` and `vmap` leave names as they are.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxq8._compat import Literal, name_stack, open_jaxpr, primitives
from jaxq8.analysis.inner_functions import Callee, callees

Path = tuple[Any, ...]

RAGGED_DOT = "ragged_dot_general"  # by its name: JAX has no public handle on this primitive
OPERATIONS = {
    RAGGED_DOT: "ragged_dot",
    primitives.dot_general_p: "dot",
    primitives.conv_general_dilated_p: "conv",
    primitives.gather_p: "gather",
    primitives.concatenate_p: "concatenate",
    primitives.reduce_window_max_p: "max_pool",
    primitives.reduce_window_sum_p: "sum_pool",
}
CONTRACTIONS = {primitives.dot_general_p, primitives.conv_general_dilated_p}
KEEPS_AXES = {
    primitives.convert_element_type_p, primitives.copy_p, primitives.rev_p, primitives.slice_p,
    primitives.dynamic_slice_p, primitives.sharding_constraint_p,
}  # fmt: skip
KEEPS_AXES_BY_NAME = {
    "pvary",
    "name",
}  # of shard_map and checkpoint policies: JAX has no public handle on them
# Codes pass through these as they are: a need for codes of the result is a need for codes of the operand.
CARRIES_CODES = {
    primitives.reshape_p,
    primitives.transpose_p,
    primitives.squeeze_p,
    primitives.slice_p,
    primitives.pad_p,
    primitives.rev_p,
    primitives.reduce_window_max_p,
}


Axes = tuple[tuple[int, ...], ...]

# What a site's second activation, and parts of a value that was joined before the site reads it, add to its name.
_SUFFIX = re.compile(r"\.(rhs|part\d+)$")


def site_name(name: str) -> str:
    """The site behind a name of one of its operands: ``head:dot`` of ``head:dot.rhs`` and ``head:dot.part1``."""
    return _SUFFIX.sub("", name)


def site_op(name: str) -> str:
    """The operation that a site's name ends in: "conv" of ``params/Conv_0/kernel:conv#2.rhs``."""
    return site_name(name).split("#")[0].rsplit(":", 1)[-1]


def is_part(name: str) -> bool:
    """Whether a name is that of one part of a joined value."""
    return site_name(name) != name and not name.endswith(".rhs")


def part_name(site: str, index: int) -> str:
    """The name of the range of one part of a joined value that a site reads."""
    return f"{site}.part{index}"


def operation(primitive: Any) -> str | None:
    """What sites of a primitive are called; None if it makes no sites."""
    return OPERATIONS.get(primitive) or OPERATIONS.get(primitive.name)


@dataclasses.dataclass(frozen=True)
class Trail:
    """How an intermediate array comes from leaves by layout alone.

    Attributes:
      sources: (leaf, for each axis of the array the leaf's axes in it); several leaves if they were concatenated.
    """

    sources: tuple[tuple[int, Axes], ...]

    def map(self, move: Callable[[Axes], Axes]) -> Trail:
        return Trail(tuple((leaf, move(axes)) for leaf, axes in self.sources))


@dataclasses.dataclass
class WeightUse:
    """What one leaf is used for: the axes over which no site sums, and the sites."""

    kept: frozenset[int]
    sites: list[str]


@dataclasses.dataclass(frozen=True)
class Site:
    """One equation that has a name. `weight` is the position of its weight operand, None if it has none."""

    name: str
    op: str
    weight: int | None = None


@dataclasses.dataclass
class Analysis:
    """What the walk found.

    Attributes:
      sites: Path of an equation -> its `Site`.
      weights: Leaf -> its `WeightUse`.
      readers: Path of a scope -> variable -> number of equations (and outputs) that read it.
      wanted: Path of a scope -> variable -> the site that will need codes of it first, where one does.
    """

    sites: dict[Path, Site] = dataclasses.field(default_factory=dict)
    weights: dict[int, WeightUse] = dataclasses.field(default_factory=dict)
    readers: dict[Path, collections.Counter[Any]] = dataclasses.field(default_factory=dict)
    wanted: dict[Path, dict[Any, str]] = dataclasses.field(default_factory=dict)
    _names: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def unique(self, name: str) -> str:
        self._names[name] += 1
        count = self._names[name]
        return name if count == 1 else f"{name}#{count}"

    def use(self, trail: Trail, kept_dims: Sequence[int], site: str) -> None:
        """Notes that `site` reads a leaf and sums over every axis but `kept_dims` of the trail."""
        for leaf, axes in trail.sources:
            use = self.weights.setdefault(leaf, WeightUse(frozenset(range(16)), []))
            # Axes that the trail dropped (scan's first, sliced ones) are batch-like: they keep their scales.
            use.kept = use.kept - {a for d, members in enumerate(axes) if d not in kept_dims for a in members}
            use.sites.append(site)


def analyse(jaxpr: Any, leaves: Sequence[str | None], accepts: Callable[[str, str], bool]) -> Analysis:
    """Walks a jaxpr.

    Args:
      jaxpr: The traced function (open); its consts must have been made inputs.
      leaves: For each input the path of the weight leaf, or None if it is data.
      accepts: ``(site name, op) -> bool``: whether a contraction will want eight-bit operands.

    Returns:
      The `Analysis`; leaves are numbered by input position.
    """
    found = Analysis()
    trails: list[Trail | None] = [
        None if path is None else Trail(((i, tuple((a,) for a in range(len(v.aval.shape)))),))
        for i, (path, v) in enumerate(zip(leaves, jaxpr.invars, strict=True))
    ]
    _forward(jaxpr, (), trails, leaves, found)
    _backward(jaxpr, (), {}, accepts, found)
    return found


def _forward(
    jaxpr: Any, path: Path, trails: Sequence[Trail | None], leaves: Sequence[str | None], found: Analysis
) -> list[Trail | None]:
    env: dict[Any, Trail | None] = dict(zip(jaxpr.invars, trails, strict=True))
    readers: collections.Counter[Any] = collections.Counter()

    def read(atom: Any) -> Trail | None:
        return None if isinstance(atom, Literal) else env.get(atom)

    for index, eqn in enumerate(jaxpr.eqns):
        _count(readers, eqn.invars)
        operands = [read(v) for v in eqn.invars]
        here = (*path, index)
        inner = callees(eqn)
        if inner:
            results: list[Trail | None] = [None] * len(eqn.outvars)
            for callee in inner:
                outs = _forward(
                    open_jaxpr(callee.jaxpr)[0], (*here, callee.key), _enter(callee, operands), leaves, found
                )
                if callee.key == "" and len(outs) == len(results):
                    results = outs
        else:
            if operation(eqn.primitive):
                _name_site(eqn, here, operands, leaves, found)
            results = [moved_trail(eqn, operands), *[None] * len(eqn.outvars)][: len(eqn.outvars)]
        env.update(zip(eqn.outvars, results, strict=True))
    _count(readers, jaxpr.outvars)
    found.readers[path] = readers
    return [read(v) for v in jaxpr.outvars]


def _count(readers: collections.Counter[Any], atoms: Sequence[Any]) -> None:
    readers.update({v for v in atoms if not isinstance(v, Literal)})


def _enter(callee: Callee, operands: Sequence[Trail | None]) -> list[Trail | None]:
    entered = []
    for position, operand in enumerate(callee.operands):
        trail = operands[operand]
        if trail is not None and callee.is_stacked(position):
            trail = trail.map(lambda axes: axes[1:])
        entered.append(trail)
    return entered


def _name_site(
    eqn: Any, here: Path, operands: Sequence[Trail | None], leaves: Sequence[str | None], found: Analysis
) -> None:
    op = operation(eqn.primitive)
    assert op is not None
    weight = _weight_operand(eqn, operands)
    trail = None if weight is None else operands[weight]
    base = leaves[trail.sources[0][0]] if trail is not None else name_stack(eqn)
    name = found.unique(f"{base}:{op}" if base else op)
    found.sites[here] = Site(name, op, weight)
    if trail is not None and weight is not None:
        found.use(trail, _kept_dims(eqn, weight), name)


def _weight_operand(eqn: Any, operands: Sequence[Trail | None]) -> int | None:
    """The operand that is a weight: a convolution's or table look-up's by position, a dot's whichever is a leaf."""
    if eqn.primitive is primitives.conv_general_dilated_p or eqn.primitive.name == RAGGED_DOT:
        return 1 if operands[1] is not None else None
    if eqn.primitive is primitives.gather_p:
        return 0 if operands[0] is not None and _reads_rows(eqn) else None
    if eqn.primitive is primitives.dot_general_p:
        return 1 if operands[1] is not None else 0 if operands[0] is not None else None
    return None


def _reads_rows(eqn: Any) -> bool:
    """Whether a gather looks rows of a table up; windows of a signal and single numbers are no table."""
    dimensions, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    rows = set(dimensions.collapsed_slice_dims)
    whole = all(
        s == n for a, (s, n) in enumerate(zip(sizes, eqn.invars[0].aval.shape, strict=True)) if a not in rows
    )
    return whole and set(dimensions.start_index_map) <= rows and any(s != 1 for s in sizes)


def _kept_dims(eqn: Any, weight: int) -> tuple[int, ...]:
    """The axes of a weight operand that keep scales of their own: those over which the site does not sum."""
    rank = len(eqn.invars[weight].aval.shape)
    if eqn.primitive is primitives.conv_general_dilated_p:
        return (eqn.params["dimension_numbers"].rhs_spec[0],)
    if eqn.primitive is primitives.gather_p:
        return tuple(eqn.params["dimension_numbers"].collapsed_slice_dims)
    dimensions = eqn.params.get("dimension_numbers") or ragged_dimensions(eqn.params)
    contracted = dimensions[0][weight]
    return tuple(d for d in range(rank) if d not in contracted)


def ragged_dimensions(params: Any) -> Any:
    """The dimension numbers of a ragged dot as those of a dot: ((contracted), (batch)), each (left, right)."""
    return params["ragged_dot_dimension_numbers"].dot_dimension_numbers


def moved_trail(eqn: Any, operands: Sequence[Trail | None]) -> Trail | None:
    """The trail of a layout operation's result; None for anything else."""
    if not operands or operands[0] is None:
        return None
    if eqn.primitive is primitives.concatenate_p:
        return _joined(operands)
    move = _axes_move(eqn)
    return operands[0].map(move) if move else None


def _joined(operands: Sequence[Trail | None]) -> Trail | None:
    """Weights that are concatenated before their dot (merged projections, LSTM gates) are all weights of it."""
    known = [t for t in operands if t is not None]
    return Trail(tuple(s for t in known for s in t.sources)) if len(known) == len(operands) else None


def _axes_move(eqn: Any) -> Callable[[Axes], Axes] | None:
    """What a layout operation does to the axes of its operand."""
    p, params = eqn.primitive, eqn.params
    if p in KEEPS_AXES or p.name in KEEPS_AXES_BY_NAME:
        return lambda axes: axes
    if p is primitives.transpose_p:
        return lambda axes: tuple(axes[d] for d in params["permutation"])
    if p is primitives.squeeze_p:
        return lambda axes: tuple(a for d, a in enumerate(axes) if d not in params["dimensions"])
    if p is primitives.broadcast_in_dim_p:
        placed = {target: d for d, target in enumerate(params["broadcast_dimensions"])}
        return lambda axes: tuple(axes[placed[d]] if d in placed else () for d in range(len(params["shape"])))
    if p is primitives.reshape_p and params.get("dimensions") is None:
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        return lambda axes: reshaped_axes(before, after, axes)
    return None


def moved_only(eqn: Any) -> bool:
    """Whether an equation computes nothing: its result holds elements of its first operand."""
    return bool(eqn.invars) and _axes_move(eqn) is not None


def reshaped_axes(
    before: Sequence[int], after: Sequence[int], axes: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """Which old axes are in each new axis of a reshape; an axis that is split is in all of its parts."""
    result: list[tuple[int, ...]] = []
    position, left = 0, 1
    taken: tuple[int, ...] = ()
    pool = [(n, tuple(a)) for n, a in zip(before, axes, strict=True) if n != 1]
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


def _backward(
    jaxpr: Any, path: Path, outputs: dict[int, str], accepts: Callable[[str, str], bool], found: Analysis
) -> dict[Any, str]:
    """Finds, from the last equation to the first, the site that needs codes of each variable first."""
    wanted: dict[Any, str] = {}
    for position, site in outputs.items():
        if not isinstance(jaxpr.outvars[position], Literal):
            wanted[jaxpr.outvars[position]] = site
    for index in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[index]
        here = (*path, index)
        for callee in callees(eqn):
            results = {i: wanted[v] for i, v in enumerate(eqn.outvars) if callee.key == "" and v in wanted}
            body = open_jaxpr(callee.jaxpr)[0]
            inner = _backward(body, (*here, callee.key), results, accepts, found)
            if callee.key == "":
                _want(wanted, {eqn.invars[i]: inner[v] for i, v in enumerate(body.invars) if v in inner})
        _want(wanted, _needs(eqn, found.sites.get(here), wanted, accepts))
    found.wanted[path] = wanted
    return wanted


def _needs(
    eqn: Any, site: Site | None, wanted: dict[Any, str], accepts: Callable[[str, str], bool]
) -> dict[Any, str]:
    if eqn.primitive in CARRIES_CODES:
        needed = wanted.get(eqn.outvars[0])
        return {eqn.invars[0]: needed} if needed else {}
    if site is None or eqn.primitive not in CONTRACTIONS or not accepts(site.name, site.op):
        return {}
    activation = 1 if site.weight == 0 else 0
    return {eqn.invars[activation]: site.name}


def _want(wanted: dict[Any, str], new: dict[Any, str]) -> None:
    wanted.update({v: site for v, site in new.items() if not isinstance(v, Literal)})
