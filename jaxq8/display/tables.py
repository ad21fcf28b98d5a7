"""`Table`: results such as those of `experiment`, with one row for each setting, as text, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxq8.display.html.fragments import fragment
from jaxq8.display.table_plot import Row, plot_table
from jaxq8.display.text_table import table as aligned
from jaxq8.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class Table:
    """Tidy results: every row has the same columns.

    Attributes:
      rows: The settings, and for each metric its mean over the examples and the ends ``metric_low`` and ``metric_high`` of its
        95% interval.
      metrics: Names of the metrics.

    Example:
      >>> table = q8.experiment(model.apply, variables, batches, bits=(8, 4))
      >>> [row["bits"] for row in table.rows]
      [8, 4]
      >>> table.where(bits=4).save("lab.csv")
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join(aligned((*self.settings, *self.metrics), self._cells()))

    def _repr_html_(self) -> str:
        """What a notebook shows: the first 40 rows, with each metric and its interval."""
        plural = "" if len(self) == 1 else "s"
        return fragment([f"Table of {len(self)} row{plural}"], (*self.settings, *self.metrics), self._cells())

    def _cells(self) -> list[list[str]]:
        settings, cells = self.settings, []
        for row in self.rows:
            names = [str(row[name]) for name in settings]
            figures = [_with_interval(row, metric) for metric in self.metrics]
            cells.append([*names, *figures])
        return cells

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self.rows[0]) if self.rows else ()

    @property
    def settings(self) -> tuple[str, ...]:
        """The columns that are neither a metric nor an end of its interval."""
        measured: set[str] = set()
        for metric in self.metrics:
            measured |= {metric, f"{metric}_low", f"{metric}_high"}
        return tuple(name for name in self.columns if name not in measured)

    def where(self, **settings: Any) -> Table:
        """The rows with these settings: ``table.where(bits=4, granularity="channel")``."""

        def is_chosen(row: Row) -> bool:
            return all(row[name] == value for name, value in settings.items())

        return dataclasses.replace(self, rows=tuple(filter(is_chosen, self.rows)))

    def to_csv(self) -> str:
        """All rows, comma-separated, with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def to_json(self) -> str:
        """All rows as a list of objects; infinities become null."""
        rows = [{name: _or_null(value) for name, value in row.items()} for row in self.rows]
        return json.dumps(rows, indent=1, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Writes CSV or JSON, depending on the ending of `path`.

        Raises:
          ArgumentError: `path` ends in neither .csv nor .json.
        """
        path = Path(path)
        forms = {".csv": self.to_csv, ".json": self.to_json}
        if path.suffix not in forms:
            raise ArgumentError(f"Table.save: cannot write {path.name}; end it in .csv or .json")
        path.write_text(forms[path.suffix]())

    def plot(
        self,
        path: str | Path,
        *,
        x: str,
        by: str,
        metric: str | None = None,
        title: str = "",
        names: Mapping[Any, str] | None = None,
    ) -> None:
        """Writes a picture of one metric: its means and confidence intervals over `x`, with a colour for each value of `by`.

        Each combination of the other settings that vary has a marker of its own.

        Args:
          path: File to write; its ending chooses the format (.png, .svg, .pdf).
          x: Column along the horizontal axis, of numbers or names.
          by: Column whose values have colours.
          metric: The metric to draw; default the first.
          title: Title above the picture.
          names: Texts to show in place of the names of columns, metrics and values.

        Raises:
          ArgumentError: There is no such column, matplotlib is not installed, or it cannot write that format.
        """
        metric = metric or self.metrics[0]
        unknown = [name for name in (x, by, metric) if name not in self.columns]
        if unknown:
            raise ArgumentError(f"Table.plot: no column {unknown[0]!r}; there are {', '.join(self.columns)}")
        plot_table(self.rows, self.settings, Path(path), x, by, metric, title, names or {})


def _or_null(value: Any) -> Any:
    """A value of a row, or None in the place of an infinity or NaN, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_interval(row: Row, metric: str) -> str:
    """A metric of one row with its interval: ``0.9 (0.85 to 0.95)``."""
    if math.isinf(row[metric]) and row[metric + "_low"] == row[metric + "_high"]:
        return f"{row[metric]}"  # no error in any example
    return f"{row[metric]:.3g} ({row[metric + '_low']:.3g} to {row[metric + '_high']:.3g})"
