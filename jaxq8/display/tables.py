"""`Table`: what `experiment` found, one row a setting, as text, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxq8.display.table_plot import Row, plot_table
from jaxq8.display.text_table import table as aligned
from jaxq8.errors import ArgumentError

RESAMPLES = 2000


def bootstrap(values: Any, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a sample and its percentile bootstrap interval (Efron 1979), by resampling the examples 2,000 times.

    Args:
      values: One number an example, finite.
      confidence: Share of resampled means inside the interval.
      seed: Of the resampling.

    Returns:
      (mean, low, high).

    Example:
      >>> bootstrap([1.0, 1.0, 1.0])
      (1.0, 1.0, 1.0)
    """
    x = np.asarray(values, np.float64)
    means = x[np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(x.mean()), float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Table:
    """Tidy results: every row has the same columns.

    Attributes:
      rows: Settings, and for each metric its mean over examples, ``metric_low`` and ``metric_high`` (95% bootstrap interval).
      metrics: Names of the metrics.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [
            (
                *(str(row[name]) for name in self.settings),
                *(f"{row[m]:.3g} ({row[m + '_low']:.3g} to {row[m + '_high']:.3g})" for m in self.metrics),
            )
            for row in self.rows
        ]
        return "\n".join(aligned((*self.settings, *self.metrics), cells))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.rows[0]) if self.rows else ()

    @property
    def settings(self) -> tuple[str, ...]:
        """The columns that are no metric and no end of an interval."""
        ends = ("", "_low", "_high")
        return tuple(n for n in self.columns if n not in {m + end for m in self.metrics for end in ends})

    def where(self, **settings: Any) -> Table:
        """The rows with these settings: ``table.where(bits=4, granularity="channel")``."""
        chosen = tuple(
            row for row in self.rows if all(row[name] == value for name, value in settings.items())
        )
        return dataclasses.replace(self, rows=chosen)

    def to_csv(self) -> str:
        """All rows, comma-separated, with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def to_json(self) -> str:
        """All rows as a list of objects."""
        return json.dumps(list(self.rows), indent=1, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Writes CSV or JSON, by the ending of `path`.

        Raises:
          ArgumentError: The ending is another one.
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
        """Writes a picture of one metric: its means and confidence intervals over `x`, a colour for each value of `by`.

        Settings that vary beside these two have markers of their own.

        Args:
          path: File to write; its ending chooses the format (.png, .svg, .pdf).
          x: Column along the axis; numbers, or names.
          by: Column whose values have colours.
          metric: Which; default the first.
          title: Above the picture.
          names: Other texts for columns, the metric and values.

        Raises:
          ArgumentError: There is no such column, matplotlib is not installed, or it cannot write that format.
        """
        unknown = [name for name in (x, by, metric or self.metrics[0]) if name not in self.columns]
        if unknown:
            raise ArgumentError(f"Table.plot: no column {unknown[0]!r}; there are {', '.join(self.columns)}")
        plot_table(self.rows, self.settings, Path(path), x, by, metric or self.metrics[0], title, names or {})
