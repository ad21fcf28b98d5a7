"""A flat program in which packed weights have been found, and the scans that can run as one step of a region."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.registry import contraction, sums_of_weights
from jaxq8.native import calls
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.packed_tensor import unpacked_codes
from jaxq8.regions.candidates import POOLS, has_step, is_held
from jaxq8.regions.equations import Equation, Flat
from jaxq8.regions.joined_weights import with_joined_weights
from jaxq8.regions.scans import Scan, sunk
from jaxq8.regions.tables import looked_up
from jaxq8.regions.weights import Origin, Weight, native_weight, weight_origin

MOST_TIMES = 1 << 20  # of a loop, as in the extension
SEVERAL = 2  # the contractions of a loop count so many times: it saves as many calls at least


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A program that can be cut into regions.

    Attributes:
      eqns: The equations that its results depend on. A scan that can run as a loop reads packed weights.
      consts: The values of constants.
      results: What it returns.
      makers: The equation that makes a variable.
      weights: The packed weight of each contraction that has a native step, by the contraction's position.
      loops: The loop of each scan that can be one step, by its position.
    """

    eqns: tuple[Equation, ...]
    consts: Mapping[Any, Any]
    results: tuple[Any, ...]
    makers: Mapping[Any, Any]
    weights: Mapping[int, Weight]
    loops: Mapping[int, Loopable]

    def contractions(self, index: int) -> int:
        """How many contractions the step of the equation at a position computes, as `candidates.found` counts them."""
        if index in self.loops:
            return SEVERAL * self.loops[index].contractions
        return int(index in self.weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Loopable:
    """A scan that can run as one step.

    Attributes:
      original: The scan as it was.
      scan: The scan, which reads packed weights.
      body: Its body.
      members: The positions of the equations of the body that its program computes.
    """

    original: Scan
    scan: Scan
    body: Prepared
    members: tuple[int, ...]

    @property
    def contractions(self) -> int:
        """How many contractions its body has, those of loops inside among them."""
        return sum(map(self.body.contractions, self.members))


def prepared(program: Flat) -> Prepared:
    """A program with its packed weights and loops."""
    equations = with_joined_weights(program.equations)
    makers = {v: eqn for eqn in equations for v in eqn.outvars}
    renamed = _sums(equations, makers)
    results = tuple(v if isinstance(v, Literal) else renamed.get(v, v) for v in program.results)
    read = [eqn.reading(renamed) for eqn in equations]
    makers = {v: eqn for eqn in read for v in eqn.outvars}
    eqns = alive([looked_up(eqn, makers) for eqn in read], results)
    loops = {}
    for i, eqn in enumerate(eqns):
        loop = _loop(eqn, makers) if isinstance(eqn, Scan) else None
        if loop is not None:
            loops[i], eqns[i] = loop, loop.scan
    weights = {i: w for i, eqn in enumerate(eqns) if (w := _weight(eqn, makers)) is not None}
    makers |= {v: eqn for eqn in eqns for v in eqn.outvars}
    return Prepared(tuple(eqns), program.consts, results, makers, weights, loops)


def _loop(scan: Scan, makers: Mapping[Any, Any]) -> Loopable | None:
    """A scan as a loop; None if a region has no step for something in its body."""
    inside, _ = sunk(scan, makers)
    body = prepared(inside.body)
    members = computed(inside, body.eqns, body.results, (*body.weights, *body.loops))
    if members is None:
        return None
    loop = Loopable(scan, inside, body, members)
    return loop if loop.contractions else None


def computed(
    scan: Scan, eqns: Sequence[Equation], results: Sequence[Any], native: Collection[int], given: Collection[int] = ()
) -> tuple[int, ...] | None:  # fmt: skip
    """The positions of the equations that a region would have to compute to run the body of a scan.

    Args:
      scan: The scan.
      eqns: The equations of its body.
      results: The results of its body.
      native: The positions of the contractions and scans that have a native step. Contractions read packed bytes, so what
        only makes their weights need not be computed.
      given: The positions of equations whose results will be there.

    Returns:
      The positions in order; None if a region has no step for one of them, or cannot hold what goes in or comes out.
    """
    length = scan.params["length"]
    if not isinstance(length, int) or not 1 <= length <= MOST_TIMES:
        return None
    if not all(map(is_held, (*scan.inputs, *scan.outvars, *results))):
        return None
    needed, members = {v for v in results if not isinstance(v, Literal)}, []
    for index in reversed(range(len(eqns))):
        eqn = eqns[index]
        if index in given or not (eqn.eqn.effects or any(v in needed for v in eqn.outvars)):
            continue
        if eqn.eqn.effects or not has_step(eqn, index in native) or _reads_code(eqn, scan.inputs):
            return None
        members.append(index)
        reads = eqn.invars[::2] if eqn.primitive is contraction.primitive else eqn.invars
        needed.update(v for v in reads if not isinstance(v, Literal))
    return tuple(reversed(members))


def _reads_code(eqn: Equation, inputs: Sequence[Any]) -> bool:
    """Whether an equation fills borders with a code that comes from outside, which a region reads as an int32 number."""
    if eqn.primitive not in (contraction.primitive, primitives.pad_p, *POOLS):
        return False
    fills = eqn.invars[2:] if eqn.primitive is contraction.primitive else eqn.invars[1:]
    return any(v in inputs and v.aval.dtype != np.int32 for v in fills if not isinstance(v, Literal))


def alive(eqns: Sequence[Equation], results: Sequence[Any]) -> list[Equation]:
    """The equations that the results depend on."""
    needed, kept = {v for v in results if not isinstance(v, Literal)}, []
    for eqn in reversed(eqns):
        if any(v in needed for v in eqn.outvars) or eqn.eqn.effects:
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return kept[::-1]


def sums_of(
    eqns: Sequence[Equation], makers: Mapping[Any, Any], is_packed: Callable[[Origin], bool]
) -> dict[int, Origin]:
    """The weights, packed or to be packed, whose codes equations sum, by the positions of these equations."""
    found = {}
    for i, eqn in enumerate(eqns):
        origin = weight_origin(eqn, makers) if eqn.primitive is sums_of_weights.primitive else None
        is_vector = len(eqn.outvars[0].aval.shape) == 1  # those of several products at once have three axes
        if origin is not None and is_vector and is_packed(origin):
            found[i] = origin
    return found


def _sums(eqns: Sequence[Equation], makers: Mapping[Any, Any]) -> dict[Any, Any]:
    """Sums of packed weights -> the variables that hold them already."""
    found = sums_of(eqns, makers, _is_packed)
    return {eqns[i].outvars[0]: origin.maker.invars[1] for i, origin in found.items()}


def _is_packed(origin: Origin) -> bool:
    """Whether a weight comes from packed bytes by exactly the moves that it was packed with."""
    maker = origin.maker
    if maker is None or maker.primitive is not unpacked_codes.primitive:
        return False
    return bool(origin.moves == maker.params["moves"])


def _weight(eqn: Equation, makers: Mapping[Any, Any]) -> Weight | None:
    """The packed weight of a contraction that has a native step; None for all other equations."""
    origin = native_weight(eqn, makers)
    if origin is None or not _is_packed(origin):
        return None
    params = origin.maker.params
    if PackedLayout.from_words(calls.layout(params["problem"])) != params["layout"]:
        return None
    return Weight(origin.maker.invars[0], params["problem"])
