"""`Report`: the errors that `compare` measured, as text, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxq8.calibration.error_measures import OutputErrors, SiteErrors
from jaxq8.calibration.report_plot import plot_report
from jaxq8.display.text_table import table

REPORT_VERSION = 1
JUMP_DB = 6.0  # the error jumps at a site whose SQNR is this far below that of every site before it


@dataclasses.dataclass(frozen=True)
class Report:
    """The errors that `compare` measured; ``print(report)`` shows them as a table.

    Attributes:
      output: `OutputErrors` of all results together.
      sites: `SiteErrors` in the order in which the function runs them.
      weights: Site name -> the float weight that the site reads, for weights that are arguments.

    Example:
      >>> report = q8.compare(model.apply, q8.quantize(model.apply), variables, batches)
      >>> print(report)
      output: SQNR ... dB, cosine 0.99..., max error ...
      >>> report["params/Dense_1/kernel:dot"].sqnr_db > 30
      True
    """

    output: OutputErrors
    sites: tuple[SiteErrors, ...]
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> SiteErrors:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    @property
    def first_jump(self) -> SiteErrors | None:
        """The first site whose SQNR is over 6 dB below that of every site before it; None if the error only grows slowly."""
        least = math.inf
        for index, site in enumerate(self.sites):
            if index and site.sqnr_db < least - JUMP_DB:
                return site
            least = min(least, site.sqnr_db)
        return None

    def __str__(self) -> str:
        header = ("site", "SQNR dB", "cosine", "max error", "mean error", "clipped", "range used")
        rows = [
            (s.name, f"{s.sqnr_db:.1f}", f"{s.cosine:.5f}", f"{s.max_error:.4g}", f"{s.mean_error:.3g}",
             f"{s.clipped:.3%}", f"{s.minimum:.4g} .. {s.maximum:.4g}")
            for s in self.sites
        ]  # fmt: skip
        return "\n".join([*self.summary(), "", *table(header, rows)])

    def summary(self) -> list[str]:
        """Two or three lines: the errors of the results, and the site where the error jumps."""
        o, jump = self.output, self.first_jump
        lines = [f"output: SQNR {o.sqnr_db:.1f} dB, cosine {o.cosine:.5f}, max error {o.max_error:.4g}"]
        if o.top1 is not None and o.top5 is not None:
            lines.append(
                f"same first answer {o.top1:.1%}; float's first answer among the first five {o.top5:.1%}"
            )
        where = f"{jump.name} ({jump.sqnr_db:.1f} dB)" if jump else "nowhere by more than 6 dB"
        return [*lines, f"the error jumps first at: {where}"]

    def to_json(self) -> str:
        """All figures as JSON, with a version number; infinities become null."""
        document = {
            "version": REPORT_VERSION, "output": dataclasses.asdict(self.output),
            "sites": [dataclasses.asdict(s) for s in self.sites],
        }  # fmt: skip
        return json.dumps(_finite(document), indent=1, allow_nan=False)

    def plot(self, path: str | Path) -> None:
        """Writes a picture: the error at each site in order, the sites that add most, and their histograms with ranges.

        Args:
          path: File to write; its ending chooses the format (.png, .svg, .pdf).

        Raises:
          ArgumentError: matplotlib is not installed, or it cannot write that format.
        """
        plot_report(self.output, self.sites, self.first_jump, self.weights, Path(path))


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
