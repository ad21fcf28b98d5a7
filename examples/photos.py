"""Photos for the image examples: the user's own, the 20 labelled ones, and 16 for calibration.

The labelled ones come from foolbox, the others from scikit-image, scikit-learn and matplotlib: data of the
packages that `examples/assets.py` installs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from examples import assets

LABELLED = "foolbox/data"
CALIBRATION = (
    *(f"skimage/data/{name}.png" for name in ("astronaut", "chelsea", "coffee", "motorcycle_left")),
    "skimage/data/rocket.jpg",
    *(f"skimage/data/{name}.png" for name in ("camera", "coins", "brick", "grass", "gravel")),
    "skimage/data/retina.jpg",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)
# The share of the short side that is kept before resizing, by the size wanted: 0.875 at 224.
MARGIN = 32


class PhotoError(ValueError):
    """A file that is missing or is no readable image."""


class Photo(NamedTuple):
    """One RGB photo, with the index of its true class where that is known."""

    name: str
    image: Image.Image
    label: int | None = None


def read(path: Path | str, label: int | None = None) -> Photo:
    """Open an image file of any format that Pillow knows, as upright RGB; transparency is laid over white.

    Raises:
        PhotoError: no such file, or not (entirely) readable as an image.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            image = _rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise PhotoError(f"There is no photo {path}. Check the path.") from None
    # Pillow reports damage as any of these, depending on the format and on where the file is damaged.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise PhotoError(
            f"{path} is not a readable image ({error}). Give a complete JPEG, PNG or similar file."
        ) from error
    return Photo(path.name, image, label)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def square(image: Image.Image, size: int = 224) -> np.ndarray:
    """The central square of `size / (size + 32)` of the short side, resized bicubic: uint8 (size, size, 3).

    Raises:
        PhotoError: the image is empty.
    """
    if not min(image.size):
        raise PhotoError(f"An image of {image.size[0]} x {image.size[1]} pixels has nothing to crop.")
    side = min(image.size) * size / (size + MARGIN)
    left, top = ((extent - side) / 2 for extent in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box))


def labelled() -> list[Photo]:
    """The 20 packaged photos with their ImageNet classes (0-based), in the order of their numbers."""
    files = sorted(assets.path(LABELLED).glob("imagenet_*.jpg"))
    return [read(file, int(file.stem.split("_")[2])) for file in files]


def calibration() -> list[Photo]:
    """16 everyday photos without labels, none of them among `labelled`; needs the full assets."""
    return [read(assets.path(name)) for name in CALIBRATION]
