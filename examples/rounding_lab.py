"""Four lessons about rounding, measured on pretrained networks, with tables and pictures.

    python examples/rounding_lab.py                         # the first four lessons, about 15 minutes on two cores
    python examples/rounding_lab.py minimum granularity     # some of them
    python examples/rounding_lab.py network                 # codes learned over the whole network, about 18 minutes
    python examples/rounding_lab.py --out FOLDER            # where tables and pictures go; default: rounding_lab

Settings that are finished are kept in FOLDER/results.jsonl: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, photos, similarity_data
from examples.models import efficientnet_lite, minilm, squeezenet
from jaxq8.learning.laboratory import same_answer, sqnr_by_example

IMAGE_NETS = {"EfficientNet-Lite0": efficientnet_lite, "SqueezeNet 1.1": squeezenet}
STEPS = {"MiniLM": 800, "EfficientNet-Lite0": 160}
RULES = ("rounded_minimum", "float_minimum")
# The range of an accumulator before relu reaches below zero, and the codes of 2016 kept that range behind the relu.
BELOW_ZERO = 0.37
# Tables that are looked up (word embeddings) keep eight bits: the lessons are about contractions.
BASE = q8.Config(
    overrides=(
        ("op:gather", {"weights": q8.Spec(symmetric=True, granularity="channel"), "rounding": "half_even"}),
    )
)


class Subject(NamedTuple):
    """A network, the data to measure it on, and other data to calibrate it with."""

    name: str
    fn: Any
    variables: Any
    batches: list[Any]
    calibration: list[Any]
    more: list[Any] | None = (
        None  # what is learned from where all layers learn together, in batches of one shape
    )


def image_net(name: str, batch: int = 10) -> Subject:
    """A network for photos, with the 20 labelled ones and the 16 for calibration."""
    module = IMAGE_NETS[name]
    model, variables = module.load()
    shown, other = (
        np.stack([module.preprocess(photo.image) for photo in group])
        for group in (photos.labelled(), photos.calibration())
    )
    views = np.concatenate([other, other[:, :, ::-1], _crops(160)])
    return Subject(name, model.apply, variables, _split(shown, batch), _split(other, 4), _split(views, 8))


def sentence_net(batch: int = 10) -> Subject:
    """MiniLM, with 50 news texts and 32 others for calibration."""
    model, variables = minilm.load()
    texts, other = similarity_data.lee().texts, similarity_data.lee_background()[:32]
    groups = [
        [texts[i : i + batch] for i in range(0, len(texts), batch)],
        [other[i : i + 8] for i in range(0, 32, 8)],
    ]
    shown, learned = ([minilm.preprocess(part) for part in group] for group in groups)
    return Subject(
        "MiniLM", model.apply, variables, shown, learned, _pieces(similarity_data.lee_background())
    )


def _crops(count: int, size: int = 224) -> np.ndarray:
    """Random squares of the photos for calibration, at least 0.4 of the short side, half of them mirrored."""
    draw, images = np.random.default_rng(0), [photo.image for photo in photos.calibration()]
    found = []
    for index in range(count):
        image = images[index % len(images)]
        side = min(image.size) * draw.uniform(0.4, 1)
        left, top = (draw.uniform(0, extent - side) for extent in image.size)
        part = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        found.append(np.asarray(part, np.float32)[:, :: draw.choice([1, -1])])
    return (np.stack(found) - 127) / 128


def _pieces(texts: list[str], words: int = 64, tokens: int = 96, batch: int = 8) -> list[Any]:
    """Texts in pieces of some words, in batches of one length."""
    parts = [t.split()[i : i + words] for t in texts for i in range(0, len(t.split()), words)]
    kept = [" ".join(p) for p in parts if len(p) >= words // 4]
    groups = [kept[i : i + batch] for i in range(0, len(kept) - batch + 1, batch)]
    encoded = [minilm.preprocess(group) for group in groups]
    return [tuple(_padded(a[:, :tokens], tokens) for a in pair) for pair in encoded]


def _padded(a: np.ndarray, length: int) -> np.ndarray:
    return np.pad(a, ((0, 0), (0, length - a.shape[1])))


def _split(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[i : i + size] for i in range(0, len(images), size)]


def layer_outputs(
    model: Any, variables: Any, images: np.ndarray, rounding: str, ranges: Any
) -> dict[str, np.ndarray]:
    """What every convolution gives, before its relu, in eight bits under a rounding rule."""
    fast = q8.quantize(lambda v, x: _captured(model, v, x), q8.Config(rounding=rounding), ranges=ranges)
    return {name: np.asarray(y) for name, y in jax.jit(fast)(variables, images).items()}


def _captured(model: Any, variables: Any, x: Any) -> dict[str, Any]:
    _, kept = model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    found = jax.tree_util.tree_leaves_with_path(kept["intermediates"])
    named = {"/".join(str(key.key) for key in path[:-2]): y for path, y in found if len(path) > 2}
    last = {name: name.rsplit("/", 1)[-1] for name in named}
    convolutions = [n for n in named if last[n].startswith(("conv", "squeeze", "expand"))]
    return {n: named[n] for n in sorted(convolutions, key=_depth)}


def _depth(name: str) -> tuple[bool, str, bool]:
    """Sorts SqueezeNet's layers in the order in which they run."""
    fire, _, layer = name.partition("/")
    return name == "conv10", fire, not layer.startswith("squeeze")


