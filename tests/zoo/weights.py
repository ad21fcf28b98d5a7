"""Random weights, by the name of each leaf, with plausible batch norm statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Inputs = Callable[[jax.Array, int], tuple[Any, ...]]
QUIET = "quiet_norm"  # a batch norm of this name gets a small scale


def settled(module: nn.Module, seed: int, inputs: Inputs) -> Any:
    """Random variables of `module` with the batch norm statistics of one pass over data.

    With the initial statistics (mean 0, variance 1) the activations of a deep random network die or
    explode. The pass replaces them by those of a batch, and a little noise stands for the rest of a
    training set. Drawn with numpy: compiling a deep network's `init` takes many seconds.
    """
    random = np.random.default_rng(seed)
    batch = inputs(jax.random.key(seed), 2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *batch)
    variables = jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf(path, leaf, random), shapes)
    if "batch_stats" not in variables:
        return variables
    run = jax.jit(lambda v, *x: module.apply(v, *x, train=True, mutable=["batch_stats"])[1])
    stats = run(variables, *batch)["batch_stats"]
    return {**variables, "batch_stats": _disturbed(stats, random)}


def _leaf(path: Any, leaf: Any, random: np.random.Generator) -> jax.Array:
    *folders, name = (str(entry.key) for entry in path)
    shape = leaf.shape
    if name == "scale":
        values = random.uniform(0.5, 1.5, shape) * (0.4 if QUIET in folders else 1.0)
    elif name in ("mean", "var"):
        values = np.ones(shape)
    else:
        values = random.standard_normal(shape, np.float32) * _deviation(name, folders, shape)
    return jnp.asarray(values, jnp.float32)


def _deviation(name: str, folders: list[str], shape: tuple[int, ...]) -> float:
    if name == "bias":
        return 0.3 if folders[-1].endswith("norm") else 0.1
    if name == "embedding":
        return 0.5
    # The query, key and value of attention keep (heads, size) as outputs; all others only the last axis.
    heads = folders[-1] in ("query", "key", "value") and len(shape) == 3
    inputs = shape[0] if heads else int(np.prod(shape[:-1]))
    gain = 2 if folders[-1].lower().startswith("conv") else 1  # a relu follows, which halves the power
    return float(np.sqrt(gain / inputs))


def _disturbed(stats: Any, random: np.random.Generator) -> Any:
    """Moves each mean by about a tenth of its deviation and scales each variance by about e^(+-0.1)."""
    if not isinstance(stats.get("mean"), jax.Array):
        return {name: _disturbed(child, random) for name, child in stats.items()}
    mean, var = np.asarray(stats["mean"]), np.asarray(stats["var"])
    shift = 0.1 * np.sqrt(var) * random.standard_normal(mean.shape, np.float32)
    grow = np.exp(0.1 * random.standard_normal(var.shape, np.float32))
    return {"mean": jnp.asarray(mean + shift), "var": jnp.asarray(var * grow)}
