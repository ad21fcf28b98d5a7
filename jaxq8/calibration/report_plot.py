"""The picture of a `Report`, which shows at which depth of a net the error arises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxq8.calibration.error_measures import OutputErrors, SiteErrors
from jaxq8.display.figures import new_figure, short, write_figure

SHOWN = 3  # sites whose histograms are drawn


def plot_report(
    output: OutputErrors,
    sites: Sequence[SiteErrors],
    jump: SiteErrors | None,
    weights: Mapping[str, Any],
    path: Path,
) -> None:
    """Draws the error along the depth, the loss at each site, and histograms of the sites that lose most."""
    worst = sorted(zip(losses(sites), sites, strict=True), key=lambda pair: -pair[0])[:SHOWN]
    columns = max(len(worst), 1)
    figure = new_figure("Report.plot", 14, 13)
    grid = figure.add_gridspec(4, columns, height_ratios=[1.2, 1, 1, 1])
    depth = figure.add_subplot(grid[0, :])
    _depth(depth, output, sites, jump)
    _bars(figure.add_subplot(grid[1, :], sharex=depth), sites)
    for column, (_, site) in enumerate(worst):
        _activations(figure.add_subplot(grid[2, column]), site)
        _weights(figure.add_subplot(grid[3, column]), weights.get(site.name), site)
    write_figure(figure, path, "Report.plot")


def losses(sites: Sequence[SiteErrors]) -> list[float]:
    """How many dB each site is below the worst site before it (the first site: below the best of all); never negative."""
    values = [min(s.sqnr_db, 100.0) for s in sites]
    least = np.minimum.accumulate([max(values, default=0.0), *values])
    return [float(max(before - v, 0.0)) for before, v in zip(least, values, strict=False)]


def _depth(axes: Any, output: OutputErrors, sites: Sequence[SiteErrors], jump: SiteErrors | None) -> None:
    errors = [min(s.sqnr_db, 100.0) for s in sites]
    axes.plot(range(len(errors)), errors, marker="o", markersize=3, label="what the site reads")
    axes.axhline(min(output.sqnr_db, 100.0), color="tab:red", linestyle="--", label="results")
    if jump is not None:
        axes.annotate(f"jump: {short(jump.name)}", (sites.index(jump), jump.sqnr_db), xytext=(10, 10),
                      textcoords="offset points", arrowprops={"arrowstyle": "->"})  # fmt: skip
    axes.set(
        ylabel="SQNR (dB)",
        title="Error along the depth, sites in the order in which they run: higher is better",
    )
    axes.tick_params(labelbottom=False)  # the bars below have the same places, and names
    axes.legend()
    axes.grid(alpha=0.3)


def _bars(axes: Any, sites: Sequence[SiteErrors]) -> None:
    axes.bar(range(len(sites)), losses(sites))
    axes.set(ylabel="SQNR lost here (dB)", title="How far each site is below the worst before it")
    axes.set_xticks(range(len(sites)), [short(s.name) for s in sites], rotation=90, fontsize=6)


def _activations(axes: Any, site: SiteErrors) -> None:
    edges = np.linspace(*site.span, len(site.histogram) + 1)
    axes.stairs(np.asarray(site.histogram, float), edges, fill=True, alpha=0.6)
    _histogram(axes, site.minimum, site.maximum, f"values read by {short(site.name)}")


def _weights(axes: Any, weight: Any, site: SiteErrors) -> None:
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
