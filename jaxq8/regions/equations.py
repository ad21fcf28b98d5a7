"""The equations of a collected program, those of inner functions among them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from jaxq8._compat import Literal, bind, equation_context, open_jaxpr, user_source
from jaxq8.analysis.inner_functions import JIT
from jaxq8.regions.candidates import is_stored

SPLIT = "split"  # by its name: JAX has no public handle on this primitive


@dataclasses.dataclass(frozen=True, eq=False)
class Inner:
    """A variable of an inner function in one of its calls."""

    aval: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """An equation of a collected program. What it reads and makes is named by variables of the program."""

    eqn: Any
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]

    @property
    def primitive(self) -> Any:
        return self.eqn.primitive

    @property
    def params(self) -> Any:
        return self.eqn.params

    def reading(self, names: Mapping[Any, Any]) -> Equation:
        """The equation with other names for what it reads."""
        invars = tuple(v if isinstance(v, Literal) else names.get(v, v) for v in self.invars)
        return dataclasses.replace(self, invars=invars)

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Its results, as ordinary arithmetic."""
        with user_source(self.eqn), equation_context(self.eqn):
            if hasattr(self.primitive, "jaxq8_operation"):
                return [self.primitive.jaxq8_operation.run(*arrays, **self.params)]
            return bind(self.eqn, arrays)


def equation_of(function: Callable[..., Any], reads: Sequence[Any], makes: Sequence[Any]) -> Equation:
    """The equation that a function of one operation is, between these variables."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in reads]
    jaxpr, _ = open_jaxpr(jax.make_jaxpr(function)(*shapes))
    (eqn,) = jaxpr.eqns
    return Equation(eqn, tuple(reads), tuple(makes))


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A program whose calls of inner functions are replaced by their equations.

    Attributes:
      equations: In the order in which they run.
      consts: The values of constants.
      results: What the program returns.
    """

    equations: tuple[Equation, ...]
    consts: Mapping[Any, Any]
    results: tuple[Any, ...]


def flat(jaxpr: Any, consts: Sequence[Any]) -> Flat:
    """A program without calls of inner functions, but for those that say how results are kept (`is_stored`)."""
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    names: dict[Any, Any] = {v: v for v in (*jaxpr.constvars, *jaxpr.invars)}
    equations = tuple(_equations(jaxpr, names, known, inside=False))
    return Flat(equations, known, tuple(_named(v, names) for v in jaxpr.outvars))


def _equations(jaxpr: Any, names: dict[Any, Any], known: dict[Any, Any], inside: bool) -> Iterator[Equation]:
    """The equations of a function whose inputs have names."""
    for eqn in jaxpr.eqns:
        reads = tuple(_named(v, names) for v in eqn.invars)
        if eqn.primitive not in JIT or is_stored(eqn):
            # An inner function may be called several times, and its variables are others in each call.
            made = tuple(Inner(v.aval) if inside else v for v in eqn.outvars)
            names.update(zip(eqn.outvars, made, strict=True))
            if eqn.primitive.name == SPLIT and not isinstance(reads[0], Literal):
                yield from _slices(eqn, reads[0], made)
            else:
                yield Equation(eqn, reads, made)
            continue
        inner, consts = open_jaxpr(eqn.params["jaxpr"])
        own: dict[Any, Any] = dict(zip(inner.invars, reads, strict=True))
        for v, value in zip(inner.constvars, consts, strict=True):
            own[v] = Inner(v.aval)
            known[own[v]] = value
        yield from _equations(inner, own, known, inside=True)
        names.update(zip(eqn.outvars, (_named(v, own) for v in inner.outvars), strict=True))


def _slices(eqn: Any, whole: Any, parts: Sequence[Any]) -> Iterator[Equation]:
    """What an equation that splits an array is as slices of it, each of which regions read where it lies."""
    axis, start = eqn.params["axis"], 0
    for size, part in zip(eqn.params["sizes"], parts, strict=True):
        cut = functools.partial(lax.slice_in_dim, start_index=start, limit_index=start + size, axis=axis)
        yield equation_of(cut, [whole], [part])
        start += size


def _named(atom: Any, names: Mapping[Any, Any]) -> Any:
    return atom if isinstance(atom, Literal) else names[atom]
