"""Rows of text in aligned columns: how a Plan, a Report and a Table are printed."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned text columns; a column without content is left out."""
    shown = [c for c in range(len(header)) if any(row[c] for row in rows)]
    cells = [[str(row[c]) for c in shown] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]
