"""Flax models with random weights: the shapes of real networks, and small ones for quick tests.

`ZOO` is the one table. Example:

    apply, variables, inputs = ZOO["resnet50"].build(jax.random.key(0))
    logits = jax.jit(apply)(variables, *inputs)
"""

from tests.zoo.entry import Built, ZooEntry
from tests.zoo.table import ZOO

FULL = tuple(name for name, entry in ZOO.items() if entry.size == "full")
TINY = tuple(name for name, entry in ZOO.items() if entry.size == "tiny")

__all__ = ["FULL", "TINY", "ZOO", "Built", "ZooEntry"]
