"""Which equations of a collected program run in native regions.

An equation is a *candidate* if a region has a step for it. Candidates are grouped by *level*: how many times the way from the
inputs has left candidates and come back. What one level holds can run in one call, since no way leads from a candidate through
other equations back to a candidate of the same level. Of each level, the connected groups with enough contractions are taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxq8._compat import Literal, primitives
from jaxq8.analysis.inner_functions import JIT, SCAN
from jaxq8.kernels.epilogue import nan_among, real_numbers
from jaxq8.kernels.float_forms import batched_dot
from jaxq8.kernels.pooling import max_pool, sum_pool, total
from jaxq8.kernels.registry import contraction
from jaxq8.regions.arithmetic import COPIES, ENCODINGS, is_arithmetic, kind
from jaxq8.regions.expressions import has_small_shape
from jaxq8.regions.program import DTYPES

SMALL = 1 << 14  # an array of more elements is data
# What only gives the same numbers another shape.
VIEWS = {primitives.reshape_p, primitives.squeeze_p}
MOVES = {primitives.concatenate_p, primitives.slice_p, primitives.transpose_p, primitives.pad_p}
POOLS = {max_pool.primitive, sum_pool.primitive, total.primitive}
REDUCTIONS = {
    primitives.reduce_sum_p: "sum",
    primitives.reduce_max_p: "max",
    primitives.reduce_min_p: "min",
    nan_among.primitive: "nan",
}
DOTS = {primitives.dot_general_p, batched_dot.primitive}
# What reads or writes a part of an array at a place that is found in the run, and how many operands come before its starts.
PLACED = {primitives.dynamic_slice_p: 1, primitives.dynamic_update_slice_p: 2}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which regions are worth their calls.

    Attributes:
      least: How many contractions a region has at least: with fewer, waking the threads costs more than the call saves.
      most: How many regions a function has at most, None for any number. Each call waits for the work of XLA around it, and XLA
        for the call. With 17 regions EfficientNet-B0 took 1.6 times as long as in XLA's forms, and ConvNeXt 1.15 times; with 4
        a U-Net took 0.55 times (Zen 4, batch 1, minima of `python -m benchmarks`).
    """

    least: int
    most: int | None


AUTOMATIC, EVERY = Limits(2, 4), Limits(1, None)


@dataclasses.dataclass(frozen=True)
class Group:
    """Equations that run in one call.

    Attributes:
      level: The level of all of them.
      members: Their positions in the program, in its order.
    """

    level: int
    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Levels:
    """The level of each equation, and whether it is a candidate."""

    of: list[int]
    candidates: list[bool]


def is_stored(eqn: Any) -> bool:
    """Whether an equation returns its operands: a call of `jaxq8._compat.stored`, or one that concerns derivatives only."""
    return eqn.primitive in COPIES or (
        eqn.primitive in JIT and eqn.params.get("name") in ("stored", "stop_gradient")
    )


def is_small(atom: Any) -> bool:
    """Whether a variable holds one number, or one number for each channel."""
    shape = tuple(atom.aval.shape)
    return math.prod(shape) <= SMALL and has_small_shape(shape)


def takes_first(eqn: Any) -> bool:
    """Whether an equation takes the first number of a vector."""
    if eqn.primitive is not primitives.slice_p or not is_small(eqn.invars[0]):
        return False
    return not any(eqn.params["start_indices"]) and math.prod(eqn.outvars[0].aval.shape) == 1


def found(
    eqns: Sequence[Any], contractions: Callable[[int], int], limits: Limits
) -> tuple[list[Group], Levels]:
    """The groups of equations that run natively, and the levels of all equations.

    Args:
      eqns: The equations of the program.
      contractions: How many contractions the step of the equation at a position computes: one for a contraction that has a
        native step, several for a scan that runs as a loop, none for every other equation.
      limits: Which groups are taken.
    """
    makers = _makers(eqns)
    readers: list[list[int]] = [[] for _ in eqns]
    for index, made in enumerate(makers):
        for i in made:
            readers[i].append(index)
    candidate = _candidates(eqns, makers, readers, contractions)
    levels = [0] * len(eqns)
    for index, made in enumerate(makers):
        levels[index] = max((levels[i] + (candidate[i] and not candidate[index]) for i in made), default=0)
    merged: dict[int, list[int]] = {}
    for group in _connected(makers, candidate, levels):
        kept = _without_tails(group, eqns, readers)
        inside = set(kept)
        # An int32 result that leaves the region, such as one whose range is to be measured, is better left to XLA.
        counted = [i for i in kept if eqns[i].primitive is SCAN or all(r in inside for r in readers[i])]
        if sum(map(contractions, counted)) >= limits.least:
            merged.setdefault(levels[group[0]], []).extend(kept)
    groups = [Group(level, tuple(sorted(members))) for level, members in merged.items()]
    few = limits.most is None or len(groups) <= limits.most
    return groups if few else [], Levels(levels, candidate)


