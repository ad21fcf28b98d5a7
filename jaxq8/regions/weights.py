"""Packed weights in a collected program: which contraction reads which packed bytes, and what it finds there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.forms import ConvForm, DotForm, Form
from jaxq8.kernels.registry import contraction, sums_of_weights
from jaxq8.regions.candidates import is_stored

Moves = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the weight of a contraction comes from.

    Attributes:
      variable: The variable that the moves begin with.
      maker: The equation that makes it; None for an input of the program.
      moves: The steps from there to the canonical form.
    """

    variable: Any
    maker: Any
    moves: Moves


@dataclasses.dataclass(frozen=True)
class Weight:
    """The packed weight of a contraction: the variable of its bytes, and what they were packed for."""

    packed: Any
    problem: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Packable:
    """How a weight has to be packed: the moves that make it canonical, and the contraction that reads it."""

    moves: Moves
    problem: tuple[int, ...]


def origin(atom: Any, makers: Mapping[Any, Any]) -> Origin | None:
    """Follows a weight back through transpositions and reshapes; None for a constant."""
    moves: list[tuple[str, tuple[int, ...]]] = []
    while not isinstance(atom, Literal):
        maker = makers.get(atom)
        if maker is None:
            return Origin(atom, None, tuple(reversed(moves)))
        if maker.primitive is primitives.transpose_p:
            moves.append(("transpose", tuple(maker.params["permutation"])))
        elif maker.primitive in (primitives.reshape_p, primitives.squeeze_p):
            moves.append(("reshape", tuple(maker.outvars[0].aval.shape)))
        elif not is_stored(maker):
            return Origin(atom, maker, tuple(reversed(moves)))
        atom = maker.invars[maker.outvars.index(atom) if is_stored(maker) else 0]
    return None


def weight_origin(eqn: Any, makers: Mapping[Any, Any]) -> Origin | None:
    """`origin` of the weight that a contraction, or a sum of weights, reads; its moves end at ``(k, n)`` for products."""
    atom = eqn.invars[0 if eqn.primitive is sums_of_weights.primitive else 1]
    found = origin(atom, makers)
    form = eqn.params["form"]
    if found is not None and isinstance(form, DotForm) and form.transposed:
        return dataclasses.replace(found, moves=(*found.moves, ("transpose", (1, 0))))
    return found


def native_weight(eqn: Any, makers: Mapping[Any, Any]) -> Origin | None:
    """`weight_origin` of a contraction that has a native step, if its weight is packed; None for all other equations."""
    if eqn.primitive is not contraction.primitive or why_not(
        eqn.params["form"], eqn.invars[0].aval.dtype.name
    ):
        return None
    return weight_origin(eqn, makers)


def why_not(form: Form, x_dtype: Any) -> str:
    """Why a contraction has no native step, whatever its weight is; empty if it has one."""
    if x_dtype != "uint8":  # for signed codes the library would lay the weights out anew in each call
        return f"codes of {x_dtype}"
    if isinstance(form, DotForm):
        return "several products at once" if form.batch else ""
    if any(d != 1 for d in form.lhs_dilation):
        return "a convolution with holes in its input (a transposed convolution)"
    if any(p < 0 for pair in form.padding for p in pair):
        return "borders that crop"
    if not 1 <= len(form.spatial) <= 3:
        return f"a convolution over {len(form.spatial)} axes"
    return ""


def problem_of(form: Form) -> tuple[int, ...]:
    """A contraction as the integers by which oneDNN chooses the layout of its weights."""
    if isinstance(form, ConvForm):
        low, high = zip(*form.padding, strict=True)
        return (
            len(form.spatial), form.batch, *form.spatial, form.c_in, *form.kernel, form.c_out, *form.strides,
            *form.rhs_dilation, *low, *high, form.groups,
        )  # fmt: skip
    return (0, form.m, form.k, form.n, 1)


def padded_form(form: Form, zero_border: bool) -> Form:
    """The form that runs: borders of another code than 0 are filled beforehand."""
    if zero_border or not isinstance(form, ConvForm) or not any(p for pair in form.padding for p in pair):
        return form
    none = tuple((0, 0) for _ in form.padding)
    return dataclasses.replace(form, spatial=form.padded_spatial, padding=none)
