"""The error measures of `compare`: how far eight-bit numbers are from float ones, in the results and at each site."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Errors:
    """How far approximate numbers are from exact ones.

    Attributes:
      sqnr_db: Signal-to-quantization-noise ratio (SQNR) in dB, ``10 log10(sum x**2 / sum (x - y)**2)``; infinite if both are
        equal.
      cosine: The cosine of the angle between both as vectors.
      max_error: Largest absolute difference.
      mean_error: Mean absolute difference.
    """

    sqnr_db: float
    cosine: float
    max_error: float
    mean_error: float


@dataclasses.dataclass(frozen=True)
class OutputErrors(Errors):
    """`Errors` of the results.

    The shares of agreeing examples are None unless the result looks like logits: one array of two axes, the last of at least 3.

    Attributes:
      top1: Share of examples with the same largest logit.
      top5: Share of examples whose largest float logit is among the five largest eight-bit ones.
    """

    top1: float | None = None
    top5: float | None = None


@dataclasses.dataclass(frozen=True)
class SiteErrors(Errors):
    """`Errors` of what a site reads, which include the errors of all sites before it.

    Attributes:
      name: Site name.
      op: Operation.
      clipped: Share of the float values that lie outside the range of the codes by more than half a step, the most that
        rounding explains.
      minimum: Smallest value that the site's codes could stand for.
      maximum: Largest value that the site's codes could stand for.
      histogram: Counts of the float values of the first batch in 64 equal bins over `span`.
      span: Smallest and largest float value of the first batch.
    """

    name: str = ""
    op: str = ""
    clipped: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    histogram: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 0.0)
