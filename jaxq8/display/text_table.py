"""Prints rows of text in aligned columns, as a `Plan`, a `Report` and a `Table` are shown."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with aligned columns; a column in which all rows are empty is left out."""
    shown = [column for column in range(len(header)) if any(row[column] for row in rows)]
    cells = [[str(row[column]) for column in shown] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:]]
