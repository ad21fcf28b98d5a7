"""``python -m benchmarks.picture RESULTS.json OUT.svg``: draws the speeds of a benchmark as bars, one panel for each model.

RESULTS.json is what `make bench ARGS="--out FOLDER"` writes as ``FOLDER/benchmark.json``. A bar says how many times as fast as
XLA's float32 a contender runs the model. Panels have scales of their own; the number stands at each bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import FLOAT

COLUMNS = 2
BAR = 0.24  # inches of height for each bar
OURS, THEIRS, REFERENCE = "#2f6fbf", "#b9833a", "#8a8f98"
LABELS = {
    "jaxq8-dynamic": "jaxq8 int8, dynamic", "jaxq8-static": "jaxq8 int8, static",
    "ort-dynamic": "ONNX Runtime int8, dynamic", "ort-static": "ONNX Runtime int8, static",
}  # fmt: skip
FEATURES = {"avx512_vnni": "AVX-512 VNNI", "amx_int8": "AMX", "i8mm": "i8mm"}


class ResultsError(ValueError):
    """A file that holds no results of the benchmark, or not those that were asked for."""


def read(path: Path) -> dict[str, Any]:
    """The results in a file, as `benchmarks.report.as_json` writes them.

    Raises:
        ResultsError: the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(
            {"model", "batch", "contender", "label", "milliseconds"} <= set(row) for row in found["rows"]
        ):
            raise KeyError("a row lacks a field")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path} holds no results of `make bench ARGS='--out FOLDER'` ({error})"
        ) from error
    return dict(found)


def speeds(
    results: dict[str, Any], batch: int, models: Sequence[str] = ()
) -> dict[str, dict[str, tuple[str, float]]]:
    """Model -> contender -> (label, how many times as fast as XLA's float32), in the order of the results.

    Raises:
        ResultsError: the results lack a model, the batch size, or XLA's float32.
    """
    panels: dict[str, dict[str, tuple[str, float]]] = {}
    for row in results["rows"]:
        if row["batch"] == batch and (not models or row["model"] in models):
            panels.setdefault(row["model"], {})[row["contender"]] = (
                LABELS.get(row["contender"], row["label"]),
                min(row["milliseconds"]),
            )
    if missing := [model for model in models if model not in panels] or ([] if panels else ["any model"]):
        raise ResultsError(f"no results of {', '.join(missing)} at batch {batch}")
    for model, rows in panels.items():
        if FLOAT not in rows:
            raise ResultsError(f"no time of XLA's float32 for {model} at batch {batch}")
        reference = rows[FLOAT][1]
        panels[model] = {name: (label, reference / time) for name, (label, time) in rows.items()}
    return {model: panels[model] for model in models or panels}


def draw(results: dict[str, Any], path: Path, batch: int, models: Sequence[str] = ()) -> None:
    """Writes the picture in the format that the ending of `path` names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = speeds(results, batch, models)
    most = max(len(rows) for rows in panels.values())
    lines = -(-len(panels) // COLUMNS)
    settings = {"svg.hashsalt": "jaxq8", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        size = (9, lines * (most * BAR + 0.55) + 0.5)
        figure, axes = pyplot.subplots(lines, COLUMNS, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, (model, rows) in zip(axes.flat, panels.items(), strict=False):
            _panel(axis, model, rows)
        machine = results["machine"]
        found = [text for name, text in FEATURES.items() if name in machine.get("features", "")]
        processor = " with ".join([machine["processor"], *found[:1]])
        figure.suptitle(
            f"Times as fast as XLA's float32, batch {batch}: {processor}, {machine['cores']} cores",
            fontsize=10,
        )
        figure.get_layout_engine().set(h_pad=0.09)
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def _panel(axis: Any, model: str, rows: dict[str, tuple[str, float]]) -> None:
    labels, values = zip(*rows.values(), strict=True)
    colours = [REFERENCE if name == FLOAT else OURS if name.startswith("jaxq8") else THEIRS for name in rows]
    bars = axis.barh(range(len(rows)), values, color=colours, height=0.72)
    axis.bar_label(bars, labels=[f" {value:.1f}x" for value in values], fontsize=8)
    axis.set_yticks(range(len(rows)), labels)
    axis.set_xlim(0, max(values) * 1.12)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(left=False)
    axis.axvline(1, color="#c8ccd2", linewidth=0.8, zorder=0)
    axis.invert_yaxis()
    axis.set_title(model, loc="left", fontsize=10, fontweight="bold")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument(
        "output", type=Path, metavar="OUT.svg", help="the ending chooses the format: .svg, .png, .pdf"
    )
    parser.add_argument("--batch", type=int, default=1, help="batch size (default 1)")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help="names as in the results (default: all)"
    )
    options = parser.parse_args(arguments)
    try:
        draw(read(options.results), options.output, options.batch, options.models)
    except (ResultsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
