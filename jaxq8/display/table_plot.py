"""The picture of a `Table`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxq8.display.figures import pyplot_for, write_figure

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
    """The metric and its interval over `x`: a colour for each value of `by`, a marker for each combination of the rest."""
    pyplot = pyplot_for("Table.plot")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    rest = [name for name in settings if name not in (x, by) and len(_values(rows, name)) > 1]
    places, colours = _values(rows, x), _values(rows, by)
    kinds = list(dict.fromkeys(tuple(row[name] for name in rest) for row in rows))
    # Values of one metric at the same place stand side by side, in the order of colours.
    for colour, kind in itertools.product(range(len(colours)), range(len(kinds))):
        shown = [r for r in rows if r[by] == colours[colour] and tuple(r[n] for n in rest) == kinds[kind]]
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
    write_figure(pyplot, figure, path, "Table.plot")


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    """The different values of a column, in their order."""
    return list(dict.fromkeys(row[name] for row in rows))
