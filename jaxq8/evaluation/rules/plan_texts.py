"""The texts by which the plan describes an eight-bit contraction: its operands, and the source of its range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxq8._compat import source_line
from jaxq8.analysis.sites import part_name
from jaxq8.evaluation.interpreter import Context
from jaxq8.evaluation.rules.joined import Group, Join, unlike
from jaxq8.evaluation.values import Accumulator, Array, Value, bounds
from jaxq8.numerics.qtensor import QTensor
from jaxq8.plan import SHARED


def described(q: QTensor) -> str:
    """Sign, bits and number of scales of codes: ``u8, 1 scale``."""
    sign = "s" if q.signed else "u"
    symmetric = " symmetric" if q.symmetric else ""
    scales = math.prod(q.scale.shape)
    plural = "" if scales == 1 else "s"
    return f"{sign}{q.bits}{symmetric}, {scales} scale{plural}"


def reads(activation: Value) -> str:
    """The form in which a contraction finds its activation: `SiteRecord.reads`."""
    if isinstance(activation, QTensor):
        return "codes"
    if isinstance(activation, Accumulator):
        return "int32"
    if not isinstance(activation, Array) or not activation.stored:
        return "int32, with elementwise arithmetic"
    if activation.argument:
        return "float: an argument"
    if activation.maker is None:
        return "float: a constant, or carried by a loop"
    line = source_line(activation.maker)
    place = f" at {line}" if line else ""
    return f"float: {activation.maker.primitive}{place}"


def range_source(ctx: Context, activation: Value) -> str:
    """Where the range of the activation comes from."""
    if isinstance(activation, QTensor) or getattr(activation, "codes", None) is not None:
        return "codes of its producer"
    if ctx.site.name in ctx.run.ranges:
        return "given"
    low, high = bounds(activation)
    if np.isfinite(low) and np.isfinite(high):
        return f"known {low:g}..{high:g}"
    return f"this run, from {low:g}" if np.isfinite(low) else "this run"


def shared(ctx: Context, join: Join, found: Sequence[Group]) -> str:
    """What a site does with joined parts: several products, or one range for all. Empty where each part has a range."""
    if len(found) > 1:
        return f"{len(found)} products: {unlike(found)}"
    names = (part_name(ctx.site.name, i) for i in range(len(join.parts)))
    if all(name in ctx.run.ranges for name in names):
        return ""
    return f"{len(join.parts)} {SHARED}"
