"""The simulation: the reference kernel's arithmetic on integer-valued float32 codes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxq8.kernels import float_forms
from jaxq8.kernels.base import ConvForm, Form
from jaxq8.kernels.reference import plain


class Simulate:
    """Every form, in float32: differentiable, exact while sums stay below 2**24."""

    name = "simulate"

    def supports(self, form: Form) -> str | None:
        return None

    def run(self, form: Form, x: Any, w: Any, x_zero: Any) -> Any:
        if isinstance(form, ConvForm) and form.depthwise and float_forms.pays(form):
            x, w = x.astype(jnp.float32), w.astype(jnp.float32)
            return float_forms.depthwise(form, x, w, x_zero)
        return plain(form, x, w, x_zero, jnp.float32)
