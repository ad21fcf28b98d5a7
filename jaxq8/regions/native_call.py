"""One native call as a JAX operation that can be batched."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxq8.kernels import barred
from jaxq8.native import calls, library
from jaxq8.regions.program import Program


def call(program: Program, arrays: Sequence[Any]) -> list[Any]:
    """The results of a program, in one call."""
    return list(_function(program)(*arrays))


@functools.lru_cache(maxsize=1024)
def _function(program: Program) -> Any:
    """The program as a function of its arguments."""
    shapes = [jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for shape, dtype in program.results]
    words = program.words()

    def run(*arrays: Any) -> Any:
        return tuple(calls.call(words, arrays, shapes))

    return run


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
