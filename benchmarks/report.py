"""The results as Markdown, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import native_tables
from benchmarks.measure import Row
from benchmarks.native_tables import grouped, table

FLOAT = "xla"


def speedup(row: Row, rows: Sequence[Row]) -> float:
    """How many times faster than XLA's float32 (minima)."""
    return next(r.minimum for r in rows if r.contender == FLOAT) / row.minimum


def against_best_peer(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times faster than the fastest other project; None for the peers themselves, or without any."""
    peers = [r.minimum for r in rows if r.side == "peer"]
    return min(peers) / row.minimum if peers and row.side == "self" else None


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


COLUMNS: dict[str, Callable[[Row, Sequence[Row]], str]] = {
    "contender": lambda row, _: row.label,
    "min ms": lambda row, _: f"{row.minimum:.2f}",
    "median ms": lambda row, _: f"{row.median:.2f}",
    "vs XLA float32": lambda row, rows: _times(speedup(row, rows)),
    "vs best peer": lambda row, rows: _times(against_best_peer(row, rows)),
    "relative error": lambda row, _: f"{row.relative_error:.2g}",
    "SQNR dB": lambda row, _: "" if row.relative_error < 1e-5 else f"{row.sqnr_db:.1f}",
    "weights MB": lambda row, _: _megabytes(row.weight_bytes),
    "peak MB": lambda row, _: _megabytes(row.peak_bytes),
    "XLA temp MB": lambda row, _: _megabytes(row.temporary_bytes),
    "compile s": lambda row, _: f"{row.compile_seconds:.1f}",
    "native regions": lambda row, _: "" if row.regions is None else str(row.regions),
}


def model_table(rows: Sequence[Row]) -> str:
    """All columns for one model; columns in which nothing was measured are left out."""
    cells = {name: [column(row, rows) for row in rows] for name, column in COLUMNS.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    return table(list(cells), list(zip(*cells.values(), strict=True)))


def summary_table(rows: Sequence[Row]) -> str:
    """Minimum times in ms, a line for each model and a column for each contender."""
    labels = {row.contender: row.label for row in rows}
    lines = []
    for (model, batch), group in grouped(rows).items():
        times = {row.contender: f"{row.minimum:.2f}" for row in group}
        lines.append([f"{model}, batch {batch}", *(times.get(name, "") for name in labels)])
    return table(["min ms", *labels.values()], lines)


def markdown(rows: Sequence[Row], machine: dict[str, str], notes: Sequence[str], command: str) -> str:
    """The whole report."""
    parts = ["# Benchmark", f"`{command}`", "\n".join(f"- {k}: {v}" for k, v in machine.items() if v)]
    parts += ["## All models", summary_table(rows), *native_tables.sections(rows)]
    for (model, batch), group in grouped(rows).items():
        parts += [f"## {model}, batch {batch}", model_table(group)]
    if notes:
        parts += ["## Left out", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def as_json(rows: Sequence[Row], machine: dict[str, str], notes: Sequence[str], command: str) -> str:
    """The same, with every timed run."""
    entries: list[dict[str, Any]] = []
    for row in rows:
        entry = dataclasses.asdict(row) | {"minimum_ms": row.minimum, "median_ms": row.median}
        entries.append(entry | {"milliseconds": [round(t, 4) for t in row.milliseconds]})
    return json.dumps(
        {"command": command, "machine": machine, "left_out": list(notes), "rows": entries}, indent=1
    )


def plot(rows: Sequence[Row], machine: dict[str, str], path: Path) -> None:
    """Speed relative to XLA's float32, logarithmic, bars grouped by model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(rows)
    labels = {row.contender: row.label for row in rows if row.contender != FLOAT}
    figure, axes = pyplot.subplots(figsize=(max(6, 2 * len(groups)), 4.5), layout="constrained")
    width = 0.8 / max(1, len(labels))
    for index, (name, label) in enumerate(labels.items()):
        points = [
            (place + index * width, speedup(row, group))
            for place, group in enumerate(groups.values())
            for row in group
            if row.contender == name
        ]
        axes.bar([x for x, _ in points], [y for _, y in points], width, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("times faster than XLA float32")
    middle = 0.4 - width / 2
    axes.set_xticks([place + middle for place in range(len(groups))])
    axes.set_xticklabels([f"{model}\nbatch {batch}" for model, batch in groups])
    axes.set_title(f"{machine['processor']}, {machine['cores']} cores", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
