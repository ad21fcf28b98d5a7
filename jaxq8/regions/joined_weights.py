"""Weights that a function joins before it multiplies with them, such as those of the gates of a recurrent cell.

A layout in which the blocks of output channels lie one after the other makes this easy: the packed bytes of the joined weight
are those of its parts, one after the other. So the bytes are joined instead of the codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import lax

from jaxq8._compat import Literal, primitives
from jaxq8.native import calls
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.packed_tensor import unpacked_codes
from jaxq8.regions.equations import Equation, Inner, equation_of

Problem = tuple[int, ...]


def with_joined_weights(eqns: Sequence[Equation]) -> list[Equation]:
    """Equations in which packed weights are joined as bytes, where they were unpacked first and joined then."""
    makers = {v: eqn for eqn in eqns for v in eqn.outvars}
    made: list[Equation] = []
    for eqn in eqns:
        made += _joined(eqn, makers) or [eqn]
    return made


def parts_of(eqn: Equation) -> tuple[Any, ...]:
    """The weights of products that an equation joins along their output channels; none if it does something else."""
    if eqn.primitive is not primitives.concatenate_p or eqn.params["dimension"] != 1:
        return ()
    if any(isinstance(v, Literal) or len(v.aval.shape) != 2 for v in eqn.invars):
        return ()
    return tuple(eqn.invars)


def layout_of(problems: Sequence[Problem]) -> tuple[Problem, PackedLayout] | None:
    """The problem and the layout of a weight whose parts were packed for these problems of products.

    None if the bytes of the parts, one after the other, are not those of the joined weight.
    """
    first = problems[0]
    if any(p[0] != 0 or (p[1], p[2]) != (first[1], first[2]) for p in problems):
        return None
    problem = (0, first[1], first[2], sum(p[3] for p in problems), 1)
    whole = PackedLayout.from_words(calls.layout(problem))
    for p in problems:
        part = PackedLayout.from_words(calls.layout(p))
        in_order = part.padded[1] == part.dims[1] and part.strides[1] == max(part.strides)
        longer = dataclasses.replace(
            part, dims=(part.dims[0], problem[3]), padded=(part.padded[0], problem[3])
        )
        if not in_order or longer != whole:
            return None
    return problem, whole


def _joined(eqn: Equation, makers: Mapping[Any, Equation]) -> list[Equation]:
    """The equations that join bytes and unpack them, in place of one that joins codes; none if that is not the same."""
    parts = [makers.get(v) for v in parts_of(eqn)]
    if not parts or any(p is None or p.primitive is not unpacked_codes.primitive for p in parts):
        return []
    unpacking = [p for p in parts if p is not None]
    params = unpacking[0].params
    if any(p.params["moves"] or p.params["isa"] != params["isa"] for p in unpacking):
        return []
    problems = [p.params["problem"] for p in unpacking]
    found = layout_of(problems)
    if found is None or any(
        PackedLayout.from_words(calls.layout(p.params["problem"])) != p.params["layout"] for p in unpacking
    ):
        return []
    packed, sums = (_concatenation([p.invars[i] for p in unpacking]) for i in (0, 1))
    problem, layout = found
    static = {
        "shape": tuple(eqn.outvars[0].aval.shape), "moves": (), "layout": layout, "problem": problem, "isa": params["isa"]
    }  # fmt: skip
    (packed_out,), (sums_out,) = packed.outvars, sums.outvars
    unpack = equation_of(
        lambda p, s: unpacked_codes.primitive.bind(p, s, site="", **static),
        (packed_out, sums_out),
        eqn.outvars,
    )
    return [packed, sums, unpack]


def _concatenation(variables: Sequence[Any]) -> Equation:
    aval = variables[0].aval
    length = sum(v.aval.shape[0] for v in variables)
    made = Inner(jax.core.ShapedArray((length,), aval.dtype))
    return equation_of(lambda *arrays: lax.concatenate(arrays, 0), tuple(variables), (made,))
