"""``python -m benchmarks.native_tables RESULTS.json [DOCUMENT.md]``: native regions beside ONNX Runtime; what compiling costs.

RESULTS.json is what `make bench ARGS="--out FOLDER"` writes as ``FOLDER/benchmark.json``. With a document, such as
docs/PERFORMANCE.md, its part between the two comments that name this command is replaced by the tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from benchmarks.regions import Regions

BEGIN = "<!-- python -m benchmarks.native_tables: begin -->"
END = "<!-- python -m benchmarks.native_tables: end -->"
FLOAT, STATIC, NATIVE = "xla", "jaxq8-static", "jaxq8-native"
ONNX_RUNTIME = ("ort", "ort-dynamic", "ort-dynamic-fused", "ort-static")
MEASURES = ("minimum", "median")


class TablesError(ValueError):
    """Results without native regions, or a document without a place for the tables."""


def grouped(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The rows of each (model, batch), in order."""
    return {
        key: list(group) for key, group in itertools.groupby(rows, key=lambda row: (row.model, row.batch))
    }


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def named(rows: Sequence[Row], name: str) -> Row | None:
    """The row of a contender."""
    return next((row for row in rows if row.contender == name), None)


def best_onnx_runtime(rows: Sequence[Row], measure: str = "minimum") -> Row | None:
    """ONNX Runtime's form that is fastest by a measure; None if none ran."""
    forms = [row for row in rows if row.contender in ONNX_RUNTIME]
    return min(forms, key=lambda row: getattr(row, measure)) if forms else None


def ratio(rows: Sequence[Row], name: str, measure: str) -> float | None:
    """How many times as fast as the best form of ONNX Runtime a contender is; each measure has a best form of its own."""
    ours, theirs = named(rows, name), best_onnx_runtime(rows, measure)
    return None if ours is None or theirs is None else getattr(theirs, measure) / getattr(ours, measure)


def speed_table(rows: Sequence[Row]) -> str:
    """A line for each model and batch: times, ratios by minimum and by median, regions."""
    header = ["model", "batch", "best ONNX Runtime form", "its ms, min / median", "jaxq8 native ms, min / median",
              "native / best, min", "native / best, median", "static / best, min", "static / best, median",
              "native regions"]  # fmt: skip
    lines = []
    for (model, batch), group in grouped(rows).items():
        best, native = best_onnx_runtime(group), named(group, NATIVE)
        ratios = [_times(ratio(group, name, measure)) for name in (NATIVE, STATIC) for measure in MEASURES]
        regions = "" if native is None or native.regions is None else str(native.regions)
        label = "" if best is None else best.label.removeprefix("ONNX Runtime ")
        lines.append([model, str(batch), label, _both(best), _both(native), *ratios, regions])
    return table(header, lines)


def compile_table(rows: Sequence[Row]) -> str:
    """A line for each model and batch: seconds of lowering and compiling, and their ratio to float's."""
    header = [
        "model",
        "batch",
        "XLA float32, s",
        "jaxq8 static, s",
        "jaxq8 native, s",
        "static / float",
        "native / float",
    ]
    lines = []
    for (model, batch), group in grouped(rows).items():
        seconds = [_lower_seconds(named(group, name)) for name in (FLOAT, STATIC, NATIVE)]
        ratios = [_times(s / seconds[0]) if s and seconds[0] else "" for s in seconds[1:]]
        lines.append([model, str(batch), *("" if s is None else f"{s:.2f}" for s in seconds), *ratios])
    return table(header, lines)


def sections(rows: Sequence[Row]) -> list[str]:
    """Both tables with their titles; nothing where no native region was measured."""
    if named(rows, NATIVE) is None:
        return []
    return [
        "## Native regions beside ONNX Runtime",
        "A ratio above 1 says that jaxq8 is faster than the fastest of ONNX Runtime's forms.",
        speed_table(rows), "## Lowering and compiling", "Each once, without tracing.", compile_table(rows),
    ]  # fmt: skip


def _lower_seconds(row: Row | None) -> float | None:
    return None if row is None else row.lower_seconds


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _both(row: Row | None) -> str:
    return "" if row is None else f"{row.minimum:.2f} / {row.median:.2f}"


def read(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """(rows, all results) of a file that the benchmark wrote.

    Raises:
        TablesError: the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for entry in found["rows"]:
            fields = {k: v for k, v in entry.items() if k not in ("minimum_ms", "median_ms")}
            regions = Regions(**fields["regions"]) if fields.get("regions") else None
            rows.append(Row(**{**fields, "regions": regions}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TablesError(f"{path} holds no results of `make bench ARGS='--out FOLDER'` ({error})") from error
    return rows, found


def text(rows: Sequence[Row], results: dict[str, Any]) -> str:
    """What stands in a document: the machine, the command, and the tables.

    Raises:
        TablesError: no native region was measured.
    """
    parts = sections(rows)
    if not parts:
        raise TablesError(
            "the results have no row of jaxq8 native: " + "; ".join(results.get("left_out", []))
        )
    machine = results["machine"]
    facts = (f"{machine[key]}" for key in ("processor", "packages") if machine.get(key))
    where = f"`{results['command']}`: {'; '.join(facts)}; {machine['cores']} cores, threads: {machine['threads']}; " \
            f"native regions: {machine['native regions']}."  # fmt: skip
    return "\n\n".join([where, *(part for part in parts if not part.startswith("## "))])


def put(document: str, tables: str) -> str:
    """A document with the tables between its two comments.

    Raises:
        TablesError: it does not have them.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TablesError(f"the document has no place for the tables; write {BEGIN} and {END} there")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native_tables", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument(
        "document", type=Path, nargs="?", metavar="DOCUMENT.md", help="default: print the tables"
    )
    options = parser.parse_args(arguments)
    try:
        tables = text(*read(options.results))
        if options.document is None:
            print(tables)
        else:
            whole = put(options.document.read_text(encoding="utf-8"), tables)
            options.document.write_text(whole, encoding="utf-8")
    except (TablesError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
