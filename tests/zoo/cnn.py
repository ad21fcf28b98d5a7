"""Residual and depthwise networks for images."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.parts import ConvNorm

# (expansion, channels, repeats, stride of the first) of MobileNetV2, table 2
MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride: version 1.5), 1x1 to four times the features, plus the shortcut."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        out = 4 * self.features
        y = ConvNorm(self.features)(x, train)
        y = ConvNorm(self.features, (3, 3), self.strides, padding=1)(y, train)
        # A quiet branch keeps the variance of the sum from growing with depth, as training does.
        y = ConvNorm(out, activation=None, quiet=True)(y, train)
        if x.shape != y.shape:
            x = ConvNorm(out, strides=self.strides, activation=None, name="shortcut")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1.5 with bottlenecks (He et al., 2015): images (b, h, w, 3) to logits (b, classes).

    `stages` counts the blocks: (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) ResNet-152.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(self.width, (7, 7), 2, padding=3, name="stem")(x, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(self.width * 2**stage, strides, name=f"stage{stage}_{block}")(x, train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation, plus the input where the shapes agree."""

    expand: int
    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        middle = x.shape[-1] * self.expand
        y = ConvNorm(middle, activation=nn.relu6, name="expand")(x, train) if self.expand > 1 else x
        y = ConvNorm(
            middle, (3, 3), self.strides, padding=1, groups=middle, activation=nn.relu6, name="depthwise"
        )(y, train)
        same = self.strides == 1 and x.shape[-1] == self.features
        y = ConvNorm(self.features, activation=None, quiet=same, name="project")(y, train)
        return x + y if same else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018): images (b, h, w, 3) to logits (b, classes)."""

    stages: tuple[tuple[int, int, int, int], ...] = MOBILE_STAGES
    stem: int = 32
    head: int = 1280
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(self.stem, (3, 3), 2, padding=1, activation=nn.relu6, name="stem")(x, train)
        for stage, (expand, features, repeats, strides) in enumerate(self.stages):
            for block in range(repeats):
                first = strides if block == 0 else 1
                x = InvertedResidual(expand, features, first, name=f"stage{stage}_{block}")(x, train)
        x = ConvNorm(self.head, activation=nn.relu6, name="head")(x, train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))
