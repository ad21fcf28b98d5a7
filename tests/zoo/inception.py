"""Inception v3 (Szegedy et al., "Rethinking the Inception Architecture", 2015), figures 5 to 7."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.parts import ConvNorm

# One convolution: features, then the kernel's height and width, then the stride (2 also means no padding).
Step = tuple[int, int, int, int]


def conv(features: int, height: int = 1, width: int | None = None, stride: int = 1) -> Step:
    """A step of a branch."""
    return features, height, height if width is None else width, stride


class Chain(nn.Module):
    """Convolutions one after the other, each with batch norm and relu."""

    steps: tuple[Step, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for features, height, width, stride in self.steps:
            padding = "SAME" if stride == 1 else "VALID"
            x = ConvNorm(features, (height, width), stride, padding)(x, train)
        return x


class Mixed(nn.Module):
    """Branches side by side, concatenated on the channels.

    Attributes:
        branches: the chains that start at the input.
        pool: features of the 1x1 after an average pooling; 0 for a max pooling of stride 2 alone.
        fork: ends every chain but the first in a 1x3 and a 3x1 side by side (the last two blocks).
    """

    branches: tuple[tuple[Step, ...], ...]
    pool: int = 0
    fork: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        outputs = []
        for index, steps in enumerate(self.branches):
            y = Chain(steps)(x, train)
            if self.fork and index > 0:
                ends = (conv(self.fork, 1, 3), conv(self.fork, 3, 1))
                outputs += [Chain((end,))(y, train) for end in ends]
            else:
                outputs.append(y)
        if self.pool:
            mean = nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME")
            outputs.append(Chain((conv(self.pool),))(mean, train))
        else:
            outputs.append(nn.max_pool(x, (3, 3), strides=(2, 2)))
        return jnp.concatenate(outputs, axis=-1)


def _block_35(pool: int) -> Mixed:
    return Mixed(((conv(64),), (conv(48), conv(64, 5)), (conv(64), conv(96, 3), conv(96, 3))), pool)


def _block_17(n: int) -> Mixed:
    return Mixed(
        (
            (conv(192),),
            (conv(n), conv(n, 1, 7), conv(192, 7, 1)),
            (conv(n), conv(n, 7, 1), conv(n, 1, 7), conv(n, 7, 1), conv(192, 1, 7)),
        ),
        pool=192,
    )


def _block_8() -> Mixed:
    return Mixed(((conv(320),), (conv(384),), (conv(448), conv(384, 3))), pool=192, fork=384)


class Inception(nn.Module):
    """Images (b, h, w, 3), 299 by default, at least 75, to logits (b, classes)."""

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(32, (3, 3), 2, "VALID")(x, train)
        x = ConvNorm(32, (3, 3), padding="VALID")(x, train)
        x = ConvNorm(64, (3, 3))(x, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = ConvNorm(80)(x, train)
        x = ConvNorm(192, (3, 3), padding="VALID")(x, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        to_17 = Mixed(((conv(384, 3, stride=2),), (conv(64), conv(96, 3), conv(96, 3, stride=2))))
        to_8 = Mixed(
            (
                (conv(192), conv(320, 3, stride=2)),
                (conv(192), conv(192, 1, 7), conv(192, 7, 1), conv(192, 3, stride=2)),
            )
        )
        blocks = [_block_35(n) for n in (32, 64, 64)]
        blocks += [to_17, *(_block_17(n) for n in (128, 160, 160, 192)), to_8, _block_8(), _block_8()]
        for block in blocks:
            x = block(x, train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))
