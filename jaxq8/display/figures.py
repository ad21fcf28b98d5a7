"""Functions that all pictures share: importing matplotlib, writing the file, and shortening the names of sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxq8.errors import ArgumentError

LONGEST = 30  # how many characters a site name may have in a picture


def new_figure(who: str, width: float, height: float) -> Any:
    """Returns an empty figure of that size in inches. matplotlib is imported here: it is optional and slow to import.

    pyplot is not used: it would keep the figure, and choosing its backend would end the display of pictures in a notebook.

    Raises:
      ArgumentError: matplotlib is not installed; the message names the function `who` that needs it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(f"{who} needs matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: Path, who: str) -> None:
    """Writes a figure in the format that the ending of `path` names.

    Raises:
      ArgumentError: matplotlib cannot write the file; the message names the function `who`.
    """
    try:
        figure.savefig(path, dpi=80)
    except (ValueError, OSError) as error:
        raise ArgumentError(f"{who}: cannot write {path} ({error})") from error


def short(name: str) -> str:
    """A site name without the parts that all names share; the beginning of a long name is left out."""
    name = name.removeprefix("params/").replace("/kernel", "")
    return name if len(name) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + name[1 - LONGEST :]
