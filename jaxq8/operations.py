"""Operations that stay whole while a program is collected.

A function of arrays that is decorated with `operation` runs as it stands, like any function. While operations are *collected*
(`collected`), each call of it becomes one equation of the program that is being traced, with the function's static arguments
as the parameters of the equation. `jaxq8.regions` reads such programs: it replaces connected operations by native regions, and
runs the functions of the others. So what makes codes need not know who executes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Primitive, batched_by

_COLLECTING: ContextVar[bool] = ContextVar("collecting operations", default=False)
_SITE: ContextVar[str] = ContextVar("the site whose operations are collected", default="")


class Operation:
    """A function of arrays that can stay one equation. Arrays are positional arguments, everything static is keyword-only.

    Attributes:
      primitive: The primitive of its equations. The parameter `site` is the name of the site that called it.
      function: The function itself.
      batched: What `jax.vmap` makes of its primitive: ``f(operation, arrays, has_batch, **params) -> result``. Arrays for which
        `has_batch` is true have the batch as their first axis, as the result has. If the function returns NotImplemented, or
        if there is none, the operation becomes ordinary arithmetic.
    """

    def __init__(
        self, function: Callable[..., Any], result: Callable[..., Any], batched: Callable[..., Any] | None
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.batched = batched
        self._result = result
        self.primitive = Primitive(f"jaxq8_{function.__name__}")
        self.primitive.jaxq8_operation = self  # type: ignore[attr-defined]
        self.primitive.def_impl(self.run)
        self.primitive.def_abstract_eval(self._abstract)
        batched_by(self.primitive, self._batched)

    def __call__(self, *arrays: Any, **static: Any) -> Any:
        if not _COLLECTING.get():
            return self.function(*arrays, **static)
        # Arrays of NumPy stay constants of the program, so that a region sees which numbers are known.
        operands = [a if hasattr(a, "dtype") else np.asarray(a) for a in arrays]
        return self.primitive.bind(*operands, site=_SITE.get(), **static)

    def run(self, *arrays: Any, site: str = "", **static: Any) -> Any:
        """The function's result, as ordinary arithmetic."""
        with collected(False):
            return self.function(*arrays, **static)

    def _batched(self, arrays: Sequence[Any], axes: Sequence[Any], /, **static: Any) -> tuple[Any, int]:
        firsts = [
            a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)
        ]
        has_batch = [axis is not None for axis in axes]
        if self.batched is not None:
            made = self.batched(self, firsts, has_batch, **static)
            if made is not NotImplemented:
                return made, 0
        in_axes = [0 if has else None for has in has_batch]
        return jax.vmap(functools.partial(self.run, **static), in_axes)(*firsts), 0

    def _abstract(self, *avals: Any, site: str, **static: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        result = self._result(*shapes, **static)
        return jax.core.ShapedArray(result.shape, result.dtype)


def operation(
    result: Callable[..., Any], batched: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Operation]:
    """Makes a function of arrays an `Operation`; use as a decorator.

    Args:
      result: Shape and dtype of the function's result as a `jax.ShapeDtypeStruct`, for the same arguments as the function's.
      batched: What `jax.vmap` makes of it, as `Operation.batched`.
    """
    return functools.partial(Operation, result=result, batched=batched)


def elementwise_batch(
    operation: Operation, arrays: Sequence[Any], has_batch: Sequence[bool], **params: Any
) -> Any:
    """The `batched` of an elementwise function: arrays that differ in rank get axes of size 1 behind the batch."""
    rank = max(jnp.ndim(a) - has for a, has in zip(arrays, has_batch, strict=True))
    aligned = [
        jnp.reshape(a, (len(a), *[1] * (rank + 1 - jnp.ndim(a)), *a.shape[1:])) if has else a
        for a, has in zip(arrays, has_batch, strict=True)
    ]
    return operation.primitive.bind(*aligned, **params)


def like_first(first: Any, *others: Any, **static: Any) -> Any:
    """The `result` of an elementwise function: the shape that its arrays have together, in the dtype that is asked for."""
    shape = jnp.broadcast_shapes(first.shape, *(o.shape for o in others))
    return jax.ShapeDtypeStruct(shape, static.get("dtype", jnp.float32))


@contextmanager
def collected(on: bool = True) -> Iterator[None]:
    """Calls of operations inside the block become single equations, or, if not `on`, run as they stand."""
    token = _COLLECTING.set(on)
    try:
        yield
    finally:
        _COLLECTING.reset(token)


@contextmanager
def at_site(name: str) -> Iterator[None]:
    """Operations inside the block belong to a site; the Plan names them after it."""
    token = _SITE.set(name)
    try:
        yield
    finally:
        _SITE.reset(token)


def is_collecting() -> bool:
    """Whether calls of operations become single equations."""
    return _COLLECTING.get()
