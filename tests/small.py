"""A two-layer function and its data, for tests that need something to quantize and do not care what."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxq8 as q8

ALWAYS = q8.Config(kernels="xla")  # eight bits even where float would be as fast: tests are small
SIMULATE = q8.Config(kernels="simulate")

# Rounding in each layer is noise 38 dB below the signal (two operands of 41 dB each, see test_transform); the noise of a
# handful of layers adds up to 8 dB.
SQNR_DB = 30
# One code that moves where a range differs in its last bit is far below the half step that every element has anyway.
BOUNDARY_DB = 40


def normal(*shape: int) -> jax.Array:
    """Standard normal numbers, the same for the same shape."""
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32))


def sqnr_db(exact: Any, found: Any) -> float:
    """Signal over the noise of all leaves of a tree, in decibels; infinite if they are equal."""
    exact, found = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
        for tree in (exact, found)
    )
    noise = np.sum((exact - found) ** 2)
    return float(10 * np.log10(np.sum(exact**2) / noise)) if noise else float("inf")


def assert_equal(expected: Any, found: Any) -> None:
    """Equal in structure and in every bit."""
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for e, f in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        np.testing.assert_array_equal(e, f)


def dense(variables: Any, x: jax.Array) -> jax.Array:
    """Two layers: (n, 32) to (n, 32)."""
    return jnp.tanh(x @ variables["w"]) @ variables["v"]


PAIR = {"w": normal(32, 64) / 6, "v": normal(64, 32) / 8}
X = normal(16, 32)
BATCH = normal(3, 16, 32)
fast = q8.quantize(dense, ALWAYS)


def loss(fn: Any) -> Any:
    """The sum of squares of what `fn` returns."""
    return lambda *args: (fn(*args).astype(jnp.float32) ** 2).sum()


def grad(fn: Any, argnums: Any = 0) -> Any:
    """`jax.grad`, compiled: step by step, the steps of a backward pass are compiled one at a time, which takes much longer."""
    return jax.jit(jax.grad(fn, argnums))
