"""Float beside eight bits on this machine: ``python -m benchmarks.float_vs_eight_bits [MODEL ...] [--batch 1 8]``.

Every contender of a model runs in this one process, in turn, and the fastest of all rounds counts: on shared machines only
ratios taken this way mean anything.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import jaxq8 as q8
from jaxq8.display.text_table import table
from tests.zoo import ZOO

REAL = ("efficientnet_lite0", "squeezenet")
DEFAULT = (*REAL, "resnet50", "mobilenet_v2", "inception_v3", "minilm_shaped", "bert_base")


def main() -> None:
    """Prints one row a model and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=DEFAULT, metavar="MODEL", help=f"default: {' '.join(DEFAULT)}"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds of alternation at batch 1; a third at larger ones"
    )
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in ZOO and name not in REAL]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join([*REAL, *ZOO])}")
    print(f"processor: {processor()}; JAX {jax.__version__}; times in ms, fastest of all rounds\n")
    rows = []
    for name in options.models:
        for batch in options.batch:
            rows.append(measure(name, batch, options.rounds if batch == 1 else max(options.rounds // 3, 3)))
            print(" ".join(rows[-1]), flush=True)
    print()
    header = (
        "model",
        "batch",
        "float",
        "float, better forms",
        "8 bit",
        "ratio",
        "SQNR dB",
        "weights",
        "macs in 8 bit",
    )
    print("\n".join(table(header, rows)))


def measure(name: str, batch: int, rounds: int) -> tuple[str, ...]:
    """One row of the table."""
    fn, variables, inputs = build(name, batch)
    weights = q8.quantize_weights(fn, variables, *inputs, correct=None)
    plan = q8.explain(fn, weights, *inputs)
    plain = jax.jit(fn)
    better = jax.jit(q8.quantize(fn, q8.Config(mode="off")))
    fast = jax.jit(q8.quantize(fn))
    best = fastest(
        [
            lambda: plain(variables, *inputs),
            lambda: better(variables, *inputs),
            lambda: fast(weights, *inputs),
        ],
        rounds,
    )
    expected, found = (
        np.asarray(jax.tree.leaves(r)[0]) for r in (plain(variables, *inputs), fast(weights, *inputs))
    )
    sqnr = 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2))
    share = nbytes(weights) / nbytes(variables)
    times = [f"{t * 1e3:.2f}" for t in best]
    return (
        name,
        str(batch),
        *times,
        f"{best[0] / best[2]:.2f}x",
        f"{sqnr:.1f}",
        f"{share:.1%}",
        f"{plan.eight_bit_share:.1%}",
    )


def build(name: str, batch: int) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """(apply, variables, inputs) of a model with pretrained or random weights."""
    if name not in REAL:
        fn, variables, inputs = ZOO[name].build(jax.random.key(0), batch)
        return fn, variables, tuple(inputs)
    from examples import photos
    from examples.models import efficientnet_lite, squeezenet

    source = efficientnet_lite if name == "efficientnet_lite0" else squeezenet
    module, variables = source.load()
    images = np.stack([source.preprocess(p.image) for p in photos.labelled()[:batch]])
    return module.apply, variables, (jax.numpy.asarray(images),)


def fastest(contenders: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of the fastest call of each, all taking turns."""
    for call in contenders:
        jax.block_until_ready(call())
    best = [float("inf")] * len(contenders)
    for _ in range(rounds):
        for i, call in enumerate(contenders):
            start = time.perf_counter()
            jax.block_until_ready(call())
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def processor() -> str:
    """The processor's name, and what jaxq8 takes it for."""
    from jaxq8.kernels.processor import capability

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
            )
    except OSError:
        name = platform.processor()
    return f"{name or platform.machine()} ({capability()})"


if __name__ == "__main__":
    main()
