"""Eight-bit matrix products in the forms that XLA hands to fast integer kernels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from jaxq8._compat import apart
from jaxq8.kernels.barred import is_barred
from jaxq8.kernels.forms import DotForm, Form
from jaxq8.kernels.processor import mixed_dots_are_fast
from jaxq8.numerics.sizes import certainly_less


def as_signed(x: Any) -> Any:
    """A uint8 code as the int8 code that is 128 smaller, by flipping the top bit."""
    return lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8)


def as_unsigned(x: Any) -> Any:
    """An int8 code as the uint8 code that is 128 larger."""
    return lax.bitcast_convert_type(x, jnp.uint8) ^ jnp.uint8(128)


def dot(x: Any, w: Any, transposed: bool = False) -> Any:
    """``(batch, m, k) . (batch, k, n)`` or ``(m, k) . (k, n)`` of codes, exact in int32; if `transposed`, w has n before k.

    The kernels of x86 CPUs with VNNI or AMX take an unsigned activation, all others a signed one. Signed codes are 128 smaller;
    the difference is corrected by ``128 * sum(w)`` per column. One traced function holds the right form for each platform.
    """
    cpu = _mixed if mixed_dots_are_fast() else _signed
    rows = x.shape[-2]
    if export.is_symbolic_dim(rows) and not certainly_less(1, rows):
        return dot_of_rows(jnp.concatenate([x, x[..., :1, :]], axis=-2), w, cpu, transposed)[..., :rows, :]
    if rows == 1:  # a single row has no fast integer kernel, two rows have one
        return dot_of_rows(jnp.concatenate([x, x], axis=-2), w, cpu, transposed)[..., :1, :]
    return dot_of_rows(x, w, cpu, transposed)


def dot_and_sums(form: DotForm, x: Any, w: Any) -> tuple[Any, Any]:
    """``(m, k) . (k, n)`` of codes, and the sum of the weights of each channel: ``(m, n)`` and ``(n,)``, int32.

    On CPU the sums are one more row of the product, which comes from a row of ones, so that the weights are read once. A
    separate product for the sums takes 12 to 14% of the time of an encoder at batch 1, and half of the time of a single row. On
    other platforms rows are computed in tiles, and one more row could cost a whole tile; there the sums are a separate product.
    """
    on_cpu = _mixed_and_sums if mixed_dots_are_fast() else _signed_and_sums

    def cpu(x: Any, w: Any) -> tuple[Any, Any]:
        return on_cpu(x, w, form.transposed)

    def default(x: Any, w: Any) -> tuple[Any, Any]:
        return _signed(x, w, form.transposed), weight_sum(form, w)

    return lax.platform_dependent(x, w, cpu=cpu, default=default)


def rows_are_split(x: Any) -> bool:
    """Whether an array is known to lie on several devices (explicit axes of a mesh), so that no row can be added to it."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def _mixed_and_sums(x: Any, w: Any, transposed: bool) -> tuple[Any, Any]:
    unsigned = x if x.dtype == jnp.uint8 else as_unsigned(x)
    out = _mixed(_with_ones(unsigned), w, transposed)
    # The sums keep the rank of the values, because JAX can be configured to refuse broadcasts of unequal rank.
    values, sums = out[:-1], out[-1:]
    if x.dtype != jnp.uint8:
        values = values - 128 * sums
    return values, sums[0]


def _signed_and_sums(x: Any, w: Any, transposed: bool) -> tuple[Any, Any]:
    signed = as_signed(x) if x.dtype == jnp.uint8 else x
    out = _plain(_with_ones(signed), w, transposed)
    values, sums = out[:-1], out[-1:]
    if x.dtype == jnp.uint8:
        values = values + 128 * sums
    return values, sums[0]


def _with_ones(x: Any) -> Any:
    return jnp.concatenate([x, jnp.ones((1, x.shape[-1]), x.dtype)])


