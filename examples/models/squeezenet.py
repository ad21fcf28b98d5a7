"""SqueezeNet 1.1 in Flax Linen, with the weights of the package ndf (MIT).

Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size", 2016.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from examples import assets, photos
from examples.models import restricted_pickle
from examples.models.checks import ModelFileError, check_variables, read_bytes

SIZE = 224
WEIGHTS = "ndf/example_models/weights/squeezenet_weights.pkl"
BGR_MEAN = np.array([103.939, 116.779, 123.68], np.float32)
# (squeeze, expand) channels of fire2 to fire9
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOL_AFTER = (3, 5)


class Fire(nn.Module):
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.squeeze, (1, 1), name="squeeze1x1")(x))
        left = nn.relu(nn.Conv(self.expand, (1, 1), name="expand1x1")(x))
        right = nn.relu(nn.Conv(self.expand, (3, 3), padding="SAME", name="expand3x3")(x))
        return jnp.concatenate([left, right], axis=-1)


class SqueezeNet(nn.Module):
    """Photos (b, 224, 224, 3), prepared by `preprocess`, to logits (b, 1000)."""

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(64, (3, 3), strides=2, padding="VALID", name="conv1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for number, (squeeze, expand) in enumerate(FIRES, start=2):
            x = Fire(squeeze, expand, name=f"fire{number}")(x)
            if number in POOL_AFTER:
                x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = nn.relu(nn.Conv(self.classes, (1, 1), name="conv10")(x))
        return jnp.mean(x, axis=(1, 2))


def preprocess(photo: Image.Image) -> np.ndarray:
    """The central square of `photo` as float32 (224, 224, 3), BGR, minus the mean of each channel."""
    return photos.square(photo, SIZE)[..., ::-1].astype(np.float32) - BGR_MEAN


def load(path: Path | str | None = None) -> tuple[SqueezeNet, dict[str, Any]]:
    """The model and its pretrained variables.

    Args:
        path: a pickle of `{layer: [kernel HWIO, bias]}`, numpy arrays only; by default the installed one.

    Raises:
        ModelFileError: the file is missing, damaged, of another model, or asks for anything but arrays.
        AssetsError: no path given and the assets are not installed.
    """
    path = Path(path) if path else assets.path(WEIGHTS)
    layers = restricted_pickle.load(io.BytesIO(read_bytes(path)), path, _ALLOWED)
    if not isinstance(layers, dict) or not all(_is_layer(name, pair) for name, pair in layers.items()):
        raise ModelFileError(
            f"{path} is not a dictionary of layer -> [kernel, bias]. Give SqueezeNet's pickle."
        )
    params: dict[str, Any] = {}
    for name, (kernel, bias) in layers.items():
        *folders, leaf = name.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = {"kernel": _array(kernel, name, path), "bias": _array(bias, name, path)}
    module, variables = SqueezeNet(), {"params": params}
    check_variables(module, variables, path, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return module, variables


class _Dtype:
    """Stands for numpy.dtype while unpickling: keeps what the file says, runs nothing."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.state = name, None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_float32(self) -> bool:
        return self.name == "f4" and isinstance(self.state, tuple) and self.state[1:2] == ("<",)


class _Record:
    """Stands for a numpy array while unpickling; its state: (version, shape, dtype, Fortran order, bytes)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _record(*_: Any) -> _Record:
    return _Record()


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _record,
    ("numpy._core.multiarray", "_reconstruct"): _record,
    ("numpy", "ndarray"): _Record,
    ("numpy", "dtype"): _Dtype,
}


def _is_layer(name: Any, pair: Any) -> bool:
    arrays = (
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(each, _Record) for each in pair)
    )
    return isinstance(name, str) and arrays


def _array(record: _Record, name: str, path: Path) -> jax.Array:
    """The float32 array that a record describes, built from its bytes here rather than by the pickle."""
    try:
        _, shape, dtype, fortran, data = record.state
        if not isinstance(dtype, _Dtype) or not dtype.is_float32:
            raise ValueError("not float32")
        raw = data.encode("latin1") if isinstance(data, str) else data  # str: written by Python 2
        if len(raw) != 4 * math.prod(shape):
            raise ValueError(f"{len(raw)} bytes for shape {shape}")
        return jnp.asarray(np.frombuffer(raw, "<f4").reshape(shape, order="F" if fortran else "C"))
    except (TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: the array of {name} is damaged ({error}). Download the file again."
        ) from error
