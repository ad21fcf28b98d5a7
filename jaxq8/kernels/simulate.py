"""The simulation: the arithmetic of the reference kernel, on codes that are integers in float32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxq8.kernels import float_forms
from jaxq8.kernels.forms import ConvForm, Form
from jaxq8.kernels.operand import Operand, checked_weight
from jaxq8.kernels.padding import border
from jaxq8.kernels.reference import plain


class Simulate:
    """Every form, in float32: differentiable, and exact as long as sums stay below 2**24."""

    name = "simulate"

    def supports(self, form: Form) -> str | None:
        return None

    def run(self, form: Form, x: Operand, w: Operand) -> Any:
        codes, weights = x.codes.astype(jnp.float32), checked_weight(w).codes.astype(jnp.float32)
        if isinstance(form, ConvForm) and form.depthwise and float_forms.pays(form):
            return float_forms.depthwise(form, codes, weights, x.border)
        return plain(form, codes, weights, border(form, x), jnp.float32)
