"""Finds calibration examples that are far larger than all others: they determine a range and leave the others few codes.

For every batch each site keeps its largest magnitude, and its usual magnitude: the median over the examples of the largest
magnitude of each. At the end the largest magnitude of each batch is compared with the usual one of all batches, so the same
rule finds one example in a batch and one batch among many. The first axis of a batch counts examples, as in the first input.
Where a site's value has another size there (because that axis was moved, or joined with others), only whole batches are
compared.
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

# With a range 32 times the usual magnitude, usual examples have four of the 127 codes on each side of zero, which is three bits
# with the sign; every further factor of two takes another bit. The packaged nets have ratios of 1 to 4 on their calibration
# data, at any batch size.
FACTOR = 32.0


class Magnitudes(NamedTuple):
    """What is kept of a site's values in one batch.

    Attributes:
      largest: The largest magnitude.
      usual: The median over the examples of the largest magnitude of each, without examples of zeros alone; of an even number
        of examples the lower one of the two in the middle.
      example: The number of the example with the largest magnitude; -1 where that cannot be told.
    """

    largest: Any
    usual: Any
    example: Any


def nothing() -> Magnitudes:
    """The magnitudes of no values at all."""
    return Magnitudes(jnp.float32(0), jnp.float32(0), jnp.int32(-1))


def magnitudes(x: jax.Array, leading: tuple[int, ...]) -> Magnitudes:
    """The magnitudes of one value of a site, in a batch with these `leading_sizes`."""
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
    """The magnitudes of two values that one site saw in the same batch, in two steps of a loop or in two calls."""
    example = jnp.where(second.largest > first.largest, second.example, first.example)
    return Magnitudes(
        jnp.maximum(first.largest, second.largest), jnp.maximum(first.usual, second.usual), example
    )


def leading_sizes(inputs: Any) -> tuple[int, ...]:
    """The sizes that an axis of examples may have in this batch: the products of the leading axes of its first array.

    The first is the number of examples. The others belong to values in which further axes were joined to that of the
    examples, as when the tokens of all examples share an axis. An axis of channels is not taken for one of these only because
    its size happens to be a multiple of the number of examples.

    Example:
      >>> leading_sizes(jnp.zeros((8, 128, 384)))
      (8, 1024, 393216)
    """
    shapes = (np.shape(leaf) for leaf in jax.tree.leaves(inputs) if hasattr(leaf, "shape"))
    return tuple(itertools.accumulate(next((shape for shape in shapes if shape), ()), operator.mul))


class Outlier(NamedTuple):
    """A batch that is far larger than the others at a site, by which factor, and which example it is, if that is known."""

    site: str
    batch: int
    ratio: float
    example: int | None


def outliers(seen: Sequence[Mapping[str, Magnitudes]], ranges: Mapping[str, Range]) -> list[Outlier]:
    """The batches that stretch the ranges, in the order of the sites.

    Large values that an observer has left out of the range do no harm, so they are not outliers.

    Args:
      seen: For each batch, the magnitudes (NumPy numbers) of the sites that ran.
      ranges: The ranges that calibration found.
    """
    found = []
    for site, range in ranges.items():
        batches = [(index, batch[site]) for index, batch in enumerate(seen) if site in batch]
        usual = sorted(float(sizes.usual) for _, sizes in batches if sizes.usual > 0)
        if not usual:
            continue
        median = usual[(len(usual) - 1) // 2]
        if max(-range.minimum, range.maximum) / median < FACTOR:
            continue
        for index, sizes in batches:
            ratio = float(sizes.largest) / median
            if ratio >= FACTOR:
                example = int(sizes.example) if sizes.example >= 0 else None
                found.append(Outlier(site, index, ratio, example))
    return found


def warn(found: Sequence[Outlier], stacklevel: int) -> None:
    """Gives one warning for all outliers: it describes the largest one at the first site, and counts the rest."""
    if not found:
        return
    worst = max((o for o in found if o.site == found[0].site), key=lambda o: o.ratio)
    place = f"batch {worst.batch}"
    if worst.example is not None:
        place = f"example {worst.example} of {place}"
    more = _later_sites(found) + _other_batches(found, worst)
    message = (
        f"calibrate: {place} is {_rounded(worst.ratio)} times as large as is usual at {worst.site}{more}: with it in the range "
        "few codes are left for the others; scale it as the others are or leave it out. If it belongs to the data, leave "
        "these sites without a range, which they then find in each run, or try an observer that clips (percentile, mse)"
    )
    warnings.warn(CalibrationWarning(message, *worst), stacklevel=stacklevel + 1)


def _later_sites(found: Sequence[Outlier]) -> str:
    """How many sites besides the first have outliers, as part of a message."""
    count = len({outlier.site for outlier in found}) - 1
    if not count:
        return ""
    return f" and {count} later site{'s' if count > 1 else ''}"


def _other_batches(found: Sequence[Outlier], worst: Outlier) -> str:
    """Which batches besides that of `worst` have outliers, as part of a message."""
    others = sorted({outlier.batch for outlier in found} - {worst.batch})
    if not others:
        return ""
    if len(others) == 1:
        return f" (and so is batch {others[0]})"
    named = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
    return f" (and so are batches {named})"


def _rounded(ratio: float) -> str:
    """A ratio with three digits: ``1,020``, ``45.3``."""
    digits = 2 - math.floor(math.log10(ratio)) if math.isfinite(ratio) else 0
    return f"{round(ratio, digits):,.{max(digits, 0)}f}"
