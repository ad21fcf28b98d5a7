"""Arguments of the sweep: numbers that eight bits hold exactly, so that a product in eight bits is the product."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_draw = np.random.default_rng(7)


def _codes(low: int, high: int, size: tuple[int, int]) -> np.ndarray:
    """Integers of which each row holds `low` and `high`: the scale of its codes is then exactly one."""
    codes = _draw.integers(low, high + 1, size).astype(np.float32)
    codes[:, 0], codes[:, 1] = low, high
    return _draw.permuted(codes, axis=1)


# Unsigned codes by row and signed codes by column, times powers of two: scales come out exact and every sum fits 24 bits.
LEFT = jnp.asarray(_codes(0, 255, (8, 8)) * 2.0**-8)
RIGHT = jnp.asarray(_codes(-127, 127, (8, 8)).T * 2.0**-7)
X = LEFT @ RIGHT


def normal(*shape: int) -> jax.Array:
    """Standard normal numbers, the same for the same shape."""
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32))


class _Data(SimpleNamespace):
    y = normal(8, 8)
    v = normal(8)
    i = jnp.asarray(_draw.integers(0, 8, (8, 8)), jnp.int32)
    n = jnp.arange(8)
    b = jnp.asarray(_draw.integers(0, 2, (8, 8)), bool)
    key = jax.random.key(3)


def positive(x: Any) -> Any:
    """Numbers of at least a half."""
    return jnp.abs(x) + 0.5


def unit(x: Any) -> Any:
    """Numbers between -1 and 1."""
    return jnp.tanh(x) * 0.9


def probability(x: Any) -> Any:
    """Numbers between 0 and 1."""
    return jax.nn.sigmoid(x) * 0.9 + 0.05


def regular(x: Any) -> Any:
    """A symmetric matrix, positive definite."""
    return x @ x.T / 8 + 4 * jnp.eye(8)


def images(x: Any) -> Any:
    """The same numbers as one image (1, 4, 4, 4)."""
    return x.reshape(1, 4, 4, 4)


def integers(x: Any) -> Any:
    """Small integers that follow the data."""
    return jnp.clip(jnp.floor(jnp.abs(x) * 2), 0, 7).astype(jnp.int32)


D = _Data()
