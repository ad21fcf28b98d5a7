"""Writes the files of version 1: ``python -m tests.golden.make_files``. Those that exist stay as they are: see the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxq8 as q8

FOLDER = Path(__file__).parent


class Model(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(12)(nn.relu(nn.Dense(32)(x)))


def main() -> None:
    model, x = Model(), jax.random.normal(jax.random.key(1), (3, 12))
    variables: Any = model.init(jax.random.key(0), x)
    config = q8.Config(weights=q8.Spec(bits=4, symmetric=True, granularity="channel"), kernels="xla")
    ranges = q8.Ranges({"params/Dense_0/kernel:dot": (-4.0, 4.0)})
    encoded = q8.quantize_weights(model.apply, variables, x, config=config, correct=None)
    name = str(FOLDER / "version1")
    q8.save(f"{name}.q8", encoded, ranges=ranges, config=config)
    q8.export(f"{name}.q8x", model.apply, encoded, x, ranges=ranges, config=config, platforms=("cpu",))
    y = jax.jit(q8.quantize(model.apply, config, ranges=ranges))(encoded, jnp.asarray(x))
    codes = np.asarray(encoded["params"]["Dense_0"]["kernel"].values).ravel()[:24].tolist()
    content = {"codes": codes, "x": np.asarray(x).tolist(), "y": np.asarray(y).tolist()}
    Path(f"{name}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
