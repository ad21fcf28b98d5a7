"""The only file that uses semi-public parts of JAX, so that a JAX release that moves one of them is adapted to here."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import core as _core
from jax.extend import source_info_util as _source_info
from jax.extend.core import primitives
from jax.interpreters import batching as _batching

ClosedJaxpr = _core.ClosedJaxpr
Jaxpr = _core.Jaxpr
JaxprEqn = _core.JaxprEqn
Literal = _core.Literal
Primitive = _core.Primitive
Var = _core.Var

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Var",
    "apart",
    "batched_by",
    "bind",
    "equation_context",
    "is_varying",
    "name_stack",
    "open_jaxpr",
    "parameter",
    "primitive_named",
    "primitives",
    "source_line",
    "stored",
    "trace",
    "user_source",
    "without_source_lines",
]


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, consts) of an open or closed jaxpr, told apart by attributes: later JAX releases make them one class."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return inner, getattr(jaxpr, "consts", ())


def bind(eqn: Any, arrays: Sequence[Any]) -> list[Any]:
    """Evaluates one equation on arrays with all of its parameters; always returns a list."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # JAX returns (functions, params) up to 0.9.1, and params alone from 0.9.2 on.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    result = eqn.primitive.bind(*functions, *arrays, **params)
    return list(result) if eqn.primitive.multiple_results else [result]


def batched_by(primitive: Any, rule: Callable[..., Any]) -> None:
    """Says what `jax.vmap` makes of a primitive: ``rule(arrays, axes, **params) -> (result, its batch axis)``."""
    _batching.primitive_batchers[primitive] = rule


def primitive_named(*names: str) -> list[Any]:
    """The primitives that exist under any of these attribute names (`pjit_p` became `jit_p`, for example)."""
    return [getattr(primitives, name) for name in names if hasattr(primitives, name)]


def name_stack(eqn: Any) -> str:
    """The named scopes around an equation, such as ``"Encoder/Attention_0"``; empty outside all scopes."""
    return str(eqn.source_info.name_stack)


def source_line(eqn: Any) -> str:
    """The user's line that made an equation, such as ``file.py:12``; empty where JAX does not know it."""
    traceback = eqn.source_info.traceback
    frames = traceback.frames if traceback is not None else ()
    libraries = _library_folders()
    for frame in frames:
        if not frame.file_name.startswith(libraries):
            return f"{os.path.basename(frame.file_name)}:{frame.line_num}"
    return ""


def _library_folders() -> tuple[str, ...]:
    """The folders of the packages whose lines are not the user's.

    Whole paths are compared, since a folder of the user's may have the same name as one of the packages.
    """
    modules = (sys.modules.get(name) for name in ("jax", "flax", __name__.partition(".")[0]))
    files = (getattr(module, "__file__", None) for module in modules)
    return tuple(os.path.join(os.path.dirname(file), "") for file in files if file)


@contextmanager
def user_source(eqn: Any) -> Iterator[None]:
    """Makes errors and lowered operations of the block name the user's line that made the equation."""
    with _source_info.user_context(eqn.source_info.traceback, name_stack=eqn.source_info.name_stack):
        yield


def is_varying(x: Any) -> bool:
    """Whether `jax.shard_map` keeps account of an array as each device's own (its argument `check_vma`)."""
    if not isinstance(x, jax.Array):
        return False
    kind = jax.typeof(x)
    # The attribute is called `vma` up to JAX 0.10.1.
    return bool(kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", ()))


@contextmanager
def equation_context(eqn: Any) -> Iterator[None]:
    """What `apart` notes beside an equation holds for operations of the block, too."""
    context = getattr(eqn, "ctx", None)
    if context is None:
        yield
    else:
        with context.manager:
            yield


@contextmanager
def without_source_lines() -> Iterator[None]:
    """Keeps the names of source files, which tell folders and the model's code, out of programs lowered in the block."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def trace(function: Any, arguments: Sequence[Any]) -> Any:
    """The closed jaxpr of a function of flat array arguments (or ShapeDtypeStructs)."""
    return jax.make_jaxpr(function)(*arguments)


def apart(function: Callable[..., Any], static: Sequence[str] = ()) -> Callable[..., Any]:
    """Makes `function` a separate computation of the compiled program, which XLA neither fuses nor folds with others.

    A call that must not be inlined stays until the end; `lax.optimization_barrier` is removed before fusion.
    """
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call


@apart
def stored(x: Any) -> Any:
    """Returns `x`, computed once and kept in memory.

    Otherwise XLA:CPU computes a cheap elementwise producer again in the loop of each of its readers, nine times for the nine
    slices of a 3x3 convolution.
    """
    return x


def parameter(number: Any) -> Any:
    """A number that is known while tracing, as an array of one element that the compiled program reads from memory.

    XLA writes scalar constants into the loops that use them. The loops of two layers then differ only by a number, and each
    is compiled separately (10 to 80 ms). Constants that are arrays stay outside of the loops, so equal loops are compiled
    once. The barrier keeps XLA from taking the element out of the array before loops are made.
    """
    number = np.asarray(number)
    # The two elements differ, since XLA turns an array of equal elements into a scalar.
    pair = np.array([number.item(), 1 if number == 0 else 0], number.dtype)
    return jax.lax.slice_in_dim(jax.lax.optimization_barrier(pair), 0, 1)


# Raised by a comparison that depends on a symbolic size; it moved from `jax.core` to `jax.errors`.
InconclusiveSize: Any = (
    jax.errors.InconclusiveDimensionOperation
    if hasattr(jax.errors, "InconclusiveDimensionOperation")
    else jax.core.InconclusiveDimensionOperation
)
