"""The operand of a kernel: codes together with their meaning, checked when the operand is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8.errors import TensorError
from jaxq8.numerics.qtensor import QTensor

# 128 turns the bytes 0..255 into the codes -128..127.
CENTRE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """Codes of one operand of a contraction, ``real = scale * (codes - zero)``. Kernels do not need the scale.

    Attributes:
      codes: int8 if signed, uint8 if not; the same numbers in float32 while simulated.
      zero: The zero point as int32: one number, or an array of the tensor's rank. None if the zero point is known to be 0, so
        that the contraction needs no correction for it.
      signed: Whether codes lie in -128..127 rather than in 0..255. None: as the dtype of integer codes says.

    Raises:
      TensorError: Codes and sign contradict each other, or the zero is not an integer.

    Example:
      >>> Operand(codes, jnp.int32(3))
    """

    codes: Any
    zero: Any = None
    signed: bool | None = None

    def __post_init__(self) -> None:
        dtype = np.dtype(self.codes.dtype)
        if self.signed is None:
            object.__setattr__(self, "signed", dtype != np.uint8)
        if jnp.issubdtype(dtype, jnp.integer) and dtype != (np.int8 if self.signed else np.uint8):
            sign = "signed" if self.signed else "unsigned"
            raise TensorError(
                f"{sign} codes of {dtype}: a kernel takes int8 or uint8, or float32 while simulated"
            )
        if self.zero is not None and not jnp.issubdtype(jnp.result_type(self.zero), jnp.integer):
            raise TensorError(f"the zero point is {jnp.result_type(self.zero)}: it must be an integer")

    @classmethod
    def of(cls, tensor: QTensor, codes: Any) -> Operand:
        """The codes of a tensor, laid out for a kernel; a zero point that is known to be 0 is left out."""
        return cls(codes, None if tensor.symmetric else tensor.zero_point, tensor.signed)

    @property
    def border(self) -> Any:
        """The one code that fills borders and holes, a scalar."""
        return np.int32(0) if self.zero is None else jnp.reshape(self.zero, ())

    def as_signed(self) -> Operand:
        """The same numbers with signed codes. 128 is subtracted from each code and from the zero point, which is then not 0."""
        if self.signed:
            return self
        codes = self.codes
        integers = jnp.issubdtype(codes.dtype, jnp.integer)
        centred = (codes ^ CENTRE).view(jnp.int8) if integers else codes - CENTRE
        zero = np.int32(0) if self.zero is None else self.zero
        return Operand(centred, zero - CENTRE, True)


def checked_weight(w: Operand) -> Operand:
    """The right operand of a contraction, for which every form takes signed codes.

    Raises:
      TensorError: The codes are unsigned.
    """
    if not w.signed:
        raise TensorError(
            "unsigned codes on the weight's side of a contraction: pass them by Operand.as_signed"
        )
    return w
