"""What `compare` measures: how far the numbers of eight bits are from those of float, in the results and at each site."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Errors:
    """How far approximate numbers are from exact ones.

    Attributes:
      sqnr_db: Signal to quantization noise, ``10 log10(sum x**2 / sum (x - y)**2)``; infinite if they are equal.
      cosine: Of the angle between both as vectors.
      max_error: Largest absolute difference.
      mean_error: Mean absolute difference.
    """

    sqnr_db: float
    cosine: float
    max_error: float
    mean_error: float


@dataclasses.dataclass(frozen=True)
class OutputErrors(Errors):
    """`Errors` of the results; agreement only where they look like logits (two axes, the last of at least 3).

    Attributes:
      top1: Share of examples with the same largest logit.
      top5: Share of examples whose largest float logit is among the five largest eight-bit ones.
    """

    top1: float | None = None
    top5: float | None = None


@dataclasses.dataclass(frozen=True)
class SiteErrors(Errors):
    """`Errors` of what a site reads, the error of all sites before it included.

    Attributes:
      name: Site name.
      op: Operation.
      clipped: Share of the float values that are further from the range used than rounding could bring them: half a step.
      minimum: Smallest value that its codes could stand for.
      maximum: Largest.
      histogram: Counts of the float values in 64 equal bins over `span`, of the first batch.
      span: Extremes of the float values of the first batch.
    """

    name: str = ""
    op: str = ""
    clipped: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    histogram: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 0.0)
