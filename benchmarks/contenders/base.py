"""What a contender is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.models import Model
from benchmarks.regions import Regions


class UnavailableError(RuntimeError):
    """The contender cannot run this model here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A contender ready to run one model on one set of inputs.

    Attributes:
        run: runs the model once and returns when the results are there.
        outputs: runs the model once and returns all results, flat.
        weight_bytes: bytes of the weights as the contender keeps them.
        compile_seconds: time to compile or to load and optimize, without the quantization of the weights.
        temporary_bytes: bytes of XLA's temporary buffer; None for others.
        lower_seconds: of `compile_seconds`, what lowering and compiling take, without tracing; None for others than JAX.
        regions: the native regions; None where there are none.
    """

    run: Callable[[], Any]
    outputs: Callable[[], list[np.ndarray]]
    weight_bytes: int
    compile_seconds: float
    temporary_bytes: int | None = None
    lower_seconds: float | None = None
    regions: Regions | None = None


class Contender(NamedTuple):
    """One column of the comparison.

    Attributes:
        name: on the command line.
        label: in the tables.
        side: "peer" for other projects.
        prepare: quantizes and compiles; raises `UnavailableError` if it cannot.
        extra: runs only when it is named.
    """

    name: str
    label: str
    side: Literal["self", "peer"]
    prepare: Callable[[Model], Prepared]
    extra: bool = False
