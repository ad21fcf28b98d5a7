"""What of a model runs in native regions: counted in the program that `quantize` makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jaxq8 as q8


@dataclasses.dataclass(frozen=True)
class Regions:
    """The native regions of one model.

    Attributes:
        calls: how many regions there are, each of which is one call into oneDNN.
        contractions: how many convolutions and products they hold.
        all_contractions: how many the model has.
    """

    calls: int
    contractions: int
    all_contractions: int

    def __str__(self) -> str:
        return f"{self.calls} ({self.contractions} of {self.all_contractions} contractions)"


def count(fn: Callable[..., Any], packed: Any, inputs: tuple[Any, ...], ranges: Mapping[str, Any]) -> Regions:
    """The native regions of ``quantize(fn, ranges=ranges)(packed, *inputs)``; computes nothing."""
    plan = q8.explain(fn, packed, *inputs, ranges=ranges)
    inside = sum(region.contractions for region in plan.native)
    return Regions(len(plan.native), inside, sum(site.macs > 0 for site in plan.sites))
