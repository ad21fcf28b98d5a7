"""Pictures of a `Report` and of a `Table`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxq8.errors import ArgumentError

if TYPE_CHECKING:
    from jaxq8.report import Report, SiteErrors
    from jaxq8.tables import Table

SHOWN = 3  # sites whose histograms are drawn
MARKERS = "os^Dv"
LONGEST = 30  # characters of a site name


def plot_report(report: Report, path: Path) -> None:
    """The error along the depth, the loss at each site, and histograms of the sites that lose most."""
    pyplot = _pyplot("Report.plot")
    worst = sorted(zip(losses(report), report.sites, strict=True), key=lambda pair: -pair[0])[:SHOWN]
    columns = max(len(worst), 1)
    figure = pyplot.figure(figsize=(14, 13), layout="constrained")
    grid = figure.add_gridspec(4, columns, height_ratios=[1.2, 1, 1, 1])
    depth = figure.add_subplot(grid[0, :])
    _depth(depth, report)
    _bars(figure.add_subplot(grid[1, :], sharex=depth), report)
    for column, (_, site) in enumerate(worst):
        _activations(figure.add_subplot(grid[2, column]), site)
        _weights(figure.add_subplot(grid[3, column]), report, site)
    _save(pyplot, figure, path, "Report.plot")


def plot_table(
    table: Table, path: Path, x: str, by: str, metric: str, title: str, names: Mapping[Any, str]
) -> None:
    """The metric and its interval over `x`: a colour for each value of `by`, a marker for each combination of the rest."""
    pyplot = _pyplot("Table.plot")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    rest = [name for name in table.settings if name not in (x, by) and len(_values(table, name)) > 1]
    places, colours = _values(table, x), _values(table, by)
    kinds = list(dict.fromkeys(tuple(row[name] for name in rest) for row in table.rows))
    # Values of one metric at the same place stand side by side, in the order of colours.
    for colour, kind in itertools.product(range(len(colours)), range(len(kinds))):
        rows = [
            r for r in table.rows if r[by] == colours[colour] and tuple(r[n] for n in rest) == kinds[kind]
        ]
        shift = (colour - (len(colours) - 1) / 2) * 0.6 / len(colours)
        middle = np.array([row[metric] for row in rows])
        ends = [middle - [r[f"{metric}_low"] for r in rows], [r[f"{metric}_high"] for r in rows] - middle]
        parts = [names.get(colours[colour], str(colours[colour]))]
        parts += [f"{names.get(n, n)} {names.get(v, v)}" for n, v in zip(rest, kinds[kind], strict=True)]
        axes.errorbar(
            [places.index(row[x]) + shift for row in rows], middle, np.abs(ends), fmt=MARKERS[kind % len(MARKERS)],
            color=f"C{colour % 10}", capsize=3, markersize=5, label=", ".join(parts),
        )  # fmt: skip
    axes.set_xticks(range(len(places)), [names.get(p, str(p)) for p in places])
    axes.set(xlabel=names.get(x, x), ylabel=names.get(metric, metric), title=title)
    axes.grid(alpha=0.3)
    axes.legend(title=names.get(by, by), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _save(pyplot, figure, path, "Table.plot")


def _values(table: Table, name: str) -> list[Any]:
    """The different values of a column, in their order."""
    return list(dict.fromkeys(row[name] for row in table.rows))


def _pyplot(who: str) -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ArgumentError(f"{who} needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, path: Path, who: str) -> None:
    try:
        figure.savefig(path, dpi=80)
    except (ValueError, OSError) as error:
        raise ArgumentError(f"{who}: cannot write {path} ({error})") from error
    finally:
        pyplot.close(figure)


def losses(report: Report) -> list[float]:
    """How many dB each site is below the worst before it (the first: below the best of all); never negative."""
    values = [min(s.sqnr_db, 100.0) for s in report.sites]
    least = np.minimum.accumulate([max(values, default=0.0), *values])
    return [float(max(before - v, 0.0)) for before, v in zip(least, values, strict=False)]


def _depth(axes: Any, report: Report) -> None:
    errors = [min(s.sqnr_db, 100.0) for s in report.sites]
    axes.plot(range(len(errors)), errors, marker="o", markersize=3, label="what the site reads")
    axes.axhline(min(report.output.sqnr_db, 100.0), color="tab:red", linestyle="--", label="results")
    jump = report.first_jump
    if jump is not None:
        axes.annotate(f"jump: {short(jump.name)}", (report.sites.index(jump), jump.sqnr_db), xytext=(10, 10),
                      textcoords="offset points", arrowprops={"arrowstyle": "->"})  # fmt: skip
    axes.set(
        ylabel="SQNR (dB)",
        title="Error along the depth, sites in the order in which they run: higher is better",
    )
    axes.tick_params(labelbottom=False)  # the bars below have the same places, and names
    axes.legend()
    axes.grid(alpha=0.3)


def _bars(axes: Any, report: Report) -> None:
    axes.bar(range(len(report.sites)), losses(report))
    axes.set(ylabel="SQNR lost here (dB)", title="How far each site is below the worst before it")
    axes.set_xticks(range(len(report.sites)), [short(s.name) for s in report.sites], rotation=90, fontsize=6)


def _activations(axes: Any, site: SiteErrors) -> None:
    edges = np.linspace(*site.span, len(site.histogram) + 1)
    axes.stairs(np.asarray(site.histogram, float), edges, fill=True, alpha=0.6)
    _histogram(axes, site.minimum, site.maximum, f"values read by {short(site.name)}")


def _weights(axes: Any, report: Report, site: SiteErrors) -> None:
    weight = report.weights.get(site.name)
    if weight is None:
        axes.text(0.5, 0.5, "no weight of its own", ha="center", va="center")
        axes.set_axis_off()
        return
    real = np.asarray(weight.dequantize() if hasattr(weight, "dequantize") else weight, np.float32).ravel()
    axes.hist(real, bins=64, alpha=0.6, color="tab:green")
    _histogram(axes, float(real.min()), float(real.max()), f"weight of {short(site.name)}")


def _histogram(axes: Any, low: float, high: float, title: str) -> None:
    axes.set_yscale("log")
    axes.axvline(low, color="tab:red", linewidth=1, label="range of the codes")
    axes.axvline(high, color="tab:red", linewidth=1)
    axes.set_ylabel("elements", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, loc="upper right")


def short(name: str) -> str:
    """A site name without the parts that all names share, its beginning left out where it is long."""
    name = name.removeprefix("params/").replace("/kernel", "")
    return name if len(name) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + name[1 - LONGEST :]
