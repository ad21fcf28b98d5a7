"""Float forms that XLA:CPU runs faster than its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxq8.kernels import conv
from jaxq8.kernels.forms import ConvForm
from jaxq8.kernels.reference import plain
from jaxq8.numerics.sizes import certainly_less
from jaxq8.operations import operation


def pays(form: ConvForm) -> bool:
    """Whether `depthwise` is faster than XLA's own loop: only for kernels of few positions."""
    return form.terms <= 32


def depthwise(form: ConvForm, x: Any, w: Any, x_zero: Any = 0) -> Any:
    """A float32 depthwise convolution, on CPU as shifted multiply-adds, elsewhere by XLA. Borders hold `x_zero`."""
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: conv.multiply_adds(form, x, w, x_zero, jnp.float32),
        default=lambda x, w: plain(form, x, w, x_zero, jnp.float32),
    )


# Elements of the larger operand from which on `batched_dot` pays. It is 1.6 to 6 times faster between 0.5 and 8 million, and
# as fast as XLA's own form above; it is 0.07 ms slower at 0.1 million (softmax times values on AVX-512 VNNI, jaxlib 0.10.2).
LARGE_BATCHED = 1 << 19


def batched_pays(params: Mapping[str, Any], x: Any, y: Any, result: tuple[int, ...]) -> bool:
    """Whether `batched_dot` pays: for a large float32 operand and a smaller result, as in attention's weights times values."""
    is_plain = x.dtype == y.dtype == jnp.float32 and params["out_sharding"] is None
    is_batched = bool(params["dimension_numbers"][1][0])
    return is_plain and is_batched and (_is_large(x, result) or _is_large(y, result))


def _is_large(operand: Any, result: tuple[int, ...]) -> bool:
    size = math.prod(operand.shape)
    return not certainly_less(size, LARGE_BATCHED) and not certainly_less(size, math.prod(result) + 1)


def _product(x: Any, y: Any, **params: Any) -> Any:
    return jax.eval_shape(lambda x, y: lax.dot_general(x, y, **params), x, y)


@operation(_product)
def batched_dot(x: Any, y: Any, **params: Any) -> Any:
    """A batched float32 product with its smaller operand halved and its result doubled: exact except for subnormal numbers.

    Its parameters are those of `jax.lax.dot_general`. A region reads it as that.

    XLA:CPU compiles a softmax and the product that reads it into one call. The call runs several times faster if the product
    is not its last operation.
    """

    def dot(x: Any, y: Any) -> Any:
        return lax.dot_general(x, y, **params)

    halves = (0.5, 1.0) if certainly_less(math.prod(x.shape), math.prod(y.shape)) else (1.0, 0.5)
    return lax.platform_dependent(x, y, cpu=lambda x, y: 2 * dot(x * halves[0], y * halves[1]), default=dot)
