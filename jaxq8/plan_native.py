"""The native regions of a `Plan`: what runs in one call into oneDNN, what ended each, and why there are none."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

NOTHING_PACKED = "no weight is packed (q8.pack)"


@dataclasses.dataclass(frozen=True)
class NativeRegion:
    """Connected operations that run in one call into oneDNN.

    Attributes:
      sites: The names of its contractions, in the order in which they run.
      steps: The number of steps of its program: contractions, poolings, copies and element-wise arithmetic.
      ended: What reads its results: an operation that no region has a step for, with the reason where it is a contraction;
        another region; or "the result" of the function.
    """

    sites: tuple[str, ...]
    steps: int
    ended: tuple[str, ...] = ()

    @property
    def contractions(self) -> int:
        """The number of contractions."""
        return len(self.sites)

    def __str__(self) -> str:
        names = f": {self.sites[0]} to {self.sites[-1]}" if self.sites else ""
        ended = f"; ended by {', '.join(self.ended)}" if self.ended else ""
        return f"{self.contractions} contractions in {self.steps} steps{names}{ended}"

    @classmethod
    def read(cls, entry: dict[str, Any]) -> NativeRegion:
        """Reads an entry of the Plan's JSON."""
        return cls(tuple(map(str, entry["sites"])), int(entry["steps"]), tuple(map(str, entry["ended"])))


def native_line(regions: Sequence[NativeRegion], contractions: int, reason: str) -> list[str]:
    """What a plan says of its native regions: one line, or none where nothing was packed and nothing could be.

    Args:
      regions: The regions.
      contractions: How many contractions the plan has.
      reason: Why there are no regions; empty where this goes without saying.
    """
    if not regions:
        return [f"native: none: {reason}"] if reason else []
    inside = sum(region.contractions for region in regions)
    calls = "1 region in one call" if len(regions) == 1 else f"{len(regions)} regions in one call each"
    ends = collections.Counter(end for region in regions for end in region.ended)
    ended = ", ".join(f"{end} ({count})" if count > 1 else end for end, count in ends.most_common())
    line = f"native: {calls}, {inside} of {contractions} contractions"
    return [f"{line}; ended by: {ended}" if ended else line]


def kernel_texts(regions: Sequence[NativeRegion]) -> dict[str, str]:
    """What the column of kernels says of the sites that run in regions."""
    return {site: f"native: region {n}" for n, region in enumerate(regions, 1) for site in region.sites}
