"""The canonical forms of contractions, and what a kernel is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.kernels.operand import Operand

# An int32 accumulator holds this many products of full-range codes, and their corrections: both operands may be any distance
# up to 255 away from their zero points (a product of two activations, a weight with a zero point).
MAXIMUM_TERMS = (2**31 - 1) // (255 * 255)


@dataclasses.dataclass(frozen=True)
class DotForm:
    """``x (batch, m, k) . w (batch, k, n) -> (batch, m, n)``; without the first axis if `batch` is 0.

    `weight` says that w is constant over calls; `transposed` that it comes as ``(batch, n, k)``: a tied embedding lies so in
    memory, and laying it out anew would cost more than the product.
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
        """Extents after holes and borders are filled."""
        return tuple(
            max((n - 1) * d + 1, 0) + low + high
            for n, d, (low, high) in zip(self.spatial, self.lhs_dilation, self.padding, strict=True)
        )

    @property
    def out_spatial(self) -> tuple[int, ...]:
        reach = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.rhs_dilation, strict=True))
        return tuple(
            max((n - r) // s + 1, 0) for n, r, s in zip(self.padded_spatial, reach, self.strides, strict=True)
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
        """Every input channel is convolved for itself (with one or several outputs each)."""
        return self.groups == self.c_in and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """A 1x1 convolution without borders or holes: a matrix product of the (strided) pixels."""
        plain = all(p == (0, 0) for p in self.padding) and all(d == 1 for d in self.lhs_dilation)
        return plain and self.groups == 1 and all(k == 1 for k in self.kernel)


Form = DotForm | ConvForm


class Kernel(Protocol):
    """An implementation of contractions of codes.

    Laws, tested for every kernel and form: ``run`` of any kernel equals ``run`` of the reference kernel bit for bit wherever
    ``supports`` returns None (the simulation: to float32 accuracy), and ``supports`` never raises.
    """

    def supports(self, form: Form) -> str | None:
        """None if the kernel runs this form, else why not."""

    def run(self, form: Form, x: Operand, w: Operand) -> Any:
        """The sum over each window of ``x_code * w_code``, without any correction for zero points.

        Args:
          form: Shapes, strides and padding.
          x: Codes in canonical layout; of a convolution with one zero point, which fills borders and holes.
          w: Signed codes in canonical layout.

        Returns:
          int32 (float32 for the simulation).

        Raises:
          TensorError: The weight's codes are unsigned.
        """


def border(form: Form, x: Operand) -> Any:
    """The code that fills borders and holes; 0 in dots, which have none."""
    return x.border if isinstance(form, ConvForm) else np.int32(0)


def filled(form: ConvForm, x: Any, x_zero: Any) -> Any:
    """`x` with its holes and borders filled with the code of zero; negative padding crops."""
    edges = [(low, high, d - 1) for (low, high), d in zip(form.padding, form.lhs_dilation, strict=True)]
    if all(edge == (0, 0, 0) for edge in edges):
        return x
    return lax.pad(x, jnp.asarray(x_zero).astype(x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
