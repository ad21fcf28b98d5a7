"""A model that collapses in eight bits, and how it comes back: find the site, then equalise.

    python examples/rescue.py --save error.png

Two nets compute the same in float before and after their channels were made unequal by a factor of up to 1000, as
training without weight decay, or batch norm folded by hand, leaves them. No pretrained weights are needed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import side_by_side

SPREAD = 1000.0  # the largest channel over the smallest
PER_TENSOR = q8.Config(weights=q8.Spec(symmetric=True, granularity="tensor"))


class Convolutions(nn.Module):
    """Three convolutions with relu, then a classifier: images (b, 16, 16, 8) to (b, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 32, 32):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class FeedForward(nn.Module):
    """Layer norm before a wide layer, as in transformers: tokens (b, t, 64) to the same shape."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            y = nn.relu(nn.Dense(256)(nn.LayerNorm()(x)))
            x = x + nn.Dense(64)(y)
        return nn.Dense(64)(nn.LayerNorm()(x))


def spread(size: int, seed: int) -> np.ndarray:
    """Factors between 1 / sqrt(SPREAD) and sqrt(SPREAD), float32 (size,)."""
    return np.exp(np.random.default_rng(seed).uniform(-0.5, 0.5, size) * np.log(SPREAD)).astype(np.float32)


def unequal_convolutions(variables: Any) -> Any:
    """Multiply each hidden channel by a factor and divide what reads it: the same function in float."""
    layers = {name: dict(layer) for name, layer in variables["params"].items()}
    names = ["Conv_0", "Conv_1", "Conv_2", "Dense_0"]
    for seed, (made, read) in enumerate(itertools.pairwise(names)):
        factor = spread(32, seed)
        layers[made] = {key: value * factor for key, value in layers[made].items()}
        layers[read]["kernel"] = layers[read]["kernel"] / factor[:, None]
    return {"params": layers}


def outlier_channels(variables: Any) -> Any:
    """A few channels after each layer norm 100 times as large, their weights as much smaller."""
    layers = {name: dict(layer) for name, layer in variables["params"].items()}
    for norm, dense in (("LayerNorm_0", "Dense_0"), ("LayerNorm_1", "Dense_2"), ("LayerNorm_2", "Dense_4")):
        factor = np.ones(64, np.float32)
        factor[[3, 17, 40]] = 100
        layers[norm] = {key: value * factor for key, value in layers[norm].items()}
        layers[dense]["kernel"] = layers[dense]["kernel"] / factor[:, None]
    return {"params": layers}


def rescue(title: str, apply: Callable[..., Any], variables: Any, x: jax.Array, save: Path | None) -> None:
    """Print the SQNR of the net as it is, per channel, and after each repair; draw where the error arises."""
    calibration, test = [x[:8], x[8:16]], x[16:]
    exact = np.asarray(apply(variables, test))
    rows: list[tuple[str, Any, q8.Config | None, bool]] = [
        ("static, one scale a weight tensor", variables, PER_TENSOR, True),
        ("static, one scale a channel", variables, None, True),
        ("dynamic, one range a row", variables, q8.Config(activations=q8.Spec(granularity="row")), False),
    ]
    even = q8.equalize(apply, variables, calibration, progress=False)
    rows += [
        ("equalised, one scale a weight tensor", even, PER_TENSOR, True),
        ("equalised, one scale a channel", even, None, True),
    ]
    ranges = q8.calibrate(apply, even, calibration, progress=False)
    moved = q8.correct_bias(apply, even, calibration, ranges=ranges, progress=False)
    rows.append(("  and bias corrected", moved, None, True))
    print(f"\n{title}\n{'':<40}{'SQNR of the result, dB':>24}")
    for index, (name, tree, config, static) in enumerate(rows):
        found = q8.calibrate(apply, tree, calibration, config=config, progress=False) if static else None
        fast = jax.jit(q8.quantize(apply, config, ranges=found))
        print(f"{name:<40}{side_by_side.sqnr_db(exact, np.asarray(fast(tree, test))):>24.1f}")
        if index in (1, 4):
            report = q8.compare(apply, fast, tree, [test], progress=False)
            jump = report.first_jump
            print(f"    first jump of the error: {jump.name if jump else 'none'}")
            if save is not None:
                label = "before" if index == 1 else "after"
                target = save.with_stem(f"{save.stem}-{title.split()[0].lower()}-{label}")
                report.plot(target)
                print(f"    drawn: {target}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Bring back two nets that collapse in eight bits.")
    parser.add_argument(
        "--save", type=Path, metavar="PICTURE", help="draw the error along the depth, before and after"
    )
    save = parser.parse_args(arguments).save
    key = jax.random.key(0)
    images = jax.random.normal(key, (32, 16, 16, 8))
    net = Convolutions()
    variables = net.init(jax.random.key(1), images)
    unequal = unequal_convolutions(variables)
    rescue("Convolutions with unequal channels", net.apply, unequal, images, save)
    tokens = jax.random.normal(key, (32, 24, 64))
    block = FeedForward()
    variables = block.init(jax.random.key(2), tokens)
    rescue("Transformer layers with outlier channels", block.apply, outlier_channels(variables), tokens, save)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
