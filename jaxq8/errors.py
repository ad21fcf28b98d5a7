"""The one hierarchy of errors that jaxq8 raises, and the warnings that it gives.

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
    """A quantized function was called with arguments that it cannot take, or returns what is no array."""


class RangesError(QuantizationError, ValueError):
    """`Ranges` that name unknown sites, lack needed ones, or cannot be read."""


class RuleError(QuantizationError, ValueError):
    """An extension (rule, rounding, observer) that is registered twice or returns what it must not."""


class FileError(QuantizationError, ValueError):
    """A file that cannot be read or written: missing, cut off, changed, of another kind, or of a newer version."""


class CalibrationWarning(UserWarning):
    """A few of the calibration data make the range of a site, and leave the others few codes.

    Attributes:
      site: The first site where it is so.
      batch: Which batch has them.
      ratio: How much larger they are than what is usual there.
      example: Which example of the batch; None where that cannot be told.
    """

    def __init__(
        self, message: str, site: str = "", batch: int = 0, ratio: float = 0.0, example: int | None = None
    ):
        super().__init__(message)
        self.site, self.batch, self.ratio, self.example = site, batch, ratio, example
