"""What of a model runs in native regions: counted in the program that `quantize` makes of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

import jaxq8 as q8
from jaxq8.analysis.traced_call import Call
from jaxq8.evaluation.calls import evaluate_in_parts
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder

_CONTRACTION = re.compile(r" = (conv|product)\(")


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
    call, recorder = Call.trace(fn, (packed, *inputs), {}), Recorder()
    given = ranges if isinstance(ranges, Ranges) else Ranges(ranges)
    config = q8.Config()
    jax.eval_shape(
        lambda leaves: evaluate_in_parts(call.replaced(leaves), fn, config, given, recorder),
        call.arguments.given,
    )
    inside = sum(len(_CONTRACTION.findall(text)) for text in recorder.native)
    every = sum(site.macs > 0 for site in recorder.plan().sites)
    return Regions(len(recorder.native), inside, every)
