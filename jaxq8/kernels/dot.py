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
    """A uint8 code as the int8 code that is 128 smaller: the top bit flipped."""
    return lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8)


def as_unsigned(x: Any) -> Any:
    """An int8 code as the uint8 code that is 128 larger."""
    return lax.bitcast_convert_type(x, jnp.uint8) ^ jnp.uint8(128)


def dot(x: Any, w: Any, transposed: bool = False) -> Any:
    """``(batch, m, k) . (batch, k, n)`` or ``(m, k) . (k, n)`` of codes, exact in int32; `transposed`: w has n before k.

    On x86 CPUs with VNNI or AMX the activation goes in unsigned, everywhere else signed; either is 128 away from the other,
    which adds ``128 * sum(w)`` per column. One traced function holds the right form for each platform.
    """
    cpu = _mixed if mixed_dots_are_fast() else _signed
    rows = x.shape[-2]
    if export.is_symbolic_dim(rows) and not certainly_less(1, rows):
        return dot_of_rows(jnp.concatenate([x, x[..., :1, :]], axis=-2), w, cpu, transposed)[..., :rows, :]
    if rows == 1:  # a single row has no fast integer kernel: two rows have one
        return dot_of_rows(jnp.concatenate([x, x], axis=-2), w, cpu, transposed)[..., :1, :]
    return dot_of_rows(x, w, cpu, transposed)


def dot_and_sums(form: DotForm, x: Any, w: Any) -> tuple[Any, Any]:
    """``(m, k) . (k, n)`` of codes, and the sum of the weights of each channel: ``(m, n)`` and ``(n,)``, int32.

    On CPU the sums are one more row of the product, a row of ones: the weights are read once. A product of its own for them
    takes 12 to 14% of an encoder at batch 1, and half of the time of a single row. Elsewhere rows come in tiles, and one
    more would be worth a whole one: there the sums are taken by themselves.
    """
    cpu = _mixed_and_sums if mixed_dots_are_fast() else _signed_and_sums
    order = form.transposed
    return lax.platform_dependent(
        x, w, cpu=lambda x, w: cpu(x, w, order), default=lambda x, w: (_signed(x, w, order), weight_sum(form, w))
    )  # fmt: skip


def rows_are_split(x: Any) -> bool:
    """Whether an array is known to lie on several devices (explicit axes of a mesh): another row would fit none of them."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def _mixed_and_sums(x: Any, w: Any, transposed: bool) -> tuple[Any, Any]:
    unsigned = x if x.dtype == jnp.uint8 else as_unsigned(x)
    out = _mixed(_with_ones(unsigned), w, transposed)
    values, sums = out[:-1], out[-1:]  # of one rank: JAX may be told to refuse other broadcasts
    return (values if x.dtype == jnp.uint8 else values - 128 * sums), sums[0]


def _signed_and_sums(x: Any, w: Any, transposed: bool) -> tuple[Any, Any]:
    signed = as_signed(x) if x.dtype == jnp.uint8 else x
    out = _plain(_with_ones(signed), w, transposed)
    values, sums = out[:-1], out[-1:]
    return (values + 128 * sums if x.dtype == jnp.uint8 else values), sums[0]


def _with_ones(x: Any) -> Any:
    return jnp.concatenate([x, jnp.ones((1, x.shape[-1]), x.dtype)])


def dot_of_rows(x: Any, w: Any, cpu: Any, transposed: bool = False) -> Any:
    """The product in the form of the platform that runs it."""
    forms = {"cpu": cpu, "default": _signed}
    forms = {platform: functools.partial(run, transposed=transposed) for platform, run in forms.items()}
    return lax.platform_dependent(x, w, **forms)


def weight_sum(form: Form, w: Any) -> Any:
    """The sum of weight codes per output channel: ``(n,)``, ``(batch, 1, n)`` or ``(c_out,)``, int32 (float32 simulated).

    It is taken by the integer kernels themselves, as a product with ones: XLA:CPU widens the weights to int32 in memory
    before it adds them, which costs more than the contraction.
    """
    transposed = isinstance(form, DotForm) and form.transposed
    if jnp.issubdtype(w.dtype, jnp.floating):
        flat = w if isinstance(form, DotForm) else w.reshape(-1, w.shape[-1])
        sums = jnp.expand_dims(jnp.sum(flat, axis=-1 if transposed else -2), -2)
        return sums if isinstance(form, DotForm) and form.batch > 0 else sums[0]
    if not isinstance(form, DotForm):
        w = w.reshape(-1, w.shape[-1])
    if is_barred("weight_sum"):
        sums = _column_sum(w, transposed)
        return sums if isinstance(form, DotForm) and form.batch else sums[0]
    ones = jnp.ones((*w.shape[:-2], 2, w.shape[-1 if transposed else -2]), jnp.uint8)
    sums = lax.platform_dependent(
        ones, w,
        cpu=lambda x, w: _mixed(x, w, transposed) if mixed_dots_are_fast() else _plain(x.astype(jnp.int8), w, transposed),
        default=lambda x, w: _plain(x.astype(jnp.int8), w, transposed),
    )  # fmt: skip
    return sums[..., :1, :] if isinstance(form, DotForm) and form.batch else sums[0]


def _numbers(x: Any, transposed: bool) -> Any:
    batch = tuple(range(x.ndim - 2))
    return (((x.ndim - 1,), (x.ndim - (1 if transposed else 2),)), (batch, batch))


def _column_sum(w: Any, transposed: bool) -> Any:
    return jnp.expand_dims(jnp.sum(w, axis=-1 if transposed else -2, dtype=jnp.int32), -2)


def _mixed(x: Any, w: Any, transposed: bool = False) -> Any:
    """uint8 x int8; without this precision JAX widens mixed operands to int32 first."""
    unsigned = x if x.dtype == jnp.uint8 else as_unsigned(x)
    out = _mixed_product(unsigned, w, transposed=transposed)
    return out if x.dtype == jnp.uint8 else out - 128 * _column_sum(w, transposed)


@functools.partial(apart, static=("transposed",))
def _mixed_product(x: Any, w: Any, *, transposed: bool) -> Any:
    """The only place where a product of uint8 and int8 is made.

    It is a computation apart, because XLA moves transpositions of its operands and its result into a product that it can
    see (the algebraic simplifier writes ``(a b)^T`` as ``b^T a^T``, layout assignment and transpose folding do likewise), and
    then XLA:CPU refuses the product of int8 and uint8 that comes out (RET_CHECK, SameElementType).
    """
    return lax.dot_general(
        x,
        w,
        _numbers(x, transposed),
        precision=lax.DotAlgorithmPreset.DEFAULT,
        preferred_element_type=jnp.int32,
    )


def _signed(x: Any, w: Any, transposed: bool = False) -> Any:
    """int8 x int8."""
    signed = as_signed(x) if x.dtype == jnp.uint8 else x
    out = _plain(signed, w, transposed)
    return out + 128 * _column_sum(w, transposed) if x.dtype == jnp.uint8 else out


def _plain(x: Any, w: Any, transposed: bool) -> Any:
    return lax.dot_general(x, w, _numbers(x, transposed), preferred_element_type=jnp.int32)
