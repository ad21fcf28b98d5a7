"""One native call as a JAX operation that can be batched."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jaxq8.kernels import barred
from jaxq8.native import calls, library
from jaxq8.regions.batching import folded
from jaxq8.regions.program import Program


def call(program: Program, arrays: Sequence[Any]) -> list[Any]:
    """The results of a program, in one call."""
    return list(_function(program)(*arrays))


@functools.lru_cache(maxsize=1024)
def _function(program: Program) -> Any:
    """The program as a function of its arguments."""
    shapes = [jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for shape, dtype in program.results]
    words = program.words()

    @custom_vmap
    def run(*arrays: Any) -> Any:
        return tuple(calls.call(words, arrays, shapes, dict(program.aliases)))

    @run.def_vmap
    def batched(size: int, in_batched: Sequence[bool], *arrays: Any) -> Any:
        made = _batched(program, size, list(in_batched), arrays)
        return made, tuple(True for _ in made)

    return run


def _batched(program: Program, size: int, flags: list[bool], arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The results for several batches, stacked along a new first axis: one call for all of them, if that is possible.

    Single numbers that differ between the batches tell whether the data hold NaN. As long as they do not differ in fact, one
    call is right for all batches; if they do, there is one call for each.
    """
    whole = folded(program, size, flags)
    if whole is not None:
        return _together(whole, program, size, flags, arrays)

    def one_by_one(*arrays: Any) -> tuple[Any, ...]:
        def step(parts: Sequence[Any]) -> tuple[Any, ...]:
            given = iter(parts)
            full = [next(given) if flag else a for flag, a in zip(flags, arrays, strict=True)]
            return tuple(_function(program)(*full))

        return jax.lax.map(step, [a for flag, a in zip(flags, arrays, strict=True) if flag])

    numbers = [flag and np.prod(shape) == 1 for flag, (shape, _) in zip(flags, program.args, strict=True)]
    rest = [flag and not number for flag, number in zip(flags, numbers, strict=True)]
    whole = folded(program, size, rest) if any(numbers) else None
    if whole is None:
        return one_by_one(*arrays)

    def at_once(*arrays: Any) -> tuple[Any, ...]:
        firsts = [a[0] if number else a for number, a in zip(numbers, arrays, strict=True)]
        return _together(whole, program, size, rest, firsts)

    alike = [_alike(a) for number, a in zip(numbers, arrays, strict=True) if number]
    return jax.lax.cond(jnp.stack(alike).all(), at_once, one_by_one, *arrays)


def _alike(array: Any) -> Any:
    """Whether all entries along the first axis are the same number, or all NaN."""
    same = array == array[:1]
    return (same | (jnp.isnan(array) & jnp.isnan(array[:1]))).all()


def _together(
    whole: Program, program: Program, size: int, flags: Sequence[bool], arrays: Sequence[Any]
) -> tuple[Any, ...]:
    """One call of the longer program."""
    given = [
        jnp.reshape(a, shape) if flag else a
        for flag, a, (shape, _) in zip(flags, arrays, whole.args, strict=True)
    ]
    made = _function(whole)(*given)
    results = []
    for array, (shape, _) in zip(made, program.results, strict=True):
        if array.shape == shape:  # the same for all batches
            results.append(jnp.broadcast_to(array, (size, *shape)))
        else:
            results.append(jnp.reshape(array, (size, *shape)))
    return tuple(results)


def is_there() -> bool:
    """Whether native calls can be made here at all, also if they are barred."""
    return jax.default_backend() == "cpu" and library.status().available


def is_usable() -> bool:
    """Whether programs that are traced now can make native calls: they run on CPU, and the library is there."""
    return not why_not_usable()


def why_not_usable() -> str:
    """Why programs that are traced now cannot make native calls; empty if they can. The first call may compile."""
    if jax.default_backend() != "cpu":
        return f"programs run on {jax.default_backend()}"
    return barred.BARRED if barred.is_barred("region") else library.status().reason


def may_be_usable() -> bool:
    """Whether native calls are possible as far as can be told without compiling the extension."""
    return jax.default_backend() == "cpu" and not barred.is_barred("region") and library.is_installed()
