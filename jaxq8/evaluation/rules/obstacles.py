"""Why a contraction stays in float: its mode, its parameters, its dtypes or its shapes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxq8.config import Config
from jaxq8.evaluation import float_modes
from jaxq8.evaluation.interpreter import Context
from jaxq8.evaluation.values import Value
from jaxq8.plan import Reason

# These rules know the meaning of these parameters. A site with any other parameter that is not None stays in float.
DOT_PARAMS = {"dimension_numbers", "precision", "preferred_element_type"}
CONV_PARAMS = {
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
    "batch_group_count", "precision", "preferred_element_type",
}  # fmt: skip


def float_mode(config: Config) -> tuple[Reason, str] | None:
    """The reason why no contraction of this configuration runs in eight bits, if there is one."""
    if config.mode == "off":
        return Reason.OFF, ""
    if config.mode in float_modes.FLOAT_MODES:
        return Reason.MODE, config.mode
    return None


def why_float(
    ctx: Context, operands: tuple[Value, Value], config: Config, unknown: set[str], params: Any
) -> tuple[Reason, str] | None:
    """The first reason why this contraction cannot or shall not run in eight bits; None if there is none."""
    x, w = operands
    by_mode = float_mode(config)
    if by_mode is not None:
        return by_mode
    if unknown:
        return Reason.UNSUPPORTED, f"parameters {', '.join(sorted(unknown))}"
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in operands):
        return Reason.DTYPE, f"{x.dtype}, {w.dtype}"
    if 0 in x.shape or 0 in w.shape or 0 in ctx.eqn.outvars[0].aval.shape:
        return Reason.EMPTY, ""
    wanted = params.get("preferred_element_type")
    if wanted is not None and not jnp.issubdtype(wanted, jnp.floating):
        return Reason.DTYPE_REQUEST, str(wanted)
    if ctx.site.op == "dot" and ctx.site.weight is None and not config.attention and _is_batched(ctx):
        return Reason.ATTENTION, ""
    return None


def unknown_parameters(params: Any, known: set[str]) -> set[str]:
    """The names of parameters that are set and whose meaning a rule does not know."""
    return {name for name, value in params.items() if name not in known and value is not None}


def _is_batched(ctx: Context) -> bool:
    """Whether a dot has batch axes, as the products of attention do."""
    return bool(ctx.eqn.params["dimension_numbers"][1][0])
