"""Small models, one for each kind of operation, and the recurrent network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tests.zoo.parts import ConvNorm


class TinyCNN(nn.Module):
    """Convolution, batch norm, relu, poolings, two branches, a residual: (b, 16, 16, 3) to (b, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(16, (3, 3))(x, train)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        left = ConvNorm(16, (1, 1))(x, train)
        right = ConvNorm(16, (3, 3))(nn.avg_pool(x, (3, 3), padding="SAME"), train)
        x = jnp.concatenate([left, right], axis=-1)
        x = nn.relu(x + ConvNorm(32, (3, 3), activation=None)(x, train))
        x = ConvNorm(32, (3, 3), strides=2)(x, train)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


class TinyDepthwise(nn.Module):
    """Depthwise and pointwise convolutions with relu6: (b, 16, 16, 3) to (b, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(16, (3, 3), strides=2, activation=nn.relu6)(x, train)
        for strides in (1, 2):
            channels = x.shape[-1]
            x = ConvNorm(channels, (3, 3), strides, groups=channels, activation=nn.relu6)(x, train)
            x = ConvNorm(2 * channels, activation=None)(x, train)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


class MLP(nn.Module):
    """Dense layers with relu: (b, n) to (b, features[-1])."""

    features: tuple[int, ...] = (64, 64, 10)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in self.features[:-1]:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.features[-1])(x)


class ConvStack(nn.Module):
    """Convolutions in as many dimensions as the kernel has, strided and dilated: (b, ..., c) to (b, 10)."""

    kernel: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, self.kernel)(x))
        x = nn.relu(nn.Conv(24, self.kernel, strides=2, padding="VALID")(x))
        x = nn.relu(nn.Conv(24, self.kernel, kernel_dilation=2)(x))
        return nn.Dense(10)(jnp.mean(x, axis=tuple(range(1, x.ndim - 1))))


class AutoEncoder(nn.Module):
    """Strided convolutions down, transposed ones up: (b, h, w, 3) to the same shape, within (-1, 1)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        y = nn.leaky_relu(nn.Conv(32, (3, 3), strides=2)(y))
        y = nn.relu(nn.ConvTranspose(16, (3, 3), strides=(2, 2))(y))
        return jnp.tanh(nn.ConvTranspose(x.shape[-1], (4, 4), strides=(2, 2))(y))


class TiedLogits(nn.Module):
    """A table read by look-up at the start and by matmul at the end: ids (b, t) to (b, t, vocabulary)."""

    vocabulary: int = 96
    width: int = 32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        words = nn.Embed(self.vocabulary, self.width)
        x = words(ids)
        x = nn.LayerNorm()(x + nn.swish(nn.Dense(self.width)(x)))
        return words.attend(x)


class LSTM(nn.Module):
    """Recurrent layers over a sequence: (b, t, n) to logits (b, classes) of the last step."""

    features: int = 512
    layers: int = 2
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = x
        for _ in range(self.layers):
            states = nn.RNN(nn.OptimizedLSTMCell(self.features))(states)
        return nn.Dense(self.classes)(states[:, -1])


class NnxNet(nnx.Module):
    """The same kinds of layer in Flax NNX: (b, 8, 8, 3) to (b, 10)."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.middle = nnx.Linear(16, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(nnx.gelu(self.middle(jnp.mean(x, axis=(1, 2)))))


def nnx_parts(key: jax.Array) -> tuple[Callable[..., Any], Any]:
    """`NnxNet` in inference mode as a function of its state, and the state."""
    model = NnxNet(nnx.Rngs(key))
    model.eval()
    graph, state = nnx.split(model)

    def apply(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    return apply, state
