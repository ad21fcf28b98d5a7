"""Functions that all pictures share: importing matplotlib, writing the file, and shortening the names of sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxq8.errors import ArgumentError

LONGEST = 30  # how many characters a site name may have in a picture


def pyplot_for(who: str) -> Any:
    """Returns matplotlib's pyplot, which is imported when the first picture is drawn: it is optional and slow to import.

    Raises:
      ArgumentError: matplotlib is not installed; the message names the function `who` that needs it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ArgumentError(f"{who} needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def write_figure(pyplot: Any, figure: Any, path: Path, who: str) -> None:
    """Writes a figure in the format that the ending of `path` names, and closes the figure.

    Raises:
      ArgumentError: matplotlib cannot write the file; the message names the function `who`.
    """
    try:
        figure.savefig(path, dpi=80)
    except (ValueError, OSError) as error:
        raise ArgumentError(f"{who}: cannot write {path} ({error})") from error
    finally:
        pyplot.close(figure)


def short(name: str) -> str:
    """A site name without the parts that all names share; the beginning of a long name is left out."""
    name = name.removeprefix("params/").replace("/kernel", "")
    return name if len(name) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + name[1 - LONGEST :]
