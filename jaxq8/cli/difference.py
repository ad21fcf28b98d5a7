"""``jaxq8 diff``: lists what differs between two files of weights, without running anything."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from jaxq8.cli.files import Contents, Tensor, contents, real
from jaxq8.cli.problems import MISUSED
from jaxq8.cli.text import print_json
from jaxq8.display.numbers import decibels
from jaxq8.display.text_table import table

DIFFERENT = 1


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "diff", help="list what differs between two files of weights",
        description="Compares the numbers that two files stand for, tensor by tensor, and their settings. Exit status as of "
        "diff: 0 equal, 1 different, 2 trouble.",
        epilog="examples:\n"
        "  jaxq8 diff monday.q8 tuesday.q8\n"
        "  jaxq8 diff net.safetensors net.q8  # error of each tensor; norms are folded unless quantized with --keep-norms\n",
    )  # fmt: skip
    for name in ("A", "B"):
        command.add_argument(
            name.lower(), metavar=name, help=".q8, .q8x, .safetensors, .npz, .msgpack, or an orbax folder"
        )
    command.add_argument("--all", action="store_true", help="list equal tensors too")
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    command.set_defaults(trouble=MISUSED)
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    first, second = contents(options.a), contents(options.b)
    rows = _rows(first, second)
    changed = [row for row in rows if row["what"] != "equal"]
    other = _settings(first, second)
    shown = rows if options.all else changed
    if options.json:
        print_json({"equal": not changed and not other, "settings": other, "tensors": shown})
    else:
        _show(shown, other, len(rows), len(changed))
    return DIFFERENT if changed or other else 0


def _rows(first: Contents, second: Contents) -> list[dict[str, Any]]:
    """What `_row` says of each tensor, in the order of the first file."""
    a, b = _named(first, second), _named(second, first)
    names = [*a, *(name for name in b if name not in a)]
    return [_row(name, a.get(name), b.get(name)) for name in names]


def _named(found: Contents, other: Contents) -> dict[str, Tensor]:
    """The tensors of a file by name.

    An outer ``params`` that only this file has is left out, since Flax users save variables with and without it.
    """
    outer = "params/" if _rooted(found) and not _rooted(other) else ""
    return {tensor.name.removeprefix(outer): tensor for tensor in found.tensors}


def _rooted(found: Contents) -> bool:
    return all(tensor.name.startswith("params/") for tensor in found.tensors)


def _row(name: str, a: Tensor | None, b: Tensor | None) -> dict[str, Any]:
    """How a tensor is stored in both files, and what differs."""
    row: dict[str, Any] = {"name": name, "a": _form(a), "b": _form(b)}
    if a is None or b is None:
        return {**row, "what": "only in B" if a is None else "only in A"}
    if a.shape != b.shape:
        return {**row, "what": f"shape {list(a.shape)} in A, {list(b.shape)} in B"}
    x, y = (real(t).astype(np.float64) for t in (a, b))
    unequal = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    count = int(np.sum(unequal))
    if not count:
        return {**row, "what": "equal" if row["a"] == row["b"] else "stored otherwise"}
    noise, signal = float(np.sum((x - y) ** 2)), float(np.sum(x * x))
    sqnr = 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else float("-inf")
    return {**row, "what": "values", "unequal": count, "of": x.size, "sqnr_db": float(sqnr),
            "max_error": float(np.max(np.abs(x - y)))}  # fmt: skip


def _form(tensor: Tensor | None) -> str:
    return "" if tensor is None else tensor.spec or tensor.dtype


def _settings(first: Contents, second: Contents) -> list[str]:
    """Differences of configuration and ranges, where both files have room for them."""
    if "float" in (first.kind, second.kind):
        return []
    found = []
    if first.config != second.config:
        found.append("config")
    a, b = dict(first.ranges or {}), dict(second.ranges or {})
    found += [f"range of {name}" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return found


def _show(rows: list[dict[str, Any]], settings: list[str], count: int, changed: int) -> None:
    for what in settings:
        print(f"{what} differs")
    lines = [(row["name"], row["a"], row["b"], _difference(row)) for row in rows]
    if lines:
        print("\n".join(table(("tensor", "in A", "in B", "difference"), lines)))
    print(f"{changed} of {count} tensors differ")


def _difference(row: dict[str, Any]) -> str:
    """What differs, as a cell of the table."""
    if row["what"] != "values":
        return str(row["what"])
    largest = f"largest {row['max_error']:.3g}"
    return f"{row['unequal']} of {row['of']} values, SQNR {decibels(row['sqnr_db'])}, {largest}"
