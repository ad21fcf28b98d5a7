"""How far a figure that was measured on some examples can be trusted: 95% confidence intervals.

A share of examples (right answers, same answers) has the interval of Wilson 1927: a bootstrap of 20 right answers out of 20 is
a point, because every resampling gives 20 of 20 again. Averages and ratios of sums are resampled (Efron 1979).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import numpy as np

from jaxq8.errors import ArgumentError

CONFIDENCE = 0.95
RESAMPLES = 2000  # of the bootstrap
AT_ONCE = 1 << 22  # numbers that are drawn at once, so that many examples do not fill the memory
FEWEST = 2  # a single example tells nothing about others

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Share:
    """How many of some examples have a property; ``str`` shows it as ``"18 of 20 (95%: 70 to 97%)"``.

    Attributes:
      count: How many examples have it.
      total: How many examples there are.

    Raises:
      ArgumentError: `total` is not positive, or `count` is not between 0 and `total`.

    Example:
      >>> print(q8.Share(20, 20))
      20 of 20 (95%: 84 to 100%)
    """

    count: int
    total: int

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.count <= self.total:
            raise ArgumentError(
                f"Share({self.count}, {self.total}): a count of at least one example is needed"
            )

    @classmethod
    def of(cls, found: Any) -> Share:
        """The share of true elements of a boolean array.

        Args:
          found: One boolean for each example: ``logits.argmax(-1) == labels``.

        Raises:
          ArgumentError: The array is empty.
        """
        array = np.asarray(found, bool)
        return cls(int(array.sum()), array.size)

    @property
    def value(self) -> float:
        """The share that was found, from 0 to 1."""
        return self.count / self.total

    @property
    def interval(self) -> Interval:
        """The shares of all examples of this kind, seen or not, that agree with what was found.

        It is the score interval of Wilson (1927) at 95% confidence, for examples that were drawn independently. It contains
        `value`, stays within 0 and 1, and is not a point even where all examples agree.
        """
        z2 = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
        n, k = self.total, self.count
        middle = (k + z2 / 2) / (n + z2)
        reach = math.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
        # At both ends the formula gives 0 and 1 exactly; rounding must not cut them off.
        return (0.0 if k == 0 else middle - reach, 1.0 if k == n else middle + reach)

    def __str__(self) -> str:
        return f"{self.count} of {self.total} {percent_text(self.interval)}"


def bootstrap(
    values: Any, confidence: float = CONFIDENCE, seed: int = 0, *, over: Any = None
) -> tuple[float, float, float]:
    """Mean of a sample and its percentile bootstrap interval (Efron 1979), from 2,000 resamplings of the examples.

    For a share of examples use `Share`: the bootstrap of examples that all agree is a point, as if nothing were unknown. Of
    fewer than about ten examples the interval is too narrow.

    Args:
      values: One finite number for each example.
      confidence: Share of the resampled means that lie inside the interval.
      seed: Seed of the resampling.
      over: One finite number for each example, not negative. If it is given, the figure is the sum of `values` divided by the
        sum of `over` (a signal-to-noise ratio: the signal of each example over its noise); infinite where that sum is 0.

    Returns:
      (mean, low, high).

    Raises:
      ArgumentError: There are no values, or `over` has another number of them.

    Example:
      >>> q8.bootstrap([1.0, 1.0, 1.0])
      (1.0, 1.0, 1.0)
    """
    x = np.asarray(values, np.float64)
    bottom = np.ones_like(x) if over is None else np.asarray(over, np.float64)
    if x.ndim != 1 or not len(x) or bottom.shape != x.shape:
        raise ArgumentError(
            f"bootstrap: values of shape {x.shape} over {bottom.shape}; give one number for each example, and at least one"
        )
    draw, step = np.random.default_rng(seed), max(1, AT_ONCE // len(x))
    parts = []
    for start in range(0, RESAMPLES, step):
        chosen = draw.integers(0, len(x), (min(step, RESAMPLES - start), len(x)))
        parts.append(x[chosen].mean(1) if over is None else _ratio(x[chosen].sum(1), bottom[chosen].sum(1)))
    figures = np.concatenate(parts)
    tail = (1 - confidence) / 2
    # An infinite ratio cannot be interpolated: the nearest resampling is taken.
    low, high = np.quantile(figures, (tail, 1 - tail), method="linear" if over is None else "nearest")
    middle = x.mean() if over is None else _ratio(x.sum(), bottom.sum())
    return float(middle), float(low), float(high)


def _ratio(top: Any, bottom: Any) -> Any:
    """top / bottom, infinite where the divisor is 0."""
    safe = np.where(bottom == 0, 1, bottom)
    return np.where(bottom == 0, np.inf, top / safe)


def sqnr_interval(signal: Any, noise: Any) -> Interval | None:
    """The interval of an SQNR in dB over examples; None for fewer than two examples, or for numbers that are not finite.

    Args:
      signal: For each example the sum of the squares of the exact numbers.
      noise: For each example the sum of the squares of the errors.
    """
    if len(signal) < FEWEST or not np.isfinite([signal, noise]).all():
        return None
    _, low, high = bootstrap(signal, over=noise)
    return _decibels(low), _decibels(high)


def _decibels(ratio: float) -> float:
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def shares_interval(shares: Any) -> Interval | None:
    """The interval of a mean of shares, one from 0 to 1 for each example; None without examples.

    Where every share is 0 or 1 it is that of `Share`. Shares between (how many tokens of a text agree) are resampled by
    example, because the tokens of one text are no independent examples.
    """
    found = np.asarray(shares, np.float64)
    if not len(found):
        return None
    if np.isin(found, (0, 1)).all():
        return Share.of(found).interval
    _, low, high = bootstrap(found)
    return (low, high) if len(found) >= FEWEST else None


def percent_text(interval: Interval | None) -> str:
    """An interval of shares as text: ``"(95%: 70 to 97%)"``; with a decimal where it is narrow; empty for None."""
    if interval is None:
        return ""
    low, high = (100 * end for end in interval)
    digits = 0 if high - low >= 5 else 1
    return f"({CONFIDENCE:.0%}: {low:.{digits}f} to {high:.{digits}f}%)"


def decibel_text(interval: Interval | None) -> str:
    """An interval in dB as text: ``"(95%: 18.4 to 19.9)"``; empty for None, and where nothing is between its ends."""
    if interval is None or interval[0] == interval[1]:
        return ""
    return f"({CONFIDENCE:.0%}: {interval[0]:.1f} to {interval[1]:.1f})"
