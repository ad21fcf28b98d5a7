"""Float forms that XLA:CPU runs faster than its own."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxq8.kernels import conv
from jaxq8.kernels.base import ConvForm
from jaxq8.kernels.reference import plain


def pays(form: ConvForm) -> bool:
    """Kernels of few positions; on more of them XLA's own loop is no slower."""
    return form.terms <= 32


def depthwise(form: ConvForm, x: Any, w: Any, x_zero: Any = 0) -> Any:
    """A float32 depthwise convolution as shifted multiply-adds on CPU; XLA's own elsewhere. Borders hold `x_zero`."""
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: conv.multiply_adds(form, x, w, x_zero, jnp.float32),
        default=lambda x, w: plain(form, x, w, x_zero, jnp.float32),
    )
