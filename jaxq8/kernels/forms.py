"""The canonical forms of contractions, and the interface of kernels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

from jaxq8.kernels.operand import Operand

# An int32 accumulator holds this many products of full-range codes after the corrections for zero points. Both operands may be
# up to 255 away from their zero points (a product of two activations, a weight with a zero point).
MAXIMUM_TERMS = (2**31 - 1) // (255 * 255)


@dataclasses.dataclass(frozen=True)
class DotForm:
    """``x (batch, m, k) . w (batch, k, n) -> (batch, m, n)``; without the first axis if `batch` is 0.

    Attributes:
      batch: Number of products; 0 for one product of matrices.
      m: Rows of x.
      k: Terms of each sum.
      n: Columns of w.
      weight: Whether w is a weight, which is the same in all calls.
      transposed: Whether w comes as ``(batch, n, k)``. A tied embedding lies like this in memory, and a change of its layout
        would cost more than the product.
    """

    batch: int
    m: int
    k: int
    n: int
    weight: bool = True
    transposed: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return max(self.batch, 1) * self.m * self.k * self.n

    @property
    def terms(self) -> int:
        """Products summed into one result."""
        return self.k


@dataclasses.dataclass(frozen=True)
class ConvForm:
    """``x (batch, *spatial, c_in) . w (*kernel, c_in / groups, c_out) -> (batch, *out_spatial, c_out)``."""

    batch: int
    spatial: tuple[int, ...]
    c_in: int
    kernel: tuple[int, ...]
    c_out: int
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int = 1

    @property
    def padded_spatial(self) -> tuple[int, ...]:
        """The spatial sizes of the input after holes and borders are filled."""
        dilated = [max((n - 1) * d + 1, 0) for n, d in zip(self.spatial, self.lhs_dilation, strict=True)]
        return tuple(n + low + high for n, (low, high) in zip(dilated, self.padding, strict=True))

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """The spatial sizes of the result."""
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.rhs_dilation, strict=True)]
        return tuple(
            max((n - span) // s + 1, 0)
            for n, span, s in zip(self.padded_spatial, spans, self.strides, strict=True)
        )

    @property
    def terms(self) -> int:
        """Products summed into one result."""
        return math.prod(self.kernel) * (self.c_in // self.groups)

    @property
    def macs(self) -> int:
        """Multiply-adds, borders included."""
        return self.batch * math.prod(self.out_spatial) * self.terms * self.c_out

    @property
    def depthwise(self) -> bool:
        """Whether each input channel is convolved by itself (into one or several output channels)."""
        return self.groups == self.c_in and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1x1 convolution without borders or holes, that is a matrix product of the (strided) pixels."""
        unpadded = all(p == (0, 0) for p in self.padding) and all(d == 1 for d in self.lhs_dilation)
        return unpadded and self.groups == 1 and all(k == 1 for k in self.kernel)


Form = DotForm | ConvForm


class Kernel(Protocol):
    """An implementation of contractions of codes.

    Two laws are tested for every kernel and form. Wherever ``supports`` returns None, ``run`` of any kernel equals ``run`` of
    the reference kernel bit for bit (for the simulation: to float32 accuracy). And ``supports`` never raises.
    """

    def supports(self, form: Form) -> str | None:
        """None if the kernel runs this form, else the reason why not."""

    def run(self, form: Form, x: Operand, w: Operand) -> Any:
        """The sum over each window of ``x_code * w_code``, without any correction for zero points.

        Args:
          form: Shapes, strides and padding.
          x: Codes in canonical layout. In a convolution they have a single zero point, which fills borders and holes.
          w: Signed codes in canonical layout.

        Returns:
          int32 (float32 for the simulation).

        Raises:
          TensorError: The weight's codes are unsigned.
        """
