"""The error measures of `compare`: how far eight-bit numbers are from float ones, in the results and at each site."""

from __future__ import annotations

import dataclasses

from jaxq8.display.intervals import Interval, Share


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
      examples: How many examples the logits are of; 0 if the results do not look like logits.
      sqnr_db_interval: Ends of the 95% bootstrap interval of `sqnr_db` over examples, in dB. Examples are told apart along the
        first axis of the results, where it counts those of the first input; else batches are taken for them. None for fewer
        than two.
      top1_interval: Ends of the 95% interval (Wilson 1927) of `top1`.
      top5_interval: Ends of the 95% interval (Wilson 1927) of `top5`.
    """

    top1: float | None = None
    top5: float | None = None
    examples: int = 0
    sqnr_db_interval: Interval | None = None
    top1_interval: Interval | None = None
    top5_interval: Interval | None = None

    @property
    def same_answer(self) -> Share | None:
        """How many examples have the same largest logit, with its interval; None where that is not known."""
        return self._share(self.top1)

    @property
    def among_five(self) -> Share | None:
        """How many examples have float's largest logit among the five largest, with its interval; None if not known."""
        return self._share(self.top5)

    def _share(self, value: float | None) -> Share | None:
        return (
            None if value is None or not self.examples else Share(round(value * self.examples), self.examples)
        )


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
