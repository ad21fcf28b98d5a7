"""`Report`: the errors that `compare` measured, as text, JSON, a picture and a page."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxq8.calibration.error_measures import OutputErrors, SiteErrors
from jaxq8.calibration.report_page import report_page
from jaxq8.calibration.report_plot import plot_report
from jaxq8.display.html.fragments import fragment
from jaxq8.display.html.page import write_page
from jaxq8.display.intervals import decibel_text
from jaxq8.display.text_table import table
from jaxq8.plan import Plan

REPORT_VERSION = 1
COLUMNS = ("site", "SQNR dB", "cosine", "max error", "mean error", "clipped", "range used")
JUMP_DB = 6.0  # the error jumps at a site whose SQNR is this far below that of every site before it


@dataclasses.dataclass(frozen=True)
class Report:
    """The errors that `compare` measured; ``print(report)`` shows them as a table, and so does a notebook.

    Attributes:
      output: `OutputErrors` of all results together.
      sites: `SiteErrors` in the order in which the function runs them.
      weights: Site name -> the float weight that the site reads, for weights that are arguments.
      plan: The `Plan` of the quantized function for the last shape of a batch; None if sites were not compared.
      answers: For each example the index of the largest logit, of the float function and of the other, where the result
        looks like logits; else empty.

    Example:
      >>> report = q8.compare(model.apply, q8.quantize(model.apply), variables, batches)
      >>> print(report)
      output: SQNR ... dB (95%: ...), cosine 0.99..., max error ...
      >>> report["params/Dense_1/kernel:dot"].sqnr_db > 30
      True
    """

    output: OutputErrors
    sites: tuple[SiteErrors, ...]
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    plan: Plan | None = dataclasses.field(default=None, repr=False)
    answers: tuple[tuple[int, int], ...] = dataclasses.field(default=(), repr=False)

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
        return "\n".join([*self.summary(), "", *table(COLUMNS, self._rows())])

    def _repr_html_(self) -> str:
        """What a notebook shows: the lines of the summary, and the first 40 sites of the table."""
        return fragment(self.summary(), COLUMNS, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (s.name, f"{s.sqnr_db:.1f}", f"{s.cosine:.5f}", f"{s.max_error:.4g}", f"{s.mean_error:.3g}",
             f"{s.clipped:.3%}", f"{s.minimum:.4g} .. {s.maximum:.4g}")
            for s in self.sites
        ]  # fmt: skip

    def summary(self) -> list[str]:
        """Two or three lines: the errors of the results with their 95% intervals, and the site where the error jumps."""
        o, jump = self.output, self.first_jump
        decibels = f"SQNR {o.sqnr_db:.1f} dB {decibel_text(o.sqnr_db_interval)}".rstrip()
        lines = [f"output: {decibels}, cosine {o.cosine:.5f}, max error {o.max_error:.4g}"]
        if o.same_answer is not None:
            lines.append(
                f"same first answer {o.same_answer}; float's first answer among the first five {o.among_five}"
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

    def html(
        self, path: str | os.PathLike[str], *, title: str = "Float beside eight bits", images: Sequence[Any] | None = None,
        labels: Sequence[str | Mapping[str, str]] | None = None, classes: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Writes a page for a browser: the error of the results, and each site with its error and its share of the work.

        The page is one file and needs no network. Its list of sites can be sorted and filtered; a click on a site shows its
        figures, and histograms of what it reads, with the range of the codes drawn in, and of its weight.

        Args:
          path: The file to write, such as "report.html"; an existing file is replaced in one step.
          title: What stands above everything: the model's name.
          images: Photos to show: paths, PIL images, or uint8 arrays (height, width, 3); at most 100 are shown. Needs Pillow.
            If they are the examples that were compared, all and in their order, the answers of both functions stand beside.
          labels: What else is said of each image: a text, or a mapping from who says it to what is said.
          classes: Names of the classes, by which answers are shown; without them a class is shown by its number.

        Raises:
          ArgumentError: The file cannot be written, Pillow is not installed, an image cannot be read, there are not as many
            labels as images, or `classes` cannot name the answers.

        Example:
          >>> report = q8.compare(model.apply, q8.quantize(model.apply), variables, batches)
          >>> report.html("report.html", title="My net")
        """
        write_page("Report.html", path, report_page(self, title, images, labels, classes))


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
