"""`python -m benchmarks.architectures.corrections [NAME ...]`: does the correction of weights without data harm a model?

Each architecture of docs/MODELS.md and each model of tests/zoo is quantized with dynamic ranges, with weights rounded to the
nearest code and as `quantize_weights` corrects it. "weights" is the SQNR of the float function with the numbers that the codes
stand for, "all" that of the eight-bit program. The models of docs/MODELS.md need the packages of
benchmarks/architectures/requirements.txt. Its ViT, BEiT and RegNet have two results each, of which the error depends on luck
(of ViT with other random weights it is 37 to 53 dB with nearest codes); here they have 1000, as the published ones.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxq8 as q8
from tests.zoo import ZOO

HOW = (None, "statistics")
INPUTS = 4  # for each model: its own, and others like them
WORSE_DB = 0.3
FEW_RESULTS = ("zoo/tiny_cnn", "zoo/tiny_excite")  # whose errors are told apart from luck by several seeds


def models() -> dict[str, Callable[[], Any]]:
    """What builds each model, by name; those of packages that are missing are left out."""
    from benchmarks.architectures.__main__ import MODELS

    found: dict[str, Callable[[], Any]] = {name: build for name, (_, build) in MODELS.items()}
    found.update({f"zoo/{name}": _of_zoo(name) for name in ZOO})
    found.update(_with_many_results())
    found.update({f"{each}, seed {i}": _of_zoo(each[4:], i) for each in FEW_RESULTS for i in range(1, 6)})
    return found


def _with_many_results() -> dict[str, Callable[[], Any]]:
    """The classifiers of transformers that docs/MODELS.md has with two classes, with 1000."""
    from benchmarks.architectures.hugging_face import IMAGE, vision

    many = {"num_labels": 1000}
    small = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 2], "groups_width": 32}
    return {
        "ViT": vision("ViTForImageClassification", "ViTConfig", **IMAGE, patch_size=16, **many),
        "BEiT": vision("BeitForImageClassification", "BeitConfig", **IMAGE, patch_size=16, **many),
        "RegNet": vision("RegNetForImageClassification", "RegNetConfig", **small, **many),
    }


def _of_zoo(name: str, seed: int = 0) -> Callable[[], Any]:
    return lambda: tuple(ZOO[name].build(jax.random.key(seed)))


def examples(inputs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The inputs, and others: numbers of other tokens, images and sounds that are shifted and mirrored."""
    rng = np.random.default_rng(0)
    yield tuple(inputs)
    for i in range(1, INPUTS):
        yield jax.tree.map(lambda x, i=i: _other(x, i, rng), tuple(inputs))


def _other(x: Any, i: int, rng: np.random.Generator) -> Any:
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.integer) and x.size > 1 and int(x.max()) > 1:
        return jnp.asarray(rng.integers(int(x.min()), int(x.max()) + 1, x.shape), x.dtype)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
        return x
    axes = tuple(range(1, x.ndim))
    moved = jnp.roll(x, [5 * i if x.shape[axis] > 8 else 0 for axis in axes], axes)
    return moved[:, ::-1] if i % 2 and moved.shape[1] > 8 else moved


def decibels(exact: Sequence[Any], found: Sequence[Any]) -> float:
    """The SQNR of all results together."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True)
    ]
    noise = sum(np.sum((a - b) ** 2) for a, b in pairs)
    return float(10 * np.log10(sum(np.sum(a**2) for a, _ in pairs) / noise)) if noise else float("inf")


def measure(build: Callable[[], Any], bits: int = 8) -> tuple[list[float], list[float], float]:
    """(SQNR of the weights alone, of the eight-bit program, seconds to encode), for each way of rounding in `HOW`."""
    apply, variables, inputs = build()
    config = (
        q8.Config(weights=q8.Spec(bits=bits, symmetric=True, granularity="channel")) if bits < 8 else None
    )
    apart = list(examples(inputs))
    exact, fast = jax.jit(apply), jax.jit(q8.quantize(apply, config))
    wanted = [exact(variables, *x) for x in apart]
    weights, everything, seconds = [], [], 0.0
    for how in HOW:
        start = time.process_time()
        encoded = q8.quantize_weights(apply, variables, *inputs, config=config, correct=how)
        seconds = time.process_time() - start
        decoded = jax.tree.map(_decoded, encoded, is_leaf=_is_encoded)
        weights.append(decibels(wanted, [exact(decoded, *x) for x in apart]))
        everything.append(decibels(wanted, [fast(encoded, *x) for x in apart]))
    return weights, everything, seconds


def _is_encoded(leaf: Any) -> bool:
    return isinstance(leaf, q8.QTensor)


def _decoded(leaf: Any) -> Any:
    return leaf.dequantize() if _is_encoded(leaf) else leaf


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Does the correction of weights without data harm a model?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of a name; default: all models")
    parser.add_argument("--bits", type=int, default=8, choices=range(2, 9))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    worse = []
    print(
        f"{'SQNR, dB':<28}{'weights':>8}{'corrected':>11}{'gain':>7}{'all':>8}{'corrected':>11}{'gain':>7}{'CPU s':>8}"
    )
    for name, build in models().items():
        if options.names and not any(part in name for part in options.names):
            continue
        weights, everything, seconds = measure(build, options.bits)
        print(f"{name:<28}" + "".join(
            f"{nearest:8.1f}{better:11.1f}{better - nearest:+7.1f}" for nearest, better in (weights, everything)
        ) + f"{seconds:8.1f}", flush=True)  # fmt: skip
        if everything[1] < everything[0] - WORSE_DB:
            worse.append(name)
        jax.clear_caches()
        gc.collect()
    print(f"worse by more than {WORSE_DB} dB: {', '.join(worse) or 'none'}")


if __name__ == "__main__":
    main()