def wide_ranges(fn: Any, variables: Any, calibration: list[np.ndarray]) -> q8.Ranges:
    """Calibrated ranges, widened below zero as an accumulator's are."""
    found = q8.calibrate(fn, variables, calibration, progress=False)
    return q8.Ranges(
        {name: (min(r.minimum, -BELOW_ZERO * r.maximum), r.maximum) for name, r in found.items()}
    )


def minimum_rule(subject: Subject, out: Path) -> list[str]:
    """Lesson 1, the rounding of 2016: the mean error of every layer under both rules, in percent of the layer's spread."""
    model, variables = IMAGE_NETS[subject.name].load()
    images = np.concatenate(subject.batches)
    ranges = wide_ranges(subject.fn, variables, subject.calibration)
    exact = {
        n: np.asarray(y) for n, y in jax.jit(lambda v, x: _captured(model, v, x))(variables, images).items()
    }
    order = sorted(exact, key=_depth)
    lines, biases = ["layer                     " + "".join(f"{rule:>34}" for rule in RULES)], {}
    for rule in RULES:
        found = layer_outputs(model, variables, images, rule, ranges)
        biases[rule] = [_bias(exact[name], found[name]) for name in order]
    for row, name in enumerate(order):
        cells = [biases[rule][row] for rule in RULES]
        lines.append(
            f"{name[:26]:<26}" + "".join(f"{m:>14.2f}% ({low:6.2f} to {high:6.2f})" for m, low, high in cells)
        )
    answers = subject.fn(variables, images).argmax(1)
    for rule in RULES:
        fast = jax.jit(q8.quantize(subject.fn, q8.Config(rounding=rule), ranges=ranges))
        same = q8.Share.of(np.asarray(fast(variables, images)).argmax(1) == answers)
        lines.append(f"{rule}: same answer as float on {same} photos")
    _draw_bias(out / "minimum_rule.png", order, biases, subject.name)
    return lines