def _makers(eqns: Sequence[Any]) -> list[list[int]]:
    """For each equation the positions of those that make what it reads."""
    maker: dict[Any, int] = {}
    found = []
    for index, eqn in enumerate(eqns):
        found.append([maker[v] for v in eqn.invars if not isinstance(v, Literal) and v in maker])
        maker.update(dict.fromkeys(eqn.outvars, index))
    return found


def _candidates(
    eqns: Sequence[Any], makers: Sequence[Sequence[int]], readers: Sequence[Sequence[int]],
    contractions: Callable[[int], int],
) -> list[bool]:  # fmt: skip
    """Which equations are candidates."""
    candidate = [False] * len(eqns)
    data = [False] * len(eqns)  # candidates whose results depend on codes, rather than on parameters alone
    for index, eqn in enumerate(eqns):
        own = any(candidate[i] for i in makers[index])
        born = any(candidate[i] and data[i] for i in makers[index])
        candidate[index] = _is_vector(eqn, own) or _is_candidate(eqn, born, contractions(index) > 0)
        data[index] = born or eqn.primitive in (contraction.primitive, SCAN, *ENCODINGS)
    for index in reversed(range(len(eqns))):
        if not candidate[index]:
            # What grows in it, such as a mask that is broadcast to all heads, need not exist outside.
            inside = bool(readers[index]) and all(candidate[i] for i in readers[index])
            candidate[index] = inside and _grows(eqns[index])
        if not candidate[index]:
            # Few numbers for something outside are computed outside, and need not separate what is before from what is behind.
            for i in makers[index]:
                candidate[i] = candidate[i] and data[i]
    return candidate


def _grows(eqn: Any) -> bool:
    """Whether an equation is arithmetic whose result has more numbers than its operands together."""
    atoms = (*eqn.invars, *eqn.outvars)
    if len(eqn.outvars) != 1 or not all(map(_has_place, atoms)) or not is_arithmetic(eqn):
        return False
    return 2 * sum(math.prod(v.aval.shape) for v in eqn.invars) <= math.prod(eqn.outvars[0].aval.shape)


def _is_little(atom: Any) -> bool:
    """Whether an array has so few numbers that it does not matter where they are computed."""
    return _has_place(atom) and math.prod(atom.aval.shape) <= SMALL


def _is_vector(eqn: Any, own: bool) -> bool:
    """Whether an equation is arithmetic on few numbers, such as one for each channel; `own`: a candidate made some of them."""
    p = eqn.primitive
    if is_stored(eqn):
        return all(map(_is_little, eqn.outvars))
    if len(eqn.outvars) != 1 or not all(map(_is_little, (*eqn.invars, *eqn.outvars))):
        return False
    if p in REDUCTIONS:
        # Data that come from outside are looked at outside: so under `jax.vmap` each example has its own look at them.
        return own and _is_plain_reduction(eqn)
    if kind(eqn.outvars[0]) not in ("float", "int", "bool") or p in ENCODINGS:
        return False
    return p in VIEWS or p is primitives.slice_p or is_arithmetic(eqn)


def has_step(eqn: Any, is_native: bool) -> bool:
    """Whether a region could compute an equation, wherever its operands come from.

    Args:
      eqn: The equation.
      is_native: Of a contraction or a scan, whether it has a native step.
    """
    return _is_vector(eqn, True) or _is_candidate(eqn, True, is_native)


def is_held(atom: Any) -> bool:
    """Whether a region can hold an array as it is: truths are numbers there."""
    return _has_place(atom) and atom.aval.dtype != bool


