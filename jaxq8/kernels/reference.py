"""The reference kernel: plain arithmetic on widened codes, which is slow but obviously right."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxq8.kernels.forms import MAXIMUM_TERMS, DotForm, Form
from jaxq8.kernels.operand import Operand, checked_weight
from jaxq8.kernels.padding import border, filled


def plain(form: Form, x: Any, w: Any, x_zero: Any, dtype: Any) -> Any:
    """The contraction in one arithmetic type, on explicitly padded operands."""
    x, w = x.astype(dtype), w.astype(dtype)
    precision = lax.Precision.HIGHEST if jnp.issubdtype(dtype, jnp.floating) else None
    if isinstance(form, DotForm):
        batch = ((0,), (0,)) if form.batch else ((), ())
        numbers = (((x.ndim - 1,), (w.ndim - (1 if form.transposed else 2),)), batch)
        return lax.dot_general(x, w, numbers, precision=precision, preferred_element_type=dtype)
    rank = len(form.spatial)
    return lax.conv_general_dilated(
        filled(form, x, x_zero), w, form.strides, [(0, 0)] * rank, rhs_dilation=form.rhs_dilation,
        dimension_numbers=channels_last(rank), feature_group_count=form.groups, precision=precision,
        preferred_element_type=dtype,
    )  # fmt: skip


def channels_last(rank: int) -> lax.ConvDimensionNumbers:
    """Dimension numbers of the canonical layout."""
    spatial = tuple(range(1, rank + 1))
    data = (0, rank + 1, *spatial)
    return lax.ConvDimensionNumbers(data, (rank + 1, rank, *range(rank)), data)


class Reference:
    """Every form, in int32."""

    name = "reference"

    def supports(self, form: Form) -> str | None:
        return f"{form.terms} terms can overflow int32" if form.terms > MAXIMUM_TERMS else None

    def run(self, form: Form, x: Operand, w: Operand) -> Any:
        return plain(form, x.codes, checked_weight(w).codes, border(form, x), jnp.int32)
