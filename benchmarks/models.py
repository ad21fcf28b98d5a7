"""The models of the comparison: real weights where they are installed, else random ones at real shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tests.zoo import ZOO

CALIBRATION_EXAMPLES = 16
TOKENS = 128


class ModelUnavailableError(RuntimeError):
    """The model cannot be built here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One model with inputs of one batch size.

    Attributes:
        name: in the tables.
        module: the Linen module; `apply(variables, *inputs)` runs it.
        variables: float32.
        inputs: those that are timed and compared.
        calibration: batches of other inputs for static ranges.
    """

    name: str
    module: nn.Module
    variables: Any
    inputs: tuple[Any, ...]
    calibration: list[tuple[Any, ...]]

    @property
    def apply(self) -> Callable[..., Any]:
        """The model in inference mode."""
        return self.module.apply


def calibration_batches(batch: int) -> int:
    """How many batches hold the examples for calibration; at least two."""
    return max(2, -(-CALIBRATION_EXAMPLES // batch))


def random_model(name: str, batch: int) -> Model:
    """A model of the zoo."""
    entry = ZOO[name]
    assert entry.module is not None
    _, variables, inputs = entry.build(jax.random.key(0), batch)
    keys = [jax.random.key(1 + index) for index in range(calibration_batches(batch))]
    return Model(name, entry.module, variables, inputs, [entry.inputs(key, batch) for key in keys])


def real_model(name: str, batch: int) -> Model:
    """A pretrained model with real inputs.

    Raises:
        ModelUnavailableError: its weights or data are not installed.
    """
    from examples.assets import AssetsError

    loader, inputs = REAL[name]
    try:
        module, variables = loader().load()
        data = inputs(loader(), batch)
    except AssetsError as error:
        raise ModelUnavailableError(str(error)) from error
    return Model(name, module, variables, data[0], data[1:])


def _photo_batches(network: Any, batch: int) -> list[tuple[Any, ...]]:
    from examples import photos

    shown = [network.preprocess(photo.image) for photo in photos.labelled()]
    others = [network.preprocess(photo.image) for photo in photos.calibration()]
    return _batches(shown, others, batch)


def _text_batches(network: Any, batch: int) -> list[tuple[Any, ...]]:
    from examples import similarity_data

    texts = [similarity_data.lee().texts, similarity_data.lee_background()]
    shown, others = ([_padded(*network.preprocess([text])) for text in part] for part in texts)
    return _batches(shown, others, batch)


def _padded(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One text cut or filled to `TOKENS`."""
    more = ((0, max(0, TOKENS - ids.shape[1])),)
    return np.pad(ids[0, :TOKENS], more), np.pad(mask[0, :TOKENS], more)


def _batches(shown: list[Any], others: list[Any], batch: int) -> list[tuple[Any, ...]]:
    """A batch of the first, then the calibration batches of the second; too few of either start over."""
    starts = range(0, batch * calibration_batches(batch), batch)
    rows = [[shown[i % len(shown)] for i in range(batch)]]
    rows += [[others[(start + i) % len(others)] for i in range(batch)] for start in starts]
    return [jax.tree_util.tree_map(lambda *x: np.stack(x), *[_as_tuple(r) for r in row]) for row in rows]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _lite0() -> Any:
    from examples.models import efficientnet_lite

    return efficientnet_lite


def _squeezenet() -> Any:
    from examples.models import squeezenet

    return squeezenet


def _minilm() -> Any:
    from examples.models import minilm

    return minilm


REAL: dict[str, tuple[Callable[[], Any], Callable[[Any, int], list[tuple[Any, ...]]]]] = {
    "efficientnet_lite0": (_lite0, _photo_batches),
    "squeezenet": (_squeezenet, _photo_batches),
    "minilm": (_minilm, _text_batches),
}
RANDOM = tuple(name for name, entry in ZOO.items() if entry.module is not None)
DEFAULT = (
    "resnet50",
    "mobilenet_v2",
    "efficientnet_lite0",
    "squeezenet",
    "inception_v3",
    "minilm",
    "bert_base",
    "lstm",
    "decoder_step",
)
MODELS: dict[str, Callable[[int], Model]] = {
    **{name: partial(random_model, name) for name in RANDOM},
    **{name: partial(real_model, name) for name in REAL},
}
