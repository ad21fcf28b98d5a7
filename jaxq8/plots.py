"""Pictures of a `Report` and of a `Table`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxq8.errors import ArgumentError

if TYPE_CHECKING:
    from jaxq8.report import Report, SiteErrors
    from jaxq8.tables import Table

SHOWN = 3  # sites whose histograms are drawn


def plot_report(report: Report, path: Path) -> None:
    """The error along the depth, the loss at each site, and histograms of the sites that lose most."""
    pyplot = _pyplot("Report.plot")
    worst = sorted(zip(losses(report), report.sites, strict=True), key=lambda pair: -pair[0])[:SHOWN]
    columns = max(len(worst), 1)
    figure = pyplot.figure(figsize=(14, 12), layout="constrained")
    grid = figure.add_gridspec(4, columns, height_ratios=[1.2, 1, 1, 1])
    _depth(figure.add_subplot(grid[0, :]), report)
    _bars(figure.add_subplot(grid[1, :]), report)
    for column, (_, site) in enumerate(worst):
        _activations(figure.add_subplot(grid[2, column]), site)
        _weights(figure.add_subplot(grid[3, column]), report, site)
    _save(pyplot, figure, path, "Report.plot")


def plot_table(
    table: Table, path: Path, x: str, by: str, metric: str, title: str, names: Mapping[Any, str]
) -> None:
    """The metric and its interval over `x`, a colour for each value of `by`."""
    pyplot = _pyplot("Table.plot")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    places = sorted({row[x] for row in table.rows}, key=[row[x] for row in table.rows].index)
    groups = sorted({row[by] for row in table.rows}, key=[row[by] for row in table.rows].index)
    for number, group in enumerate(groups):
        rows = [row for row in table.rows if row[by] == group]
        shift = (number - (len(groups) - 1) / 2) * 0.6 / len(groups)
        at = [places.index(row[x]) + shift for row in rows]
        middle = np.array([row[metric] for row in rows])
        ends = [middle - [r[f"{metric}_low"] for r in rows], [r[f"{metric}_high"] for r in rows] - middle]
        axes.errorbar(
            at, middle, np.abs(ends), fmt="o", capsize=3, markersize=5, label=str(names.get(group, group))
        )
    axes.set_xticks(range(len(places)), [str(p) for p in places])
    axes.set(xlabel=x, ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    axes.legend(title=by, fontsize=8)
    _save(pyplot, figure, path, "Table.plot")


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
    depth = range(len(report.sites))
    axes.plot(
        depth,
        [min(s.sqnr_db, 100.0) for s in report.sites],
        marker="o",
        markersize=3,
        label="what the site reads",
    )
    axes.axhline(min(report.output.sqnr_db, 100.0), color="tab:red", linestyle="--", label="results")
    jump = report.first_jump
    if jump is not None:
        axes.annotate(f"jump: {jump.name}", (report.sites.index(jump), jump.sqnr_db), xytext=(10, 10),
                      textcoords="offset points", arrowprops={"arrowstyle": "->"})  # fmt: skip
    axes.set(ylabel="SQNR (dB)", title="Error along the depth: higher is better")
    axes.legend()
    axes.grid(alpha=0.3)


def _bars(axes: Any, report: Report) -> None:
    axes.bar(range(len(report.sites)), losses(report))
    axes.set(ylabel="SQNR lost here (dB)", title="Below the worst site before it")
    axes.set_xticks(range(len(report.sites)), [short(s.name) for s in report.sites], rotation=90, fontsize=6)


def _activations(axes: Any, site: SiteErrors) -> None:
    edges = np.linspace(*site.span, len(site.histogram) + 1)
    axes.stairs(np.asarray(site.histogram, float), edges, fill=True, alpha=0.6)
    axes.set_yscale("log")
    _range(axes, site.minimum, site.maximum)
    axes.set_title(f"values read by {short(site.name)}", fontsize=9)


def _weights(axes: Any, report: Report, site: SiteErrors) -> None:
    weight = report.weights.get(site.name)
    if weight is None:
        axes.text(0.5, 0.5, "no weight of its own", ha="center", va="center")
        axes.set_axis_off()
        return
    real = np.asarray(weight.dequantize() if hasattr(weight, "dequantize") else weight, np.float32).ravel()
    axes.hist(real, bins=64, alpha=0.6, color="tab:green")
    axes.set_yscale("log")
    _range(axes, float(real.min()), float(real.max()))
    axes.set_title(f"weight of {short(site.name)}", fontsize=9)


def _range(axes: Any, low: float, high: float) -> None:
    for end in (low, high):
        axes.axvline(end, color="tab:red", linewidth=1)


def short(name: str) -> str:
    """A site name without the parts that all names share."""
    return name.removeprefix("params/").replace("/kernel", "")
