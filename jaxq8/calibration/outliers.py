"""Calibration examples that are far larger than all others: they make the range, and leave the others next to no codes.

Of every batch each site keeps two numbers: its largest magnitude, and what is usual in it, the median over the examples of
each one's largest. At the end the largest of each batch is compared with the usual of all batches, so that one example in a
batch and one batch among many are found by the same rule. The batch's first axis counts examples, as in the first input; where
a site's value has another number there (it was moved, or joined with other axes), only whole batches are compared.
"""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.errors import CalibrationWarning
from jaxq8.numerics.ranges import Range

# With a range 32 times what is usual, the others have four of the 127 codes on a side of zero: three bits with the sign, and
# every further factor of two takes one. The packaged nets have ratios of 1 to 4 on their calibration data, at any batch size.
FACTOR = 32.0


class Magnitudes(NamedTuple):
    """What is kept of a site's values in one batch.

    Attributes:
      largest: The largest magnitude.
      usual: Median over examples, without those of zeros alone, of their largest magnitude; the lower one of two in the middle.
      example: Which one has the largest; -1 where that cannot be told.
    """

    largest: Any
    usual: Any
    example: Any


def nothing() -> Magnitudes:
    """Of no values."""
    return Magnitudes(jnp.float32(0), jnp.float32(0), jnp.int32(-1))


def magnitudes(x: jax.Array, leading: tuple[int, ...]) -> Magnitudes:
    """Of one value of a site in a batch whose first axes have these sizes together: see `leading_sizes`."""
    examples = leading[0] if leading else 0
    if not x.size:
        return nothing()
    if examples < 2 or x.ndim == 0 or x.shape[0] not in leading:
        largest = jnp.max(jnp.abs(x))
        return Magnitudes(largest, largest, jnp.int32(-1))
    each = jnp.max(jnp.abs(x.reshape(examples, -1)), axis=1)
    ordered, zeros = jnp.sort(each), jnp.sum(each == 0)
    usual = ordered[jnp.minimum((zeros + examples - 1) // 2, examples - 1)]
    return Magnitudes(jnp.max(each), usual, jnp.argmax(each).astype(jnp.int32))


def larger(first: Magnitudes, second: Magnitudes) -> Magnitudes:
    """Of two values that one site has seen in a batch: two steps of a loop, or two calls."""
    example = jnp.where(second.largest > first.largest, second.example, first.example)
    return Magnitudes(
        jnp.maximum(first.largest, second.largest), jnp.maximum(first.usual, second.usual), example
    )


def leading_sizes(inputs: Any) -> tuple[int, ...]:
    """How many examples a batch has, by its first array, and how many rows they are with the axes behind joined to it.

    Tokens of all examples may share the first axis of a value; an axis of channels that happens to be a multiple of the
    number of examples is not one of them.

    Example:
      >>> leading_sizes(jnp.zeros((8, 128, 384)))
      (8, 1024, 393216)
    """
    shapes = (np.shape(leaf) for leaf in jax.tree.leaves(inputs) if hasattr(leaf, "shape"))
    return tuple(itertools.accumulate(next((shape for shape in shapes if shape), ()), operator.mul))


class Outlier(NamedTuple):
    """A batch that is far larger than the others at a site, by what factor, and which example of it, if that is known."""

    site: str
    batch: int
    ratio: float
    example: int | None


def outliers(seen: Sequence[Mapping[str, Magnitudes]], ranges: Mapping[str, Range]) -> list[Outlier]:
    """What stretches the ranges, site by site in their order; `seen` has an entry a batch, of numbers.

    An observer that has left the large values out has done its work: they are outliers only if the range has them.
    """
    found = []
    for site, range in ranges.items():
        usual = sorted(float(batch[site].usual) for batch in seen if site in batch and batch[site].usual > 0)
        if not usual:
            continue
        middle = usual[(len(usual) - 1) // 2]
        reach = max(-range.minimum, range.maximum) / middle
        if reach < FACTOR:
            continue
        for index, batch in enumerate(seen):
            ratio = float(batch[site].largest) / middle if site in batch else 0.0
            if ratio >= FACTOR:
                example = int(batch[site].example)
                found.append(Outlier(site, index, ratio, example if example >= 0 else None))
    return found


def warn(found: Sequence[Outlier], stacklevel: int) -> None:
    """One warning of all outliers: the first site that has one, the largest there, and how much more there is."""
    if not found:
        return
    worst = max((o for o in found if o.site == found[0].site), key=lambda o: o.ratio)
    place = (
        f"batch {worst.batch}" if worst.example is None else f"example {worst.example} of batch {worst.batch}"
    )
    sites = len({o.site for o in found}) - 1
    more = f" and {sites} later site{'s' if sites > 1 else ''}" if sites else ""
    if others := sorted({o.batch for o in found} - {worst.batch}):
        named = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        more += f" (and so is batch {named})" if len(others) == 1 else f" (and so are batches {named})"
    message = (
        f"calibrate: {place} is {_rounded(worst.ratio)} times as large as is usual at {worst.site}{more}: with it in the range "
        "few codes are left for the others; scale it as the others are or leave it out. If it belongs to the data, leave "
        "these sites without a range, which they then find in each run, or try an observer that clips (percentile, mse)"
    )
    warnings.warn(CalibrationWarning(message, *worst), stacklevel=stacklevel + 1)


def _rounded(ratio: float) -> str:
    """Three digits: ``1,020``, ``45.3``."""
    digits = 2 - math.floor(math.log10(ratio)) if math.isfinite(ratio) else 0
    return f"{round(ratio, digits):,.{max(digits, 0)}f}"
