"""Encoders in the manner of BERT and one step of a decoder with its cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Norm = partial(nn.LayerNorm, epsilon=1e-12, use_fast_variance=False)


class EncoderLayer(nn.Module):
    """Post-norm: x = LN(x + attention(x)), x = LN(x + W2 gelu(W1 x)), with the exact gelu."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, attend: jax.Array) -> jax.Array:
        y = nn.MultiHeadDotProductAttention(self.heads, name="attention")(x, mask=attend)
        x = Norm(name="attention_norm")(x + y)
        y = nn.gelu(nn.Dense(self.hidden, name="expand")(x), approximate=False)
        y = nn.Dense(x.shape[-1], name="project")(y)
        return Norm(name="output_norm")(x + y)


class Encoder(nn.Module):
    """BERT (Devlin et al., 2018): token ids and mask (b, t) to the last layer's states (b, t, width)."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        table = partial(nn.Embed, features=self.width)
        x = table(self.vocabulary, name="words")(ids)
        x = x + table(self.positions, name="places")(jnp.arange(ids.shape[1]))
        x = Norm(name="embedding_norm")(x)
        attend = nn.make_attention_mask(jnp.ones_like(mask), mask, dtype=bool)
        for index in range(self.layers):
            x = EncoderLayer(self.heads, self.hidden, name=f"layer_{index}")(x, attend)
        return x


class DecoderLayer(nn.Module):
    """Pre-norm; the new key and value are written into the cache at the position, then attended to."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch, _, width = x.shape
        shape = (batch, 1, self.heads, width // self.heads)
        y = Norm(name="attention_norm")(x)
        query, key, value = (
            nn.Dense(width, name=part)(y).reshape(shape) for part in ("query", "key", "value")
        )
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key, position, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values, value, position, axis=1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / shape[-1] ** 0.5
        scores = jnp.where(jnp.arange(keys.shape[1]) <= position, scores, -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), values).reshape(x.shape)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.gelu(nn.Dense(self.hidden, name="expand")(Norm(name="output_norm")(x)))
        return x + nn.Dense(width, name="project")(y), keys, values


class DecoderStep(nn.Module):
    """One new token of a GPT-like decoder, with logits tied to the embedding.

    Token ids (b, 1), a cache {"key", "value"} of (layers, b, t, heads, size) and the position to logits
    (b, vocabulary) and the new cache.
    """

    vocabulary: int = 16384
    width: int = 768
    layers: int = 6
    heads: int = 12
    hidden: int = 3072

    @nn.compact
    def __call__(
        self, ids: jax.Array, cache: dict[str, jax.Array], position: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        words = nn.Embed(self.vocabulary, self.width, name="words")
        x = words(ids)
        kept: dict[str, list[Any]] = {"key": [], "value": []}
        for index in range(self.layers):
            layer = DecoderLayer(self.heads, self.hidden, name=f"layer_{index}")
            x, keys, values = layer(x, cache["key"][index], cache["value"][index], position)
            kept["key"].append(keys)
            kept["value"].append(values)
        logits = words.attend(Norm(name="final_norm")(x[:, 0]))
        return logits, {part: jnp.stack(arrays) for part, arrays in kept.items()}
