"""Float forms that XLA:CPU runs faster than its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxq8.kernels import conv
from jaxq8.kernels.forms import ConvForm
from jaxq8.kernels.reference import plain
from jaxq8.numerics.sizes import certainly_less


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


# Elements of the larger operand from which on the form below pays: 1.6 to 6 times faster between 0.5 and 8 million, as fast
# as XLA's own above, and 0.07 ms slower at 0.1 million (softmax times values on AVX-512 VNNI, jaxlib 0.10.2).
LARGE_BATCHED = 1 << 19


def batched_pays(params: Mapping[str, Any], x: Any, y: Any, result: tuple[int, ...]) -> bool:
    """Batched products of a large float32 operand with a smaller result: attention's weights times values."""
    plain = x.dtype == y.dtype == jnp.float32 and params["out_sharding"] is None
    least = [LARGE_BATCHED, math.prod(result) + 1]
    large = any(not any(certainly_less(math.prod(v.shape), n) for n in least) for v in (x, y))
    return plain and bool(params["dimension_numbers"][1][0]) and large


def batched_dot(params: Mapping[str, Any], x: Any, y: Any) -> Any:
    """A batched float32 product with its smaller operand halved and its result doubled: exact, but for subnormal numbers.

    XLA:CPU makes one call of a softmax and the product behind it, and runs that call several times faster where the product
    is not its last operation.
    """

    def dot(x: Any, y: Any) -> Any:
        return lax.dot_general(x, y, **params)

    halves = (0.5, 1.0) if certainly_less(math.prod(x.shape), math.prod(y.shape)) else (1.0, 0.5)
    return lax.platform_dependent(x, y, cpu=lambda x, y: 2 * dot(x * halves[0], y * halves[1]), default=dot)
