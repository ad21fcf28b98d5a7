"""A picture of photos with the answers of two networks' float and eight-bit forms under each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from examples import photos

COLUMNS, CELL, GAP, LINE = 5, 224, 12, 18
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SAME, DIFFERENT = "#1a7f37", "#c62828"


def draw(shown: Sequence[photos.Photo], captions: Sequence[Sequence[tuple[str, bool]]]) -> Image.Image:
    """Lay out the photos in rows of five.

    Args:
        shown: the photos.
        captions: for each photo the lines under it, each with whether it agrees (green) or not (red).
    """
    lines = max((len(each) for each in captions), default=0)
    step = (CELL + GAP, CELL + lines * LINE + GAP)
    rows = -(-len(shown) // COLUMNS)
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * step[0] + GAP, rows * step[1] + GAP), "white")
    for index, (photo, caption) in enumerate(zip(shown, captions, strict=True)):
        corner = (GAP + index % COLUMNS * step[0], GAP + index // COLUMNS * step[1])
        sheet.paste(Image.fromarray(photos.square(photo.image, CELL)), corner)
        _write(ImageDraw.Draw(sheet), corner, caption)
    return sheet


def save(path: Path | str, sheet: Image.Image) -> None:
    """Write `sheet` in the format that the ending of `path` names.

    Raises:
        PhotoError: the folder does not exist, or the ending names no image format.
    """
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise photos.PhotoError(f"Cannot write {path} ({error}). Give a path such as labels.png.") from error


def _write(canvas: ImageDraw.ImageDraw, corner: tuple[int, int], caption: Sequence[tuple[str, bool]]) -> None:
    font = ImageFont.load_default(size=13)
    for number, (text, agrees) in enumerate(caption):
        place = (corner[0], corner[1] + CELL + 3 + number * LINE)
        canvas.text(place, _fitting(text, canvas, font), fill=SAME if agrees else DIFFERENT, font=font)


def _fitting(text: str, canvas: ImageDraw.ImageDraw, font: Font) -> str:
    if canvas.textlength(text, font=font) <= CELL:
        return text
    while text and canvas.textlength(text + "...", font=font) > CELL:
        text = text[:-1]
    return text + "..."
