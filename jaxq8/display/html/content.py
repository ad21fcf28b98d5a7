"""What a page shows, as plain records."""

from __future__ import annotations

import dataclasses
import math

from jaxq8.display.numbers import relative_error

Facts = tuple[tuple[str, str], ...]  # (what, its value), shown in this order


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Numbers of elements in equal bins.

    Attributes:
      title: What the elements are.
      counts: One for each bin.
      span: Where the first bin begins and the last one ends.
      range: The smallest and largest value that codes could stand for, drawn over the bins; None if it is not known.
    """

    title: str
    counts: tuple[int, ...]
    span: tuple[float, float]
    range: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured at one site.

    Attributes:
      name: Site name.
      op: Operation.
      sqnr_db: Signal-to-quantization-noise ratio in dB of what the site reads.
      facts: Further figures.
      histograms: What the site reads, and its weight.
    """

    name: str
    op: str
    sqnr_db: float
    facts: Facts = ()
    histograms: tuple[Histogram, ...] = ()


@dataclasses.dataclass(frozen=True)
class Site:
    """One row of the list of sites.

    Attributes:
      name: Site name.
      op: Operation.
      group: "eight", "mixed" (weights in eight bits, arithmetic in float), "float", "plain" (float without products, such as
        a residual sum), or "" where it is not known.
      region: Number of its eight-bit region, from 1; 0 where it is in none.
      how: The kernel, or why the site runs in float.
      arithmetic: Number of multiply-adds; None where it is not known.
      bytes: Bytes of the weight in memory; None where it is not known.
      facts: What the opened row says.
      measured: The errors at the site, if they were measured.
    """

    name: str
    op: str
    group: str
    region: int = 0
    how: str = ""
    arithmetic: int | None = None
    bytes: int | None = None
    facts: Facts = ()
    measured: Measured | None = None

    @property
    def relative_error(self) -> float | None:
        """The root mean square of the error over that of the signal, at most 1; None where nothing was measured."""
        if self.measured is None or math.isnan(self.measured.sqnr_db):
            return None
        return relative_error(self.measured.sqnr_db)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One of the large figures in the head of a page: the value, what it is, and a line that explains it."""

    value: str
    what: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo and what is said of it.

    Attributes:
      source: A data URI.
      name: Its name.
      labels: What is said of it, by whom.
      same: Whether float and eight bits give the same answer; None if that is not known.
    """

    source: str
    name: str
    labels: Facts = ()
    same: bool | None = None


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
      title: Above everything: the model's name.
      figures: Large figures in the head.
      remarks: Sentences below them.
      sites: The list of sites, in program order.
      photos: Photos with labels.
      unshown: How many more photos there are.
    """

    title: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    photos: tuple[Photo, ...] = ()
    unshown: int = 0
