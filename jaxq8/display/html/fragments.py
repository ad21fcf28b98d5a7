"""Fragments of HTML for notebooks: a heading, and a table that is cut where it is long.

They need no script and no style sheet, and take the colours of the notebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxq8.display.html.markup import Markup, joined, tag

ROWS = 40  # of a table in a notebook
CELL = (
    "text-align:left;vertical-align:top;padding:2px 10px 2px 0;border-bottom:1px solid rgba(128,128,128,.35)"
)
QUIET = "opacity:.75;margin:4px 0"


def fragment(
    lines: Sequence[str], header: Sequence[str] = (), rows: Sequence[Sequence[Any]] = (), more: Any = ""
) -> str:
    """Lines of text, and below them a table.

    Args:
      lines: The first is set in bold.
      header: Names of the columns, which may all be empty; a column in which all rows are empty is left out.
      rows: The cells; of more than 40 rows the first 40 are shown.
      more: What follows the table.

    Returns:
      HTML in which every text is escaped.
    """
    first, *rest = lines or [""]
    head = joined(tag("div", tag("strong", first)), *(tag("div", line, style=QUIET) for line in rest))
    return str(tag("div", head, _table(header, rows), more, style="overflow-x:auto;max-width:100%"))


def spikes(counts: Sequence[int], words: str) -> Markup:
    """A small histogram with a logarithmic height; `words` say what it shows."""
    most = math.log1p(max(counts, default=0)) or 1.0
    heights = [30 * math.log1p(n) / most for n in counts]
    bars = [
        tag("rect", x=i, y=f"{30 - h:.1f}", width=0.9, height=f"{h:.1f}", fill="currentColor", opacity=0.6)
        for i, h in enumerate(heights)
    ]
    drawing = tag(
        "svg", *bars, viewBox=f"0 0 {max(len(counts), 1)} 30", preserveAspectRatio="none", width=320, height=48,
        role="img", aria_label=words, style="display:block;margin-top:6px;max-width:100%",
    )  # fmt: skip
    return joined(drawing, tag("div", words, style=QUIET))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    if not rows:
        return Markup("")
    shown = [i for i in range(len(header)) if any(str(row[i]) for row in rows)]
    heads = [tag("th", header[i], style=CELL) for i in shown]
    body = [tag("tr", *(tag("td", row[i], style=CELL) for i in shown)) for row in rows[:ROWS]]
    left = len(rows) - ROWS
    cut = tag("div", f"... {left:,} more rows", style=QUIET) if left > 0 else ""
    head = tag("thead", tag("tr", *heads)) if any(header) else ""
    table = tag("table", head, tag("tbody", *body), style="border-collapse:collapse;font-size:90%")
    return joined(table, cut)
