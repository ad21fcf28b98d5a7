"""A Llama-like decoder in Flax: root-mean-square norms, rotary positions, gated hidden layers, a cache of keys and values.

The cache holds floats or, as an option, `q8.QTensor`s: int8 codes with one scale for each token and head. Either is a pytree
whose leaves have the same axes, so one update serves both, and both can be carried through `jax.lax.scan`.

Sources: Touvron et al. 2023 (the block), Su et al. 2021 (rotary positions), Shazeer 2020 (gated hidden layers).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

import jaxq8 as q8

# One scale for the numbers of a head at one token: a token that is appended later never changes the codes of earlier ones.
CACHE_SPEC = q8.Spec(symmetric=True, granularity="row")

Caches = tuple[Any, ...]


class Layer(nn.Module):
    """Attention and a gated hidden layer, each added to its input: (b, t, width) to the same."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any, position: Any) -> tuple[jax.Array, Any]:
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, use_bias=False)
        h = nn.RMSNorm(name="attention_norm")(x)
        split = (*x.shape[:-1], self.heads, width // self.heads)
        q, k, v = (dense(width, name=name)(h).reshape(split) for name in ("query", "key", "value"))
        q, k = rotated(q, position), rotated(k, position)
        if cache is not None:
            cache = {
                "keys": extended(cache["keys"], k, position),
                "values": extended(cache["values"], v, position),
            }
            k, v = real(cache["keys"]), real(cache["values"])
        x = x + dense(width, name="out")(attend(q, k, v, position).reshape(x.shape))
        h = nn.RMSNorm(name="hidden_norm")(x)
        gate = nn.silu(dense(self.hidden, name="gate")(h))
        return x + dense(width, name="down")(gate * dense(self.hidden, name="up")(h)), cache


class Decoder(nn.Module):
    """Tokens int32 (b, t) to logits float32 (b, t, vocabulary) of the token after each, and the caches with `tokens` added.

    Without caches the tokens see one another alone. With them (`empty_caches`) they are those from `position` on, which may be
    traced, and see all before them as well.

    Example:
      >>> logits, caches = module.apply(variables, prompt, empty_caches(module, 1, 512))
      >>> logits, caches = module.apply(variables, token, caches, prompt.shape[1])
    """

    vocabulary: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 8
    hidden: int = 704

    @nn.compact
    def __call__(
        self, tokens: jax.Array, caches: Caches | None = None, position: Any = 0
    ) -> tuple[jax.Array, Caches]:
        x = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        kept = []
        for index in range(self.layers):
            cache = None if caches is None else caches[index]
            x, cache = Layer(self.heads, self.hidden, name=f"layer_{index}")(x, cache, position)
            kept.append(cache)
        x = nn.RMSNorm(name="final_norm")(x)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(x), tuple(kept)


def rotated(x: jax.Array, position: Any) -> jax.Array:
    """Rotary positions: pairs of numbers of each head (b, t, heads, size) turned by an angle that grows with the position."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-jnp.arange(half) / half)
    angles = (position + jnp.arange(x.shape[1]))[:, None, None] * rates
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, position: Any) -> jax.Array:
    """Causal attention of queries (b, t, heads, size) that begin at `position` to keys and values (b, s, heads, size)."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(jnp.float32(q.shape[-1]))
    seen = jnp.arange(k.shape[1]) <= (position + jnp.arange(q.shape[1]))[:, None]
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, scores, -1e30)), v)


def empty_caches(module: Decoder, batch: int, length: int, eight_bit: bool = False) -> Caches:
    """Caches for `length` tokens: for each layer {"keys", "values"}, (b, length, heads, size) floats or `QTensor`s."""
    zeros = jnp.zeros((batch, length, module.heads, module.width // module.heads))
    part = q8.QTensor.from_float(zeros, CACHE_SPEC) if eight_bit else zeros
    return tuple({"keys": part, "values": part} for _ in range(module.layers))


def extended(cache: Any, new: jax.Array, position: Any) -> Any:
    """A cache with the numbers of new tokens from `position` on, encoded if it holds codes."""
    added = q8.QTensor.from_float(new, CACHE_SPEC) if isinstance(cache, q8.QTensor) else new
    return jax.tree.map(
        lambda old, part: lax.dynamic_update_slice_in_dim(old, part, position, axis=1), cache, added
    )


def real(cache: Any) -> jax.Array:
    """The numbers that a cache holds."""
    return cache.dequantize() if isinstance(cache, q8.QTensor) else cache
