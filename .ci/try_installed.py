"""Tries an installed jaxq8 as a user would: the command, the import, a small product, files, types, and `jaxq8 doctor`."""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxq8 as q8

assert Path(q8.__file__).is_relative_to(sys.prefix), f"not the installed package: {q8.__file__}"
assert importlib.metadata.version("jaxq8") == q8.__version__
assert (Path(q8.__file__).parent / "py.typed").exists()

w, x = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(128, 64), (8, 128)]))


def apply(variables, x):
    """A model of one product."""
    return x @ variables["w"]


encoded = q8.quantize_weights(apply, {"w": w}, x)
error = jnp.abs(jax.jit(q8.quantize(apply))(encoded, x) - x @ w).max() / jnp.abs(x @ w).max()
assert 0 < error < 0.05, error

command = Path(sys.prefix) / "bin" / "jaxq8"
with tempfile.TemporaryDirectory() as folder:
    file = f"{folder}/model.q8"
    q8.save(file, encoded)
    subprocess.run([command, "inspect", file], check=True, stdout=subprocess.DEVNULL)
shown = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
assert shown == f"jaxq8 {q8.__version__}\n", shown
subprocess.run([command, "doctor"], check=True)
print(f"The installed {shown.strip()} works.")
