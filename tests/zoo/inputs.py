"""Random inputs with the statistics of real ones: images are smooth, sentences end before the padding."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tests.zoo.weights import Inputs


def images(*size: int, channels: int = 3) -> Inputs:
    """Images (b, *size, channels), float32, deviation about 1, with the falling spectrum of photographs."""

    def draw(key: jax.Array, batch: int) -> tuple[Any, ...]:
        return (_smooth_noise(key, batch, size, channels),)

    return draw


@partial(jax.jit, static_argnums=(1, 2, 3))
def _smooth_noise(key: jax.Array, batch: int, size: tuple[int, ...], channels: int) -> jax.Array:
    """A sum of noise at every octave with equal energy: amplitude falls as 1 / frequency (Field, 1987)."""
    octaves = [max(1, min(size) >> shift) for shift in range(2, min(size).bit_length())]
    total = 0.3 * jax.random.normal(key, (batch, *size, channels))
    for index, cells in enumerate(octaves):
        grid = (batch, *(max(1, cells * n // min(size)) for n in size), channels)
        noise = jax.random.normal(jax.random.fold_in(key, index), grid)
        total = total + jax.image.resize(noise, total.shape, "linear")
    return total / jnp.std(total)


def vectors(*shape: int) -> Inputs:
    """Normal float32 (b, *shape)."""

    def draw(key: jax.Array, batch: int) -> tuple[Any, ...]:
        return (jax.random.normal(key, (batch, *shape)),)

    return draw


def tokens(length: int, vocabulary: int) -> Inputs:
    """Token ids (b, length), int32."""

    def draw(key: jax.Array, batch: int) -> tuple[Any, ...]:
        return (jax.random.randint(key, (batch, length), 0, vocabulary),)

    return draw


def sentences(length: int, vocabulary: int) -> Inputs:
    """Token ids (b, length), int32, and their mask, bool; each row ends after 3/4 to all of its places."""

    def draw(key: jax.Array, batch: int) -> tuple[Any, ...]:
        ids_key, length_key = jax.random.split(key)
        ids = jax.random.randint(ids_key, (batch, length), 0, vocabulary)
        used = jax.random.randint(length_key, (batch, 1), 3 * length // 4, length + 1)
        mask = jnp.arange(length) < used
        return jnp.where(mask, ids, 0), mask

    return draw


def decoder_state(layers: int, length: int, heads: int, size: int, vocabulary: int) -> Inputs:
    """One token (b, 1), int32; a cache {"key", "value"} of (layers, b, length, heads, size); the position.

    The cache is filled up to the position, three quarters of the length.
    """

    def draw(key: jax.Array, batch: int) -> tuple[Any, ...]:
        position = 3 * length // 4
        ids = jax.random.randint(key, (batch, 1), 0, vocabulary)
        filled = (jnp.arange(length) < position)[:, None, None]
        shape = (layers, batch, length, heads, size)
        parts = {
            name: filled * jax.random.normal(jax.random.fold_in(key, index), shape)
            for index, name in enumerate(("key", "value"))
        }
        return ids, parts, jnp.int32(position)

    return draw
