"""Pooling of codes as maxima and sums of shifted slices.

Where XLA's own loop runs instead, it starts at a number of NumPy: JAX knows what the loop computes, and so has its derivative,
only if it can read the number, and while a function is compiled it cannot read an array of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8._compat import stored
from jaxq8.kernels.barred import is_barred
from jaxq8.operations import operation

# Windows of more positions than this are left to XLA's own loop.
MAXIMUM_POSITIONS = 32


def _pooled(dtype: Any) -> Callable[..., Any]:
    """The `result` of a pooling: its shape, in the dtype of the codes or in `dtype`."""

    def result(x: Any, *others: Any, window: Any, strides: Any, padding: Any, **static: Any) -> Any:
        edges = [(low, high, d - 1) for (low, high), d in zip(padding, static["base_dilation"], strict=True)]
        sizes = [
            n + low + high + max(n - 1, 0) * hole for n, (low, high, hole) in zip(x.shape, edges, strict=True)
        ]
        spans = [(w - 1) * d + 1 for w, d in zip(window, static["window_dilation"], strict=True)]
        shape = [(n - span) // s + 1 for n, span, s in zip(sizes, spans, strides, strict=True)]
        return jax.ShapeDtypeStruct(tuple(shape), dtype or x.dtype)

    return result


@operation(_pooled(None))
def max_pool(
    x: Any, *, lowest: int, window: Any, strides: Any, padding: Any, base_dilation: Any, window_dilation: Any
) -> Any:
    """The maximum over each window of codes; borders and holes hold `lowest`, the smallest code."""
    least: Any = jnp.asarray(lowest, x.dtype)
    edges = [(low, high, d - 1) for (low, high), d in zip(padding, base_dilation, strict=True)]
    x = stored(lax.pad(stored(x), least, edges))
    simulated = jnp.issubdtype(x.dtype, jnp.floating)
    if simulated:
        # XLA's maximum passes the derivative to one element of a window, as in float, but only if it starts at minus infinity.
        least = np.asarray(-np.inf, x.dtype)
    if simulated or math.prod(window) > MAXIMUM_POSITIONS or is_barred("max_pool"):
        return lax.reduce_window(x, least, lax.max, window, strides, "VALID", window_dilation=window_dilation)
    return _combined(x, jnp.maximum, window, strides, window_dilation)


def widened(x: Any) -> Any:
    """Codes in a dtype that holds their sums: int32, or float32 while simulated."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.int32)


def _totalled(x: Any, *, axes: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(tuple(n for a, n in enumerate(x.shape) if a not in axes), jnp.int32)


@operation(_totalled)
def total(x: Any, *, axes: tuple[int, ...]) -> Any:
    """The int32 sum of codes over whole axes."""
    return jnp.sum(widened(x), axis=axes)


@operation(_pooled(jnp.int32))
def sum_pool(
    x: Any, zero: Any, *, window: Any, strides: Any, padding: Any, base_dilation: Any, window_dilation: Any
) -> Any:
    """The int32 sum over each window of codes; borders hold `zero`, the zero point."""
    x = stored(lax.pad(stored(x), zero, [(a, b, 0) for a, b in padding]))
    wide = widened(x)
    if math.prod(window) > MAXIMUM_POSITIONS or is_barred("sum_pool"):
        none = np.zeros((), wide.dtype)
        return lax.reduce_window(
            wide, none, lax.add, window, strides, "VALID", window_dilation=window_dilation
        )
    return _combined(wide, jnp.add, window, strides, window_dilation)


def _combined(x: Any, combine: Callable[[Any, Any], Any], window: Any, strides: Any, dilation: Any) -> Any:
    """The sum or maximum of the shifted slices of `x`, one for each position of the window."""
    windows = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    out = [(n - w) // s + 1 for n, w, s in zip(x.shape, windows, strides, strict=True)]
    spans = [(n - 1) * s + 1 for n, s in zip(out, strides, strict=True)]
    total = None
    for position in itertools.product(*map(range, window)):
        starts = [p * d for p, d in zip(position, dilation, strict=True)]
        limits = [start + span for start, span in zip(starts, spans, strict=True)]
        part = lax.slice(x, starts, limits, tuple(strides))
        total = part if total is None else combine(total, part)
    return total
