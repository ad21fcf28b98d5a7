"""What all pictures share: matplotlib, found or asked for, the file that is written, and names that fit under a bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxq8.errors import ArgumentError

LONGEST = 30  # characters of a site name


def pyplot_for(who: str) -> Any:
    """matplotlib's pyplot, imported when the first picture is drawn: it is optional, and slow to import.

    Raises:
      ArgumentError: It is not installed; the message names `who` needs it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ArgumentError(f"{who} needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def write_figure(pyplot: Any, figure: Any, path: Path, who: str) -> None:
    """Writes a figure in the format of the ending of `path`, and closes it.

    Raises:
      ArgumentError: matplotlib cannot write it.
    """
    try:
        figure.savefig(path, dpi=80)
    except (ValueError, OSError) as error:
        raise ArgumentError(f"{who}: cannot write {path} ({error})") from error
    finally:
        pyplot.close(figure)


def short(name: str) -> str:
    """A site name without the parts that all names share, its beginning left out where it is long."""
    name = name.removeprefix("params/").replace("/kernel", "")
    return name if len(name) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + name[1 - LONGEST :]
