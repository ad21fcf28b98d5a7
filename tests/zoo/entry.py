"""What one model of the zoo is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax

from tests.zoo.weights import Inputs, settled


class Built(NamedTuple):
    """`apply(variables, *inputs)` runs the model in inference mode."""

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """One model.

    Attributes:
        size: "tiny" runs in milliseconds and suits unit tests; "full" has the shapes of the real network.
        inputs: `inputs(key, batch)` draws the model's arguments.
        module: the Linen module; None where the model is not a Linen one.
        parts: `parts(key)` returns (apply, variables) of a model that is not a Linen one.
    """

    size: Literal["tiny", "full"]
    inputs: Inputs
    module: nn.Module | None = None
    parts: Callable[[jax.Array], tuple[Callable[..., Any], Any]] | None = None

    def build(self, key: jax.Array, batch: int | None = None) -> Built:
        """Draws weights and inputs.

        Args:
            key: the same key gives the same weights and inputs.
            batch: examples in the inputs; 2 for tiny models and 1 for full ones by default.
        """
        seeds = jax.random.bits(key, (2,))
        batch = batch or (2 if self.size == "tiny" else 1)
        inputs = self.inputs(jax.random.key(seeds[1]), batch)
        weights = _remembered if self.size == "tiny" else _draw
        return Built(*weights(self, int(seeds[0])), inputs)


def _draw(entry: ZooEntry, seed: int) -> tuple[Callable[..., Any], Any]:
    if entry.parts is not None:
        return entry.parts(jax.random.key(seed))
    assert entry.module is not None
    return entry.module.apply, settled(entry.module, seed, entry.inputs)


# Many tests ask for the same tiny model, and settling its statistics takes a second of compilation.
_remembered = lru_cache(maxsize=32)(_draw)
