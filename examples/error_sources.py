"""Where the error of eight bits comes from: weights, activations, or joins and residual sums.

    python examples/error_sources.py
    python examples/error_sources.py --models SqueezeNet --photos 20 --save sources.png

Each source is measured alone, while all else is exact, on labelled photos one at a time (dynamic ranges), with weights as they
are rounded and with weights corrected by the statistics of their batch norms. The first run installs models and photos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, photos
from examples.calibrated import NETS, prepared
from examples.models.checks import ModelFileError

COLOURS = {"weights": "tab:blue", "activations": "tab:orange", "joins and sums": "tab:green"}
CORRECTIONS: dict[str, Literal["statistics"] | None] = {"as rounded": None, "corrected": "statistics"}


def tables(net: ModuleType, count: int) -> dict[str, q8.Table]:
    """The sources of error of one net on the first photos, by the correction of its weights."""
    model, variables = net.load()
    images = prepared(net, photos.labelled()[:count])
    batches = [images[i : i + 1] for i in range(len(images))]
    found = {}
    for title, correct in CORRECTIONS.items():
        encoded = q8.quantize_weights(model.apply, variables, batches[0], correct=correct)
        found[title] = q8.error_sources(model.apply, variables, batches, fast_variables=encoded)
    return found


def print_tables(title: str, found: dict[str, q8.Table], count: int) -> None:
    """Print one column for each correction: SQNR with its 95% interval, and the share of the noise."""
    print(f"\n{title}, {count} photos: SQNR in dB, and share of the noise")
    print(f"{'source':<16}" + "".join(f"{name:>32}" for name in found))
    for rows in zip(*(table.rows for table in found.values()), strict=True):
        print(f"{rows[0]['source']:<16}" + "".join(f"{_cell(row):>32}" for row in rows))


def _cell(row: dict[str, Any]) -> str:
    interval = f"({row['sqnr_db_low']:.1f} to {row['sqnr_db_high']:.1f})"
    return f"{row['sqnr_db']:.1f} {interval} {100 * row['share']:.0f}%"


def draw(path: Path, nets: dict[str, dict[str, q8.Table]]) -> None:
    """Write a picture: the noise of each source on top of the others, and beside it the noise of the whole in integers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(nets), figsize=(4.6 * len(nets), 4), layout="constrained", squeeze=False
    )
    for axis, (title, found) in zip(axes[0], nets.items(), strict=True):
        for place, table in enumerate(found.values()):
            below = 0.0
            for row in table.rows:
                noise, low, high = (
                    100 * 10 ** (-row[key] / 10) for key in ("sqnr_db", "sqnr_db_high", "sqnr_db_low")
                )
                if row["source"] == "all":
                    reach = [[max(noise - low, 0)], [max(high - noise, 0)]]
                    axis.bar(place + 0.2, noise, 0.36, color="lightgray", edgecolor="gray",
                             label=None if place else "all, as it runs (95%)")  # fmt: skip
                    axis.errorbar([place + 0.2], [noise], reach, color="black", capsize=4)
                    continue
                axis.bar(place - 0.2, noise, 0.36, bottom=below, color=COLOURS[row["source"]],
                         label=None if place else f"{row['source']} alone")  # fmt: skip
                below += noise
        axis.set_xticks(range(len(found)), [f"weights {name}" for name in found])
        axis.set(title=title, ylabel="noise power, % of the signal's")
        axis.grid(alpha=0.3, axis="y")
        axis.set_axisbelow(True)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    print(f"\nThe picture is in {path}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Where the error of eight bits comes from.")
    parser.add_argument("--models", nargs="+", choices=[*NETS], default=[*NETS])
    parser.add_argument("--photos", type=int, default=8, choices=range(2, 21), metavar="N", help="2 to 20")
    parser.add_argument(
        "--save", type=Path, metavar="OUT.png", help="also write a picture (needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    try:
        assets.ensure("demo")
        nets = {}
        for title in options.models:
            nets[title] = tables(NETS[title], options.photos)
            print_tables(title, nets[title], options.photos)
    except (assets.AssetsError, ModelFileError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.save:
        draw(options.save, nets)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
