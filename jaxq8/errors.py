"""The errors that jaxq8 raises, all with one base class, and the warnings that it gives.

Every message says what was wrong, where (the site or the argument), and what to do about it.
"""

from __future__ import annotations


class QuantizationError(Exception):
    """Base class of everything that jaxq8 raises on purpose.

    Example:
      >>> try:
      ...     q8.load("nothing.q8")
      ... except q8.QuantizationError as error:
      ...     print(error)
      nothing.q8: no such file; check the path
    """


class SpecError(QuantizationError, ValueError):
    """A `Spec`, `Config`, `Range` or rounding name that does not describe a representation.

    Example:
      >>> q8.Config(mode="fast")
      Traceback (most recent call last):
          ...
      jaxq8.errors.SpecError: Config(mode='fast'): known are eightbit, weights, weights_rounded, round, simulate, off
    """


class TensorError(QuantizationError, ValueError):
    """Data that cannot be represented: wrong dtype, NaN, infinity, or shapes that do not fit together.

    Example:
      >>> broken = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
      >>> q8.quantize_weights(model.apply, broken, images)
      Traceback (most recent call last):
          ...
      jaxq8.errors.TensorError: weight params/Dense_0/kernel holds NaN or infinity; ...
    """


class ArgumentError(QuantizationError, TypeError):
    """Arguments that a function cannot take, or a function that returns something that is not an array.

    Example:
      >>> q8.quantize(variables)
      Traceback (most recent call last):
          ...
      jaxq8.errors.ArgumentError: quantize expects a function, got dict; for a Flax model pass model.apply
    """


class RangesError(QuantizationError, ValueError):
    """`Ranges` that name unknown sites, lack sites that are needed, or cannot be read.

    Example:
      >>> q8.Ranges({"head:dot": (2.0, 1.0)})
      Traceback (most recent call last):
          ...
      jaxq8.errors.RangesError: ranges: site 'head:dot': Range(2.0, 1.0): the minimum exceeds the maximum; swap them
    """


class RuleError(QuantizationError, ValueError):
    """An extension (rule, rounding, observer) that is registered twice, is incomplete, or returns something invalid.

    Example:
      >>> q8.register_rounding("half_even")(jnp.floor)
      Traceback (most recent call last):
          ...
      jaxq8.errors.RuleError: rounding 'half_even' is already registered by ...; jax.numpy.floor needs another name
    """


class FileError(QuantizationError, ValueError):
    """A file that cannot be read or written: missing, cut off, changed, of another kind, or of a newer version.

    Example:
      >>> q8.load_exported("nothing.q8x")
      Traceback (most recent call last):
          ...
      jaxq8.errors.FileError: nothing.q8x: no such file; check the path
    """


class NativeError(QuantizationError, RuntimeError):
    """Native regions are not there, or a region program is not one; the message says why.

    Example:
      >>> if not q8.native_status().available:  # then packing is refused
      ...     try:
      ...         q8.pack(model.apply, q_vars, images, ranges=ranges)
      ...     except q8.NativeError as error:
      ...         assert q8.native_status().reason in str(error)
    """


class CalibrationWarning(UserWarning):
    """A few calibration examples are so large that they determine the range of a site and leave the others few codes.

    Attributes:
      site: The first site at which this happens.
      batch: Number of the batch with the largest values there.
      ratio: How many times larger these values are than is usual at the site.
      example: Number of the example in that batch; None where it cannot be told.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     ranges = q8.calibrate(model.apply, variables, [images.at[2].multiply(1000)])
      >>> caught[0].message.batch, caught[0].message.example
      (0, 2)
    """

    def __init__(
        self, message: str, site: str = "", batch: int = 0, ratio: float = 0.0, example: int | None = None
    ):
        super().__init__(message)
        self.site, self.batch, self.ratio, self.example = site, batch, ratio, example