def _is_candidate(eqn: Any, born: bool, is_native: bool) -> bool:
    """Whether a region has a step for an equation; `born` says that one of its operands depends on codes."""
    if not all(_has_place(v) for v in (*eqn.invars, *eqn.outvars)):
        return False
    p = eqn.primitive
    if p in (contraction.primitive, SCAN):
        return is_native
    if p in ENCODINGS:
        return True
    if not born:
        return False
    if p in REDUCTIONS:
        return _is_plain_reduction(eqn)
    if not all(v.aval.shape for v in eqn.outvars):
        return False
    if p in POOLS:
        return _is_plain_pool(eqn)
    if p in DOTS:
        return is_product(eqn)
    if p in PLACED:
        return _is_placed(eqn)
    if p in VIEWS or is_stored(eqn):
        return True
    if p in MOVES:
        return p is not primitives.pad_p or all(
            hole == 0 <= min(a, b) for a, b, hole in eqn.params["padding_config"]
        )
    return is_arithmetic(eqn)


def is_product(eqn: Any) -> bool:
    """Whether a product of data is one product of float32 matrices for each place of some axes."""
    if any(v.aval.dtype != jnp.float32 for v in (*eqn.invars, *eqn.outvars)):
        return False
    (first, second), _ = eqn.params["dimension_numbers"]
    return len(first) == len(second) == 1 and max(len(v.aval.shape) for v in eqn.invars) <= 6


def _is_placed(eqn: Any) -> bool:
    """Whether a part of numbers or codes is read or written at a place that int32 numbers tell, one for each axis."""
    starts = eqn.invars[PLACED[eqn.primitive] :]
    if kind(eqn.outvars[0]) not in ("float", "int", "codes") or len(starts) != len(eqn.outvars[0].aval.shape):
        return False
    return all(isinstance(v, Literal) or v.aval.dtype == jnp.int32 for v in starts)


def _is_plain_reduction(eqn: Any) -> bool:
    """Whether a reduction is of float32 or int32 numbers."""
    kinds = ("float",) if REDUCTIONS[eqn.primitive] == "nan" else ("float", "int")
    return kind(eqn.invars[0]) in kinds


def _is_plain_pool(eqn: Any) -> bool:
    """Whether a pooling goes over the axes between the first and the last, without holes in its input."""
    rank = len(eqn.invars[0].aval.shape)
    if not 3 <= rank <= 5:
        return False
    if eqn.primitive is total.primitive:
        return tuple(eqn.params["axes"]) == tuple(range(1, rank - 1))
    ends = [eqn.params["window"][i] == eqn.params["strides"][i] == 1 for i in (0, -1)]
    flat = all(eqn.params["padding"][i] == (0, 0) for i in (0, -1))
    whole = all(d == 1 for d in eqn.params["base_dilation"])
    return all(ends) and flat and whole and all(n >= 0 for pair in eqn.params["padding"] for n in pair)


def _has_place(atom: Any) -> bool:
    """Whether a region can hold an array: its sizes are known, and it is of one of the four dtypes."""
    aval = atom.aval
    sizes = getattr(aval, "shape", None)
    if sizes is None or not all(isinstance(n, int) for n in sizes) or 0 in sizes or len(sizes) > 8:
        return False
    return isinstance(atom, Literal) or jnp.dtype(aval.dtype).name in (*DTYPES, "bool")


def _connected(
    makers: Sequence[Sequence[int]], candidate: Sequence[bool], levels: Sequence[int]
) -> list[list[int]]:
    """Candidates of one level that are connected through what they read from each other."""
    leader = list(range(len(makers)))

    def root(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for index, made in enumerate(makers):
        for other in made:
            if candidate[index] and candidate[other] and levels[other] == levels[index]:
                leader[root(index)] = root(other)
    groups: dict[int, list[int]] = {}
    for index in range(len(makers)):
        if candidate[index]:
            groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _without_tails(group: Sequence[int], eqns: Sequence[Any], readers: Sequence[Sequence[int]]) -> list[int]:
    """A group without float arithmetic and moves at its end, which XLA fuses with what follows.

    The numbers of a contraction stay, because its own step makes them.
    """
    kept = set(group)
    work = {
        *POOLS, *REDUCTIONS, *PLACED, *DOTS, SCAN, contraction.primitive, *ENCODINGS, real_numbers.primitive,
    }  # fmt: skip
    for index in reversed(group):
        if eqns[index].primitive not in work and not any(r in kept for r in readers[index]):
            kept.discard(index)
    return [i for i in group if i in kept]
