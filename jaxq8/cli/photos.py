"""Turns photos into arrays: upright RGB, cropped to the centre, resized, and ``(x - mean) / std``.

Pillow is imported when the first photo is read.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxq8.cli.problems import Failure, Misuse

if TYPE_CHECKING:
    from PIL import Image

# Photos are cropped as if they had first been resized to this many pixels more than the wanted size. At 224 this keeps 0.875 of
# the short side, as is usual for ImageNet.
MARGIN = 32
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def is_photo(path: Path) -> bool:
    """Whether a file of a folder is an image by its name; hidden files are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


@functools.cache
def pillow() -> Any:
    """The package PIL.

    Raises:
      Failure: It is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise Failure(
            f"reading photos needs Pillow ({error}); pip install pillow, or give arrays with --input"
        ) from error
    return PIL


@dataclasses.dataclass(frozen=True)
class Photos:
    """How a photo becomes an array if the user names no function for it.

    Attributes:
      size: (height, width) of the array; None if it is not known.
      mean: What is subtracted from values of 0 to 255: one number, or one for each channel in the array's order of channels.
      std: What values are divided by after that, likewise.
      bgr: Whether the order of the channels is blue, green, red.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def open(self, path: Path) -> Image.Image:
        """Opens an image file as upright RGB; transparent parts show white.

        Raises:
          Failure: The file, or a part of it, is not readable as an image, or Pillow is missing.
        """
        pil = pillow()
        try:
            with pil.Image.open(path) as opened:
                return _rgb(pil, pil.ImageOps.exif_transpose(opened))
        # Pillow reports damage as any of these, depending on the format and on where the file is damaged.
        except (OSError, SyntaxError, ValueError, EOFError, pil.Image.DecompressionBombError) as error:
            raise Failure(f"{path}: is not a readable image ({error}); repair it or leave it out") from error

    def array(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """The photo as a float32 array (height, width, 3)."""
        if self.size is None:
            raise Misuse("the size of photos is not known; give --size, --input-shape, or --preprocess")
        height, width = self.size
        scale = min(image.width / (width + MARGIN), image.height / (height + MARGIN))
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
        pixels = np.asarray(
            image.resize((width, height), pillow().Image.Resampling.BICUBIC, box=box), np.float32
        )
        pixels = pixels[..., ::-1] if self.bgr else pixels
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def _rgb(pil: Any, image: Any) -> Any:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = pil.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = pil.Image.new("RGBA", image.size, "white")
        image = pil.Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
