"""The modes that compute contractions in float, and what they do to operands and results."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxq8._compat import primitives
from jaxq8.evaluation.interpreter import Context
from jaxq8.evaluation.values import Array, Value, to_real
from jaxq8.kernels import float_forms
from jaxq8.kernels.canonical import conv_layout
from jaxq8.numerics.qtensor import extremes
from jaxq8.numerics.rounding import straight_through

FLOAT_MODES = ("weights", "weights_rounded", "round")
# Modes in which weights are replaced by their codes before anything is computed.
ENCODES_WEIGHTS = ("eightbit", "weights", "weights_rounded", "simulate")


def prepare(ctx: Context, operands: Sequence[Value]) -> list[Value]:
    """The operands of a float contraction as arrays: weights that are codes are decoded here, where they are used."""
    return [Array(to_real(v)) for v in operands]


def finish(ctx: Context, result: Value) -> Value:
    """In mode "round" the result rounded to 2**bits steps between its extremes (RoundToSteps, 2016), else the result."""
    if ctx.config.mode != "round":
        return result
    real = to_real(result)
    low, high = map(jax.lax.stop_gradient, extremes(real, ()))
    width = (high - low) / (2**ctx.config.activations.bits - 1)
    steps = (real - low) / jnp.where(width > 0, width, 1)
    rounded = low + straight_through(steps, jnp.round(steps)) * width
    return Array(jnp.where(width > 0, rounded, real).astype(real.dtype))


def better_float(ctx: Context, operands: Sequence[Value]) -> Array | None:
    """A depthwise convolution or a large batched product in the form that XLA:CPU runs fastest; None for anything else."""
    if ctx.eqn.primitive not in (primitives.dot_general_p, primitives.conv_general_dilated_p):
        return None
    params = ctx.eqn.params
    x, w = (to_real(v) for v in operands)
    if ctx.eqn.primitive is primitives.dot_general_p:
        pays = float_forms.batched_pays(params, x, w, ctx.eqn.outvars[0].aval.shape)
        return Array(float_forms.batched_dot(x, w, **params)) if pays else None
    is_plain = params["batch_group_count"] == 1 and x.dtype == w.dtype == jnp.float32
    if not is_plain or params["feature_group_count"] == 1:
        return None
    layout = conv_layout(params, x.shape, w.shape)
    if not (layout.form.depthwise and float_forms.pays(layout.form)):
        return None
    result = float_forms.depthwise(layout.form, layout.activation(x), layout.weight(w))
    return Array(layout.result(result))
