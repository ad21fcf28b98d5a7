"""The picture of a `Table`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxq8.display.figures import new_figure, write_figure

MARKERS = "os^Dv"
Row = dict[str, Any]


def plot_table(
    rows: Sequence[Row],
    settings: Sequence[str],
    path: Path,
    x: str,
    by: str,
    metric: str,
    title: str,
    names: Mapping[Any, str],
) -> None:
    """Draws a metric and its interval over `x`.

    Each value of `by` has a colour, and each combination of the other settings that vary has a marker.
    """
    figure = new_figure("Table.plot", 7, 4)
    axes = figure.subplots()
    rest = [name for name in settings if name not in (x, by) and len(_values(rows, name)) > 1]
    places, colours = _values(rows, x), _values(rows, by)

    def kind_of(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in rest)

    kinds = list(dict.fromkeys(map(kind_of, rows)))
    for colour, kind in itertools.product(range(len(colours)), range(len(kinds))):
        shown = [row for row in rows if row[by] == colours[colour] and kind_of(row) == kinds[kind]]
        # Points of different colours at the same place stand side by side.
        shift = (colour - (len(colours) - 1) / 2) * 0.6 / len(colours)
        middle = np.array([row[metric] for row in shown])
        ends = [middle - [r[f"{metric}_low"] for r in shown], [r[f"{metric}_high"] for r in shown] - middle]
        parts = [names.get(colours[colour], str(colours[colour]))]
        parts += [f"{names.get(n, n)} {names.get(v, v)}" for n, v in zip(rest, kinds[kind], strict=True)]
        axes.errorbar(
            [places.index(row[x]) + shift for row in shown], middle, np.abs(ends), fmt=MARKERS[kind % len(MARKERS)],
            color=f"C{colour % 10}", capsize=3, markersize=5, label=", ".join(parts),
        )  # fmt: skip
    axes.set_xticks(range(len(places)), [names.get(p, str(p)) for p in places])
    axes.set(xlabel=names.get(x, x), ylabel=names.get(metric, metric), title=title)
    axes.grid(alpha=0.3)
    axes.legend(title=names.get(by, by), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    write_figure(figure, path, "Table.plot")


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """The distinct values of a column, in the order of their first rows."""
    return list(dict.fromkeys(row[name] for row in rows))
