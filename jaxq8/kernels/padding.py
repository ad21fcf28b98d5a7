"""The borders of a convolution and the holes of a dilated input: both are filled with the code of zero."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.kernels.forms import ConvForm, Form
from jaxq8.kernels.operand import Operand


def border(form: Form, x: Operand) -> Any:
    """The code that fills borders and holes of a convolution; 0 for a dot, which has no borders."""
    return x.border if isinstance(form, ConvForm) else np.int32(0)


def filled(form: ConvForm, x: Any, x_zero: Any) -> Any:
    """`x` with holes and borders that hold the code of zero; negative padding crops."""
    edges = [(low, high, d - 1) for (low, high), d in zip(form.padding, form.lhs_dilation, strict=True)]
    if all(edge == (0, 0, 0) for edge in edges):
        return x
    return lax.pad(x, jnp.asarray(x_zero).astype(x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
