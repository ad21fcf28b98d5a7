"""Eight-bit convolutions: as matrix products over shifted slices, as shifted multiply-adds, or in XLA's own integer form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxq8._compat import stored
from jaxq8.kernels.dot import as_signed, dot, dot_and_sums
from jaxq8.kernels.forms import ConvForm, DotForm
from jaxq8.kernels.padding import filled
from jaxq8.kernels.reference import channels_last
from jaxq8.numerics.sizes import certainly_less

# Patches of more bytes than this are made in parts: XLA:CPU requests larger temporary buffers from the system on every call.
PATCH_BYTES = 16 << 20


def patch_bytes(form: ConvForm) -> int:
    """The size in bytes of all patches of a convolution, laid out as rows."""
    return form.batch * math.prod(form.out_spatial) * math.prod(form.kernel) * form.c_in


def many_patches(form: ConvForm) -> bool:
    """Whether the patches exceed `PATCH_BYTES`; for a symbolic batch, whether they do so for every size of the batch."""
    return certainly_less(PATCH_BYTES, patch_bytes(form))


def shifted(form: ConvForm, x: Any, offset: tuple[int, ...]) -> Any:
    """The padded input as one position of the kernel sees it: ``(batch, *out_spatial, channels)``."""
    starts = [o * d for o, d in zip(offset, form.rhs_dilation, strict=True)]
    spans = [(n - 1) * s + 1 for n, s in zip(form.out_spatial, form.strides, strict=True)]
    limits = [start + span for start, span in zip(starts, spans, strict=True)]
    return lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *form.strides, 1))


def offsets(kernel: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All positions of a kernel, in the order of its weights."""
    return itertools.product(*map(range, kernel))


def _bordered(form: ConvForm, x: Any, x_zero: Any) -> Any:
    """The input with its borders, stored before it is sliced, because XLA would otherwise encode it again for every slice."""
    return stored(filled(form, x, x_zero))


def pointwise(form: ConvForm, x: Any, w: Any, x_zero: Any) -> Any:
    """A 1x1 convolution: the strided pixels times the weights."""
    x = shifted(form, x, (0,) * len(form.kernel))
    return _rows_dot(form, x, w.reshape(form.c_in, form.c_out))


def pointwise_and_sums(form: ConvForm, x: Any, w: Any) -> tuple[Any, Any]:
    """`pointwise`, and the sum of the weights of each channel."""
    x = shifted(form, x, (0,) * len(form.kernel))
    rows = x.reshape(-1, form.c_in)
    product = DotForm(0, rows.shape[0], form.c_in, form.c_out)
    out, sums = dot_and_sums(product, rows, w.reshape(form.c_in, form.c_out))
    return out.reshape(form.batch, *form.out_spatial, form.c_out), sums


def patches(form: ConvForm, x: Any, w: Any, x_zero: Any) -> Any:
    """All shifted slices side by side on the channel axis, and one dot (im2col).

    Slices are made along one spatial axis after the other, the last axis first. Instead of k x k slices of c channels, k slices
    of c channels and then k slices of k c channels are made (measured: up to twice as fast as one step where channels are few).
    """
    x = _bordered(form, x, x_zero)
    missing = -form.terms % 4  # the integer kernels read four terms at a time
    for axis in reversed(range(len(form.kernel))):
        slices = _along(form, x, axis)
        if axis == 0 and missing:
            slices.append(jnp.zeros((*slices[0].shape[:-1], missing), x.dtype))
        x = stored(jnp.concatenate(slices, axis=-1))
    w = w.reshape(-1, form.c_out)
    if missing:
        w = jnp.concatenate([w, jnp.zeros((missing, form.c_out), w.dtype)])
    return _rows_dot(form, x, w)


def _along(form: ConvForm, x: Any, axis: int) -> list[Any]:
    """The shifted slices of the padded input along one spatial axis."""
    step, stride, count = form.rhs_dilation[axis], form.strides[axis], form.out_spatial[axis]
    starts = [o * step for o in range(form.kernel[axis])]
    return [lax.slice_in_dim(x, s, s + (count - 1) * stride + 1, stride, axis + 1) for s in starts]