def _bias(exact: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Mean signed error in percent of the standard deviation, with its interval over photos."""
    axes = tuple(range(1, exact.ndim))
    return q8.bootstrap(100 * (found - exact).mean(axes) / exact.std())


def _draw_bias(
    path: Path, order: list[str], biases: dict[str, list[tuple[float, float, float]]], title: str
) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for rule, rows in biases.items():
        mean, low, high = np.array(rows).T
        axes.plot(mean, marker="o", markersize=3, label=rule)
        axes.fill_between(range(len(mean)), low, high, alpha=0.25)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(order)), order, rotation=90, fontsize=6)
    axes.set(ylabel="mean error, % of the layer's deviation", title=f"{title}: bias of each layer's output")
    axes.legend()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def grid(subject: Subject, out: Path, **settings: Any) -> q8.Table:
    """One experiment, its finished settings kept."""
    return q8.experiment(
        subject.fn, subject.variables, subject.batches, calibration=subject.calibration, config=BASE,
        path=out / "results.jsonl", name=subject.name, **settings,
    )  # fmt: skip


def learned(subject: Subject, out: Path) -> q8.Table:
    """Lesson 2: nearest, stochastic and learned rounding at 4 and 3 bits, beside nearest at 8."""
    eight = grid(subject, out, bits=(8,))
    low = grid(subject, out, rounding=("half_even", "gptq", "adaround", "stochastic"), bits=(4, 3))
    return dataclasses.replace(eight, rows=eight.rows + low.rows)


def network(subject: Subject, out: Path) -> list[str]:
    """Lesson 5: weights in 4 bits, layer by layer from all the data there are, and then all layers together."""
    assert subject.more is not None
    four = q8.Spec(bits=4, symmetric=True, granularity="channel")
    config = dataclasses.replace(BASE, weights=four)
    fn, variables = subject.fn, subject.variables
    start = q8.learn_rounding(fn, variables, subject.more, config=config, stages=1)
    steps = STEPS[subject.name]
    learned = q8.reconstruct(fn, variables, start, subject.more, config=config, steps=steps)
    fast, float_fn = jax.jit(q8.quantize(fn, config)), jax.jit(fn)
    inputs = [b if isinstance(b, tuple) else (b,) for b in subject.batches]
    exact = [np.asarray(float_fn(variables, *x)) for x in inputs]
    lines = []
    for label, found in ((f"GPTQ, {len(subject.more)} batches", start), (f"then {steps} steps", learned)):
        results = [np.asarray(fast(found, *x)) for x in inputs]
        noise = np.concatenate([sqnr_by_example(x, y) for x, y in zip(exact, results, strict=True)])
        same = np.concatenate([same_answer(x, y) for x, y in zip(exact, results, strict=True)])
        mean, low, high = q8.bootstrap(noise)
        lines.append(
            f"{label:<20} {mean:5.1f} dB ({low:.1f} to {high:.1f}), same largest element {q8.Share.of(same)}"
        )
    (out / f"network_{subject.name.split()[0].lower()}.txt").write_text("\n".join(lines) + "\n")
    return lines


def granularity(subject: Subject, out: Path) -> q8.Table:
    """Lesson 3: one scale a tensor or one a channel, symmetric or not (Krishnamoorthi 2018, tables 2 to 4)."""
    return grid(subject, out, bits=(8, 5), granularity=("tensor", "channel"), symmetric=(False, True))


def observers(subject: Subject, out: Path) -> q8.Table:
    """Lesson 4: where the range of an activation comes from, at 8 and 6 bits."""
    names = ("dynamic", "minmax", "percentile", "mse", "entropy")
    return grid(subject, out, observer=names, activation_bits=(8, 6))


LESSONS = ("minimum", "learned", "granularity", "observers")
LONGER = ("network",)  # run where they are asked for by name
AXES = {
    "learned": ("bits", "rounding"),
    "granularity": ("granularity", "symmetric"),
    "observers": ("observer", "activation_bits"),
}

NAMES: dict[Any, str] = {
    "sqnr_db": "signal to noise of the results, dB", "bits": "bits of weights", "activation_bits": "bits of activations",
    "granularity": "one scale for each", "symmetric": "codes", True: "symmetric", False: "asymmetric",
    "half_even": "nearest", "gptq": "GPTQ", "adaround": "AdaRound", "observer": "ranges of activations",
    "dynamic": "in each run", "minmax": "min/max", "mse": "MSE",
}  # fmt: skip


def run(lesson: str, subject: Subject, out: Path) -> None:
    """Measures one lesson on one network; prints it and writes its table and picture."""
    print(f"\n== {lesson}: {subject.name}")
    if lesson == "minimum":
        print("\n".join(minimum_rule(subject, out)))
        return
    if lesson == "network":
        print("\n".join(network(subject, out)), flush=True)
        return
    table = {"learned": learned, "granularity": granularity, "observers": observers}[lesson](subject, out)
    print(table)
    stem = out / f"{lesson}_{subject.name.split()[0].lower().replace('-', '_')}"
    table.save(stem.with_suffix(".csv"))
    x, by = AXES[lesson]
    title = f"{subject.name}: means over {sum(map(_size, subject.batches))} examples, 95% intervals"
    table.plot(stem.with_suffix(".png"), x=x, by=by, title=title, names=NAMES)


def _size(batch: Any) -> int:
    return len(batch[0] if isinstance(batch, tuple) else batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Lessons about rounding, on pretrained networks.")
    parser.add_argument(
        "lessons",
        nargs="*",
        metavar="LESSON",
        help=f"of {', '.join(LESSONS + LONGER)}; default: all but the last",
    )
    parser.add_argument("--out", type=Path, default=Path("rounding_lab"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    if unknown := set(options.lessons) - {*LESSONS, *LONGER}:
        parser.error(f"unknown lesson {unknown.pop()!r}; known are {', '.join(LESSONS + LONGER)}")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        assets.ensure("full")
        nets = [image_net(name) for name in IMAGE_NETS]
        for lesson in options.lessons or LESSONS:
            subjects = {
                "minimum": nets[1:],
                "learned": [*nets, sentence_net()],
                "network": [sentence_net(), nets[0]],
            }.get(lesson, nets)
            for subject in subjects:
                run(lesson, subject, options.out)
    except assets.AssetsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
