"""Which equations are sites, what they are called, which leaves are their weights, and which site needs codes of a value.

The analysis walks over the jaxpr before anything is evaluated. The name of a site is the first of these that exists:

1. the path of the weight that reaches the site, and the operation: ``params/Conv_0/kernel:conv``;
2. the scopes around the site, and the operation: ``Encoder_0/SelfAttention_0:dot``;
3. the operation alone: ``dot``.

A name that occurs again gets ``#2``, ``#3``, ... in program order. Only equal names are counted, so nothing else in the model
changes the number. Batch sizes, `jit` and `vmap` do not change names.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxq8._compat import Literal, name_stack, open_jaxpr, primitives
from jaxq8.analysis.inner_functions import Callee, callees
from jaxq8.analysis.trails import Trail, moved_trail

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
# Codes pass through these unchanged, so a site that needs codes of the result needs codes of the operand.
CARRIES_CODES = {
    primitives.reshape_p,
    primitives.transpose_p,
    primitives.squeeze_p,
    primitives.slice_p,
    primitives.pad_p,
    primitives.rev_p,
    primitives.reduce_window_max_p,
}


# The ends that make the name of a range from the name of a site: of its right operand, and of the parts of a joined value.
_SUFFIX = re.compile(r"\.(rhs|part\d+)$")


def site_name(name: str) -> str:
    """The name of the site whose operand has a name: ``head:dot`` of ``head:dot.rhs`` and ``head:dot.part1``."""
    return _SUFFIX.sub("", name)


def site_op(name: str) -> str:
    """The operation that a site's name ends with: "conv" of ``params/Conv_0/kernel:conv#2.rhs``."""
    return site_name(name).split("#")[0].rsplit(":", 1)[-1]


def is_part(name: str) -> bool:
    """Whether a name is that of one part of a joined value."""
    return site_name(name) != name and not name.endswith(".rhs")


def part_name(site: str, index: int) -> str:
    """The name of the range of one part of a joined value that a site reads."""
    return f"{site}.part{index}"


def operation(primitive: Any) -> str | None:
    """The name of a primitive's operation in the names of sites; None if its equations are no sites."""
    return OPERATIONS.get(primitive) or OPERATIONS.get(primitive.name)


@dataclasses.dataclass
class WeightUse:
    """The uses of one leaf: the axes that no site sums over, and the names of the sites."""

    kept: frozenset[int]
    sites: list[str]


@dataclasses.dataclass(frozen=True)
class Site:
    """One equation that has a name. `weight` is the position of its weight operand; None if it has no weight."""

    name: str
    op: str
    weight: int | None = None


@dataclasses.dataclass
class Analysis:
    """The sites and weights of a function.

    Attributes:
      sites: Path of an equation -> its `Site`.
      weights: Leaf -> its `WeightUse`.
      readers: Path of a scope -> variable -> number of equations that read it, plus 1 if the scope returns it.
      wanted: Path of a scope -> variable -> the first site that will need codes of it, if there is one.
    """

    sites: dict[Path, Site] = dataclasses.field(default_factory=dict)
    weights: dict[int, WeightUse] = dataclasses.field(default_factory=dict)
    readers: dict[Path, collections.Counter[Any]] = dataclasses.field(default_factory=dict)
    wanted: dict[Path, dict[Any, str]] = dataclasses.field(default_factory=dict)
    _names: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def unique(self, name: str) -> str:
        """The name, with a number if it was taken before."""
        self._names[name] += 1
        count = self._names[name]
        return name if count == 1 else f"{name}#{count}"

    def use(self, trail: Trail, kept_dims: Sequence[int], site: str) -> None:
        """Notes that `site` reads the leaves of a trail, and sums over all axes of the array except `kept_dims`."""
        for leaf, axes in trail.sources:
            use = self.weights.setdefault(leaf, WeightUse(frozenset(range(16)), []))
            # Axes that are not in the array (scan's first axis, sliced axes) are like batch axes: they keep their scales.
            for dim, members in enumerate(axes):
                if dim not in kept_dims:
                    use.kept = use.kept.difference(members)
            use.sites.append(site)


def analyse(jaxpr: Any, leaves: Sequence[str | None], accepts: Callable[[str, str], bool]) -> Analysis:
    """Walks a jaxpr.

    Args:
      jaxpr: The traced function (open); its constants must have been made inputs.
      leaves: For each input the path of the weight leaf, or None if it is data.
      accepts: ``(site name, op) -> bool``: whether a contraction will want eight-bit operands.

    Returns:
      The `Analysis`; the number of a leaf is the position of its input.
    """
    found = Analysis()
    trails: list[Trail | None] = []
    for i, (path, variable) in enumerate(zip(leaves, jaxpr.invars, strict=True)):
        trails.append(None if path is None else Trail.of_leaf(i, len(variable.aval.shape)))
    _forward(jaxpr, (), trails, leaves, found)
    _backward(jaxpr, (), {}, accepts, found)
    return found