def dot_of_rows(x: Any, w: Any, cpu: Any, transposed: bool = False) -> Any:
    """The product in the form of the platform that runs it."""
    forms = {"cpu": cpu, "default": _signed}
    forms = {platform: functools.partial(run, transposed=transposed) for platform, run in forms.items()}
    return lax.platform_dependent(x, w, **forms)


def weight_sum(form: Form, w: Any) -> Any:
    """The sum of the weight codes of each output channel: ``(n,)``, ``(batch, 1, n)`` or ``(c_out,)``.

    The sums are int32, or float32 while simulated. The integer kernels compute them as a product with ones, because XLA:CPU
    would widen the weights to int32 in memory before it adds them, which costs more than the contraction.
    """
    transposed = isinstance(form, DotForm) and form.transposed
    batched = isinstance(form, DotForm) and bool(form.batch)
    if not isinstance(form, DotForm):
        w = w.reshape(-1, w.shape[-1])
    if jnp.issubdtype(w.dtype, jnp.floating):
        sums = jnp.expand_dims(jnp.sum(w, axis=-1 if transposed else -2), -2)
    elif is_barred("weight_sum"):
        sums = _column_sum(w, transposed)
    else:
        sums = _product_with_ones(w, transposed)
        if batched:
            sums = sums[..., :1, :]
    return sums if batched else sums[0]


def _product_with_ones(w: Any, transposed: bool) -> Any:
    """Two equal rows of column sums, by the integer kernels: they are fast for two rows, but not for one."""
    ones = jnp.ones((*w.shape[:-2], 2, w.shape[-1 if transposed else -2]), jnp.uint8)

    def cpu(x: Any, w: Any) -> Any:
        return _mixed(x, w, transposed) if mixed_dots_are_fast() else default(x, w)

    def default(x: Any, w: Any) -> Any:
        return _plain(x.astype(jnp.int8), w, transposed)

    return lax.platform_dependent(ones, w, cpu=cpu, default=default)


def _numbers(x: Any, transposed: bool) -> Any:
    batch = tuple(range(x.ndim - 2))
    return (((x.ndim - 1,), (x.ndim - (1 if transposed else 2),)), (batch, batch))


def _column_sum(w: Any, transposed: bool) -> Any:
    return jnp.expand_dims(jnp.sum(w, axis=-1 if transposed else -2, dtype=jnp.int32), -2)


def _mixed(x: Any, w: Any, transposed: bool = False) -> Any:
    """The product of an activation as uint8 and a weight as int8."""
    unsigned = x if x.dtype == jnp.uint8 else as_unsigned(x)
    out = _mixed_product(unsigned, w, transposed=transposed)
    return out if x.dtype == jnp.uint8 else out - 128 * _column_sum(w, transposed)


@functools.partial(apart, static=("transposed",))
def _mixed_product(x: Any, w: Any, *, transposed: bool) -> Any:
    """The only place where a product of uint8 and int8 is made.

    The product is a separate computation that XLA does not inline (`apart`). XLA moves transpositions of operands and result
    into products that it can see: the algebraic simplifier writes ``(a b)^T`` as ``b^T a^T``, and layout assignment and
    transpose folding have similar effects. XLA:CPU then refuses the product of int8 and uint8 that results (RET_CHECK,
    SameElementType). The precision is given because JAX would otherwise widen operands of different dtypes to int32.
    """
    return lax.dot_general(
        x,
        w,
        _numbers(x, transposed),
        precision=lax.DotAlgorithmPreset.DEFAULT,
        preferred_element_type=jnp.int32,
    )


def _signed(x: Any, w: Any, transposed: bool = False) -> Any:
    """The product of an activation as int8 and a weight as int8."""
    signed = as_signed(x) if x.dtype == jnp.uint8 else x
    out = _plain(signed, w, transposed)
    return out + 128 * _column_sum(w, transposed) if x.dtype == jnp.uint8 else out


def _plain(x: Any, w: Any, transposed: bool) -> Any:
    return lax.dot_general(x, w, _numbers(x, transposed), preferred_element_type=jnp.int32)
