"""What the page of a `Report` shows: the figures of its plan and of the results, the sites with their errors, and photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxq8.calibration.error_measures import SiteErrors
from jaxq8.display.html.content import Facts, Figure, Histogram, Measured, Page
from jaxq8.display.html.photos import Label, photos
from jaxq8.display.intervals import decibel_text, percent_text
from jaxq8.display.numbers import decibels, error_share, share
from jaxq8.errors import ArgumentError
from jaxq8.plan_page import measured_row, plan_figures, plan_sites

if TYPE_CHECKING:
    from jaxq8.calibration.report import Report

BINS = 64  # of the histogram of a weight


def report_page(
    report: Report, title: str, images: Sequence[Any] | None, labels: Sequence[Label] | None,
    classes: Sequence[str] | None,
) -> Page:  # fmt: skip
    """The page of a report; `Report.html` says what the arguments are and which errors they raise."""
    said = _answers(report, len(images) if images is not None else 0, classes)
    shown, unshown = photos("Report.html", images, labels, said)
    measured = [_measured(site, report.weights.get(site.name)) for site in report.sites]
    if report.plan is None:
        sites = tuple(map(measured_row, measured))
        figures = _result_figures(report)
    else:
        sites = plan_sites(report.plan, measured)
        figures = (*_result_figures(report), *plan_figures(report.plan))
    jump = report.first_jump
    remarks = []
    if jump is not None:
        remarks.append(
            f"The error jumps first at {jump.name}, to {decibels(jump.sqnr_db)}: more than 6 dB below all before."
        )
    elif sites:
        remarks.append("The error grows slowly: nowhere does it jump by more than 6 dB.")
    return Page(title, figures, tuple(remarks), sites, shown, unshown)


def _result_figures(report: Report) -> tuple[Figure, ...]:
    """The large figures about the results: their error, and how often both functions give the same answer."""
    o = report.output
    note = f"{error_share(o.sqnr_db)}; cosine {o.cosine:.5f}, largest difference {o.max_error:.3g}"
    if o.sqnr_db_interval is not None and (over := decibel_text(o.sqnr_db_interval)):
        note = f"{over[1:-1]} dB; {note}"
    found = [Figure(decibels(o.sqnr_db), "signal over error in the results", note)]
    if o.same_answer is not None and o.among_five is not None:
        value = f"{o.same_answer.count} of {o.same_answer.total}"
        note = f"{percent_text(o.same_answer.interval)[1:-1]} of such examples; "
        note += (
            f"float's first answer is among the first five of eight bits in {share(o.among_five.value, 1)}"
        )
        found.append(Figure(value, "examples with the same first answer", note))
    return tuple(found)


def _measured(site: SiteErrors, weight: Any) -> Measured:
    facts = (
        ("cosine", f"{site.cosine:.5f}"),
        ("largest error", f"{site.max_error:.4g}"),
        ("mean error", f"{site.mean_error:.3g}"),
        ("clipped", f"{100 * site.clipped:.2g} % of the values"),
        ("the codes reach from", f"{site.minimum:.4g} to {site.maximum:.4g}"),
    )
    plots = []
    if site.histogram:
        title = "What the site reads in the first batch, and what its codes reach in all batches"
        plots.append(Histogram(title, site.histogram, site.span, (site.minimum, site.maximum)))
    if weight is not None:
        plots.append(_of_weight(weight))
    return Measured(site.name, site.op, site.sqnr_db, facts, tuple(plots))


def _of_weight(weight: Any) -> Histogram:
    """The histogram of a weight. Its codes reach from its smallest to its largest number, so no range is drawn."""
    real = np.asarray(weight.dequantize() if hasattr(weight, "dequantize") else weight, np.float32).ravel()
    counts, edges = np.histogram(real[np.isfinite(real)], BINS)
    return Histogram("Its weight", tuple(counts.tolist()), (float(edges[0]), float(edges[-1])))


def _answers(report: Report, images: int, classes: Sequence[str] | None) -> list[Facts]:
    """For each image what float and eight bits answer, where the report knows the answers to exactly these images."""
    if not images or len(report.answers) != images:
        if classes is not None:
            raise ArgumentError(
                f"Report.html: names of classes, but the report has {len(report.answers)} answers for {images} images; "
                "give the images that were compared, all and in their order"
            )
        return []
    most = max(max(pair) for pair in report.answers)
    if classes is not None and most >= len(classes):
        raise ArgumentError(
            f"Report.html: {len(classes)} names of classes, but an answer is class {most}; give all names"
        )
    names = [f"class {i}" for i in range(most + 1)] if classes is None else list(map(str, classes))
    return [(("float", names[exact]), ("eight bits", names[found])) for exact, found in report.answers]