def _forward(
    jaxpr: Any, path: Path, trails: Sequence[Trail | None], leaves: Sequence[str | None], found: Analysis
) -> list[Trail | None]:
    """Follows trails from the first equation to the last; notes sites, weights and readers.

    Args:
      jaxpr: The function, or a function inside it.
      path: Its scope.
      trails: The trails of its inputs; None for inputs that are no weights.
      leaves: For each leaf its path.
      found: The analysis so far.

    Returns:
      The trails of the results.
    """
    env: dict[Any, Trail | None] = dict(zip(jaxpr.invars, trails, strict=True))
    readers: collections.Counter[Any] = collections.Counter()

    def read(atom: Any) -> Trail | None:
        return None if isinstance(atom, Literal) else env.get(atom)

    for index, eqn in enumerate(jaxpr.eqns):
        _count(readers, eqn.invars)
        operands = [read(v) for v in eqn.invars]
        here = (*path, index)
        results: list[Trail | None] = [None] * len(eqn.outvars)
        for callee in callees(eqn):
            body = open_jaxpr(callee.jaxpr)[0]
            inner = _forward(body, (*here, callee.key), _enter(callee, operands), leaves, found)
            if callee.key == "" and len(inner) == len(results):  # a function that simply runs
                results = inner
        if operation(eqn.primitive):
            _name_site(eqn, here, operands, leaves, found)
        moved = moved_trail(eqn, operands)
        if moved is not None:
            results[0] = moved
        env.update(zip(eqn.outvars, results, strict=True))
    _count(readers, jaxpr.outvars)
    found.readers[path] = readers
    return [read(v) for v in jaxpr.outvars]


def _count(readers: collections.Counter[Any], atoms: Sequence[Any]) -> None:
    """Counts one reader for each variable among some operands."""
    readers.update({v for v in atoms if not isinstance(v, Literal)})


def _enter(callee: Callee, operands: Sequence[Trail | None]) -> list[Trail | None]:
    """The trails of the inputs of a function inside an equation; a slice has one axis less than its operand."""
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
    """Notes an equation as a site, and its weight as used."""
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
    """The position of the operand that is a weight; None if no operand is one.

    The weight of a convolution or a table look-up has a fixed position. Of a dot, either operand can be the weight.
    """
    if eqn.primitive is primitives.conv_general_dilated_p or eqn.primitive.name == RAGGED_DOT:
        return 1 if operands[1] is not None else None
    if eqn.primitive is primitives.gather_p:
        return 0 if operands[0] is not None and _reads_rows(eqn) else None
    if eqn.primitive is primitives.dot_general_p:
        if operands[1] is not None:
            return 1
        return 0 if operands[0] is not None else None
    return None


def _reads_rows(eqn: Any) -> bool:
    """Whether a gather reads rows of a table, rather than windows of a signal or single numbers."""
    dimensions, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    rows = set(dimensions.collapsed_slice_dims)
    shape = eqn.invars[0].aval.shape
    whole = all(sizes[axis] == shape[axis] for axis in range(len(shape)) if axis not in rows)
    return whole and set(dimensions.start_index_map) <= rows and any(s != 1 for s in sizes)


def _kept_dims(eqn: Any, weight: int) -> tuple[int, ...]:
    """The axes of a weight operand that keep scales of their own: those that the site does not sum over."""
    rank = len(eqn.invars[weight].aval.shape)
    if eqn.primitive is primitives.conv_general_dilated_p:
        return (eqn.params["dimension_numbers"].rhs_spec[0],)
    if eqn.primitive is primitives.gather_p:
        return tuple(eqn.params["dimension_numbers"].collapsed_slice_dims)
    dimensions = eqn.params.get("dimension_numbers") or ragged_dimensions(eqn.params)
    contracted = dimensions[0][weight]
    return tuple(d for d in range(rank) if d not in contracted)


def ragged_dimensions(params: Any) -> Any:
    """The dimension numbers of a ragged dot in the form of a dot: ((contracted), (batch)), each (left, right)."""
    return params["ragged_dot_dimension_numbers"].dot_dimension_numbers


def _backward(
    jaxpr: Any, path: Path, outputs: dict[int, str], accepts: Callable[[str, str], bool], found: Analysis
) -> dict[Any, str]:
    """Follows needs for codes from the last equation to the first; returns which site needs codes of a variable first.

    Args:
      jaxpr: The function, or a function inside it.
      path: Its scope.
      outputs: For the position of a result the site that needs codes of it.
      accepts: As for `analyse`.
      found: The analysis so far.
    """
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
    """The operand of an equation whose codes are needed, and the site that needs them, as a dict of at most one entry."""
    if eqn.primitive in CARRIES_CODES:
        needed = wanted.get(eqn.outvars[0])
        return {eqn.invars[0]: needed} if needed else {}
    if site is None or eqn.primitive not in CONTRACTIONS or not accepts(site.name, site.op):
        return {}
    activation = 1 if site.weight == 0 else 0
    return {eqn.invars[activation]: site.name}


def _want(wanted: dict[Any, str], new: dict[Any, str]) -> None:
    wanted.update({v: site for v, site in new.items() if not isinstance(v, Literal)})
