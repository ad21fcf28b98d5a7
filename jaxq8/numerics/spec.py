"""`Spec`: how the real numbers of one tensor are represented by codes."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from jaxq8.errors import SpecError
from jaxq8.numerics.observers import observer_names
from jaxq8.numerics.ranges import Range

GRANULARITIES = ("tensor", "channel", "row", "group")
LEVELS = ("even", "kmeans")


@dataclasses.dataclass(frozen=True)
class Spec:
    """How real numbers are represented by codes.

    Attributes:
      bits: Width of a code, 2 to 8 (32 for accumulators).
      signed: Whether codes are signed. None means signed if symmetric, else unsigned.
      symmetric: Whether the zero point is 0. None means False.
      granularity: Which elements share a scale: the whole "tensor"; each "channel" (an index of the last axis unless another
        axis is named); each "row" (an index of all axes but the last, such as a token of a sequence); or, for weights only,
        each "group" of neighbours along an axis that is summed over, separately in each channel.
      range: A fixed `Range`, or the name of the observer that `calibrate` uses (`jaxq8.numerics.observers`). Without
        calibration a range goes from the smallest to the largest value of the data.
      include_zero: Whether every range is widened to contain zero. That is always wanted; False reproduces the 2016 conversion
        of ranges that do not contain zero, whose zero point lies outside the codes.
      group: The number of neighbours in a group (32, 64, 128); only with granularity "group".
      levels: The values that codes stand for: "even" steps, or a list that "kmeans" chooses (see `CodeBook`; only for weights
        of 2 to 6 bits, with one list for the tensor or for each channel).

    Raises:
      SpecError: A value is unknown or out of bounds; the message lists what is allowed.

    Example:
      >>> q8.Spec(bits=8, symmetric=True).qmin
      -127
    """

    bits: int = 8
    signed: bool | None = None
    symmetric: bool | None = None
    granularity: Literal["tensor", "channel", "row", "group"] = "tensor"
    range: str | Range = "minmax"
    include_zero: bool = True
    group: int = 0
    levels: Literal["even", "kmeans"] = "even"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or self.bits not in (2, 3, 4, 5, 6, 7, 8, 32):
            raise SpecError(f"Spec(bits={self.bits!r}): bits must be 2 to 8, or 32 for accumulators")
        if self.granularity not in GRANULARITIES:
            raise SpecError(f"Spec(granularity={self.granularity!r}): known are {', '.join(GRANULARITIES)}")
        if (self.granularity == "group") != (self.group > 0):
            raise SpecError(
                f"Spec(granularity={self.granularity!r}, group={self.group}): give the size of groups with granularity "
                "'group', and only there"
            )
        if self.levels not in LEVELS:
            raise SpecError(f"Spec(levels={self.levels!r}): known are {', '.join(LEVELS)}")
        if self.has_book and (self.bits > 6 or self.granularity not in ("tensor", "channel")):
            raise SpecError(
                f"Spec(bits={self.bits}, granularity={self.granularity!r}, levels='kmeans'): a code book has 2 to 6 bits, "
                "and is that of a 'tensor' or a 'channel'"
            )
        if not isinstance(self.range, Range) and self.range not in observer_names():
            raise SpecError(
                f"Spec(range={self.range!r}): use a Range(minimum, maximum) or an observer: {', '.join(observer_names())}"
            )

    @property
    def has_book(self) -> bool:
        """Whether the values are listed in a code book."""
        return self.levels == "kmeans"

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is 0 by construction."""
        return bool(self.symmetric)

    @property
    def is_signed(self) -> bool:
        """Whether codes are signed, with the default resolved."""
        return self.is_symmetric if self.signed is None else self.signed

    @property
    def qmin(self) -> int:
        """Smallest code; symmetric signed codes leave out the most negative integer, so that every code can be negated."""
        if not self.is_signed:
            return 0
        return -(2 ** (self.bits - 1)) + (1 if self.is_symmetric else 0)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1 if self.is_signed else 2**self.bits - 1

    @property
    def storage(self) -> jnp.dtype:
        """The integer dtype that holds one code."""
        if self.bits > 8:
            return jnp.dtype("int32" if self.is_signed else "uint32")
        return jnp.dtype("int8" if self.is_signed else "uint8")
