"""Blocks that several networks of the zoo share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from tests.zoo.weights import QUIET

Activation = Callable[[jax.Array], jax.Array]


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation (None: linear).

    `quiet` gives the norm a small scale: the last one of a residual branch.
    """

    features: int
    kernel: tuple[int, ...] = (1, 1)
    strides: int = 1
    padding: Any = "SAME"
    groups: int = 1
    activation: Activation | None = nn.relu
    quiet: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=self.strides,
            padding=self.padding,
            feature_group_count=self.groups,
            use_bias=False,
            name="conv",
        )(x)
        # With momentum 0 a pass in training mode sets the running statistics to those of its batch.
        name = QUIET if self.quiet else "norm"
        x = nn.BatchNorm(use_running_average=not train, momentum=0.0, epsilon=1e-3, name=name)(x)
        return self.activation(x) if self.activation else x
