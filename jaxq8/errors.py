"""The errors that jaxq8 raises, all with one base class, and the warnings that it gives.

Every message says what was wrong, where (the site or the argument), and what to do about it.
"""

from __future__ import annotations


class QuantizationError(Exception):
    """Base class of everything that jaxq8 raises on purpose."""


class SpecError(QuantizationError, ValueError):
    """A `Spec`, `Config`, `Range` or rounding name that does not describe a representation."""


class TensorError(QuantizationError, ValueError):
    """Data that cannot be represented: wrong dtype, NaN, infinity, or shapes that do not fit together."""


class ArgumentError(QuantizationError, TypeError):
    """Arguments that a function cannot take, or a function that returns something that is not an array."""


class RangesError(QuantizationError, ValueError):
    """`Ranges` that name unknown sites, lack sites that are needed, or cannot be read."""


class RuleError(QuantizationError, ValueError):
    """An extension (rule, rounding, observer) that is registered twice, is incomplete, or returns something invalid."""


class FileError(QuantizationError, ValueError):
    """A file that cannot be read or written: missing, cut off, changed, of another kind, or of a newer version."""


class CalibrationWarning(UserWarning):
    """A few calibration examples are so large that they determine the range of a site and leave the others few codes.

    Attributes:
      site: The first site at which this happens.
      batch: Number of the batch with the largest values there.
      ratio: How many times larger these values are than is usual at the site.
      example: Number of the example in that batch; None where it cannot be told.
    """

    def __init__(
        self, message: str, site: str = "", batch: int = 0, ratio: float = 0.0, example: int | None = None
    ):
        super().__init__(message)
        self.site, self.batch, self.ratio, self.example = site, batch, ratio, example