def blocks(form: ConvForm, x: Any, w: Any, x_zero: Any) -> Any:
    """`patches` of a few images at a time, so that the patches stay small."""
    divisors = [d for d in range(1, form.batch + 1) if form.batch % d == 0]
    count = max(d for d in divisors if patch_bytes(form) * d <= PATCH_BYTES * form.batch)
    part = dataclasses.replace(form, batch=count)
    images = x.reshape(form.batch // count, count, *x.shape[1:])
    out = lax.map(lambda some: patches(part, some, w, x_zero), images)
    return out.reshape(form.batch, *out.shape[2:])


def rows(form: ConvForm, x: Any, w: Any, x_zero: Any) -> Any:
    """Slices along the kernel's last axis side by side; one dot for each position on its other axes; the sum of the dots."""
    x = _bordered(form, x, x_zero)
    total = None
    for outer in offsets(form.kernel[:-1]):
        slices = [shifted(form, x, (*outer, i)) for i in range(form.kernel[-1])]
        part = _rows_dot(form, jnp.concatenate(slices, axis=-1), w[outer].reshape(-1, form.c_out))
        total = part if total is None else total + part
    return total


def _rows_dot(form: ConvForm, x: Any, w: Any) -> Any:
    out = dot(x.reshape(-1, x.shape[-1]), w)
    return out.reshape(form.batch, *form.out_spatial, form.c_out)


def multiply_adds(form: ConvForm, x: Any, w: Any, x_zero: Any, dtype: Any = jnp.int32) -> Any:
    """Depthwise: one multiply-add of the whole image for each position of the kernel, in one loop with the result's reader."""
    x = _bordered(form, x, x_zero)
    multiplier = form.c_out // form.c_in
    if multiplier > 1:
        x = jnp.repeat(x, multiplier, axis=-1)
    total = None
    for offset in offsets(form.kernel):
        weight = w[offset].reshape((1,) * (x.ndim - 1) + (-1,))
        term = shifted(form, x, offset).astype(dtype) * weight.astype(dtype)
        total = term if total is None else total + term
    return total


def native(form: ConvForm, x: Any, w: Any, x_zero: Any) -> Any:
    """XLA's int8 convolution. A convolution in 1-D gets an axis of size 1, because XLA:CPU is fast only in two dimensions.

    Borders are filled before the codes are re-centred to int8. Some releases of XLA:CPU miscompile a pad of int8 zeros right
    before a convolution; the re-centring between the two keeps XLA from folding the pad into the convolution.
    """
    x = filled(form, x, x_zero)
    correction: Any = 0
    if x.dtype == jnp.uint8:
        correction = 128 * jnp.sum(w, axis=tuple(range(w.ndim - 1)), dtype=jnp.int32, keepdims=True)
        x = as_signed(x)
    one_dimension = len(form.kernel) == 1
    strides, dilation = form.strides, form.rhs_dilation
    if one_dimension:
        x, w, strides, dilation = x[:, None], w[None], (1, *strides), (1, *dilation)
    out = lax.conv_general_dilated(
        x, w, strides, [(0, 0)] * len(strides), rhs_dilation=dilation, dimension_numbers=channels_last(len(strides)),
        feature_group_count=form.groups, preferred_element_type=jnp.int32,
    )  # fmt: skip
    if one_dimension:
        out = out[:, 0]
    return out + correction


def or_native(fast: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a fast form on all platforms except TPUs, which have int8 convolutions in hardware and run `native`.

    The fast forms exist because XLA:CPU's convolution is slow. GPUs run them too, because their libraries have int8 matrix
    products, but no int8 convolutions with int32 results.
    """

    def run(form: ConvForm, x: Any, w: Any, x_zero: Any) -> Any:
        def tpu(x: Any, w: Any, zero: Any) -> Any:
            return native(form, x, w, zero)

        def default(x: Any, w: Any, zero: Any) -> Any:
            return fast(form, x, w, zero)

        return lax.platform_dependent(x, w, jnp.asarray(x_zero), tpu=tpu, default=default)

    return run
