"""Networks as a user brings them: nothing in jaxq8 was made for them, and native regions have to find their own way."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.parts import ConvNorm

# (expansion, channels, repeats, stride of the first, kernel) of EfficientNet-B0, table 1
B0_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm, four times as many features and gelu, back, a scale for each channel, plus the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        y = nn.Conv(features, (7, 7), feature_group_count=features, name="conv")(x)
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        y = nn.gelu(nn.Dense(4 * features, name="up")(y), approximate=False)
        y = nn.Dense(features, name="down")(y)
        return x + y * self.param("scale", nn.initializers.ones, (features,))


class ConvNeXt(nn.Module):
    """ConvNeXt-T (Liu et al., 2022): images (b, h, w, 3) to logits (b, classes)."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                x = nn.LayerNorm(epsilon=1e-6, name=f"norm{stage}")(x)
            size = 2 if stage > 0 else 4
            x = nn.Conv(width, (size, size), strides=size, padding="VALID", name=f"conv{stage}")(x)
            if stage == 0:
                x = nn.LayerNorm(epsilon=1e-6, name="norm0")(x)
            for block in range(depth):
                x = ConvNeXtBlock(name=f"stage{stage}_{block}")(x)
        x = nn.LayerNorm(epsilon=1e-6, name="head_norm")(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(self.classes, name="classifier")(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by what two small layers make of the means of all channels."""

    reduced: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.silu(nn.Dense(self.reduced, name="squeeze")(jnp.mean(x, axis=(1, 2))))
        y = nn.sigmoid(nn.Dense(x.shape[-1], name="excite")(y))
        return x * y[:, None, None, :]


class MobileBlock(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1, plus the input where the shapes agree; with silu."""

    expand: int
    features: int
    strides: int
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        middle, size = x.shape[-1] * self.expand, (self.kernel, self.kernel)
        y = ConvNorm(middle, activation=nn.silu, name="expand")(x, train) if self.expand > 1 else x
        depthwise = ConvNorm(middle, size, self.strides, groups=middle, activation=nn.silu, name="depthwise")
        y = SqueezeExcite(max(1, x.shape[-1] // 4), name="excite")(depthwise(y, train))
        same = self.strides == 1 and x.shape[-1] == self.features
        y = ConvNorm(self.features, activation=None, quiet=same, name="project")(y, train)
        return x + y if same else y


class EfficientNet(nn.Module):
    """EfficientNet-B0 (Tan and Le, 2019): images (b, h, w, 3) to logits (b, classes)."""

    stages: tuple[tuple[int, int, int, int, int], ...] = B0_STAGES
    stem: int = 32
    head: int = 1280
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(self.stem, (3, 3), 2, activation=nn.silu, name="stem")(x, train)
        for stage, (expand, features, repeats, strides, kernel) in enumerate(self.stages):
            for block in range(repeats):
                first = strides if block == 0 else 1
                x = MobileBlock(expand, features, first, kernel, name=f"stage{stage}_{block}")(x, train)
        x = ConvNorm(self.head, activation=nn.silu, name="head")(x, train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with batch norm: images (b, h, w, 3) to logits (b, h, w, classes).

    Each level has two 3x3 convolutions; transposed ones go up, and what the way down had is joined to them.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    classes: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        passed = []
        for level, width in enumerate(self.widths):
            if level > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = self._level(x, width, f"down{level}", train)
            passed.append(x)
        for level, width in reversed(list(enumerate(self.widths[:-1]))):
            x = nn.ConvTranspose(width, (2, 2), strides=(2, 2), name=f"conv_up{level}")(x)
            x = self._level(jnp.concatenate([passed[level], x], axis=-1), width, f"up{level}", train)
        return nn.Conv(self.classes, (1, 1), name="classifier")(x)

    def _level(self, x: jax.Array, width: int, name: str, train: bool) -> jax.Array:
        x = ConvNorm(width, (3, 3), name=f"{name}_first")(x, train)
        return ConvNorm(width, (3, 3), name=f"{name}_second")(x, train)
