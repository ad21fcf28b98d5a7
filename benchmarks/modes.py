"""``python -m benchmarks.modes``: what every mode stores, how fast it runs, and how far its results are from float.

EfficientNet-Lite0 on the 20 packaged photos, one at a time; the forms take turns and the fastest call of each counts. Sizes are
those of files that `q8.save` writes, relative to the float32 weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxq8 as q8

MODES = {
    "eightbit": q8.Config(),
    "eightbit, 4-bit weights": q8.Config(weights=q8.Spec(bits=4, symmetric=True, granularity="channel")),
    "weights": q8.Config(mode="weights"),
    "weights, 4 bits": q8.Config(
        mode="weights", weights=q8.Spec(bits=4, symmetric=True, granularity="channel")
    ),
    "weights_rounded": q8.Config(mode="weights_rounded"),
    "round": q8.Config(mode="round"),
    "simulate": q8.Config(mode="simulate"),
    "off": q8.Config(mode="off"),
}
STORES_CODES = ("eightbit", "weights")


@dataclasses.dataclass
class Form:
    """One mode, compiled, with its variables; and what was measured of it."""

    name: str
    variables: Any
    call: Callable[[Any, Any], Any]
    bytes: int = 0
    zipped: int = 0
    seconds: float = float("inf")
    results: Any = None


def form(name: str, config: q8.Config, apply: Callable[..., Any], variables: Any, shape: Any) -> Form:
    """The mode as it would be shipped."""
    stored = variables
    if config.mode != "simulate":
        stored = q8.quantize_weights(apply, variables, shape, config=config)
    if config.mode in STORES_CODES:
        stored = q8.fold_norms(apply, stored, shape, config=config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.q8"
        q8.save(path, stored, config=config)
        data = path.read_bytes()
    zipped = len(gzip.compress(data, 6)) if config.mode == "weights_rounded" else 0
    return Form(name, stored, jax.jit(q8.quantize(apply, config)), len(data), zipped)


def measure(forms: list[Form], inputs: np.ndarray, rounds: int) -> None:
    """Results on all inputs, and the least time of one."""
    for f in forms:
        f.variables = jax.device_put(f.variables)
        f.results = np.concatenate([f.call(f.variables, x[None]) for x in inputs])
    x = jax.device_put(inputs[:1])
    for _ in range(rounds):
        for f in forms:
            start = time.perf_counter()
            jax.block_until_ready(f.call(f.variables, x))
            f.seconds = min(f.seconds, time.perf_counter() - start)


def row(f: Form, exact: Form, float_bytes: int) -> str:
    """A line of the table."""
    size = f"{f.bytes / float_bytes:.1%}" + (
        f" ({f.zipped / float_bytes:.1%} after gzip)" if f.zipped else ""
    )
    error = np.sum((f.results - exact.results) ** 2)
    db = f"{10 * np.log10(np.sum(exact.results**2) / error):.1f} dB" if error else "none"
    same = np.sum(f.results.argmax(1) == exact.results.argmax(1))
    cells = (
        f.name,
        size,
        f"{1e3 * f.seconds:.1f}",
        f"{exact.seconds / f.seconds:.1f}x",
        db,
        f"{same} of {len(f.results)}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.modes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    options.add_argument("--rounds", type=int, default=60, help="calls of each form (default 60)")
    rounds = options.parse_args().rounds

    from examples import photos
    from examples.models import efficientnet_lite as network

    model, variables = network.load()
    inputs = np.stack([network.preprocess(photo.image) for photo in photos.labelled()])
    float_bytes = sum(4 * np.size(x) for x in jax.tree_util.tree_leaves(variables))
    shape = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    exact = Form("float", variables, jax.jit(model.apply), float_bytes)
    forms = [exact, *(form(name, config, model.apply, variables, shape) for name, config in MODES.items())]
    measure(forms, inputs, rounds)
    print("| mode | file | ms | speed | SQNR of the logits | same answer |\n|---|---|---|---|---|---|")
    print("\n".join(row(f, exact, float_bytes) for f in forms))


if __name__ == "__main__":
    main()
