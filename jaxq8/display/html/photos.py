"""Makes small pictures of photos, as text that a page can hold."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxq8.display.html.content import Facts, Photo
from jaxq8.errors import ArgumentError

SIDE = 224  # pixels of the longer side
MOST = 100  # photos on a page
Label = str | Mapping[str, str]


def photos(
    who: str, images: Sequence[Any] | None, labels: Sequence[Label] | None, more: Sequence[Facts] = ()
) -> tuple[tuple[Photo, ...], int]:
    """Photos with what is said of them, at most 100, and how many are left out.

    Args:
      who: The function that was called, for errors.
      images: Paths, PIL images, or uint8 arrays (height, width), (height, width, 1) or (height, width, 3).
      labels: For each image a text, or a mapping from who says it to what is said.
      more: Further labels for each image.

    Raises:
      ArgumentError: Pillow is not installed, an image cannot be read, or there are not as many labels as images.
    """
    if images is None:
        if labels is not None:
            raise ArgumentError(f"{who}: labels need images to stand beside; give images too")
        return (), 0
    listed = [images] if isinstance(images, str | os.PathLike) else list(images)
    if labels is not None and (isinstance(labels, str) or len(labels) != len(listed)):
        count = "one text" if isinstance(labels, str) else str(len(labels))
        raise ArgumentError(
            f"{who}: {count} as labels for {len(listed)} images; give a list with one for each image"
        )
    shown = []
    for index, image in enumerate(listed[:MOST]):
        said = [
            *(_facts(labels[index]) if labels is not None else ()),
            *(more[index] if index < len(more) else ()),
        ]
        name = (
            os.path.basename(os.fspath(image)) if isinstance(image, str | os.PathLike) else f"image {index}"
        )
        shown.append(Photo(_data_uri(who, index, image), name, tuple(said), _agreement(dict(said))))
    return tuple(shown), max(len(listed) - MOST, 0)


def _facts(label: Label) -> Facts:
    if isinstance(label, Mapping):
        return tuple((str(key), str(text)) for key, text in label.items())
    return (("label", str(label)),)


def _agreement(said: Mapping[str, str]) -> bool | None:
    """Whether "float" and "eight bits" say the same; None if one of them says nothing."""
    both = said.get("float"), said.get("eight bits")
    return None if None in both else both[0] == both[1]


def _data_uri(who: str, index: int, image: Any) -> str:
    """A JPEG of at most 224 pixels a side as a data URI."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ArgumentError(f"{who}: images need Pillow: pip install pillow") from error
    place = f"{who}: image {index}"
    if isinstance(image, str | os.PathLike):
        place = f"{who}: {os.fspath(image)}"
        try:
            with Image.open(image) as opened:
                picture = ImageOps.exif_transpose(opened)
                picture.load()
        # Pillow reports damage as any of these, depending on the format and on where the file is damaged.
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise ArgumentError(
                f"{place} is not a readable image ({error}); check the path and the file"
            ) from error
    elif isinstance(image, Image.Image):
        picture = image.copy()
    else:
        picture = Image.fromarray(_pixels(place, image))
    if not min(picture.size):
        raise ArgumentError(f"{place} has no pixels; leave it out")
    if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _pixels(place: str, image: Any) -> np.ndarray[Any, Any]:
    """The pixels of an image that is given as an array."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ArgumentError(
            f"{place} is {array.dtype}{list(np.shape(image))}; give a path, a PIL image, or a uint8 array "
            "(height, width, 3) before it is prepared for the model"
        )
    return np.ascontiguousarray(array)
