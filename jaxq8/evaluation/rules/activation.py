"""Smooth activations are computed in float inside the reader's loop. Known ranges save the next encoding a pass."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxq8._compat import primitives
from jaxq8.evaluation.interpreter import Context, float_fallback, rule
from jaxq8.evaluation.values import INF, Array, Value, bounds

KNOWN_RANGES = {
    primitives.logistic_p: (0.0, 1.0),
    primitives.tanh_p: (-1.0, 1.0),
    primitives.erf_p: (-1.0, 1.0),
    primitives.sin_p: (-1.0, 1.0),
    primitives.cos_p: (-1.0, 1.0),
}
MONOTONE_FROM_ZERO = {primitives.abs_p: (0.0, INF), primitives.exp_p: (0.0, INF)}


def _known_range(ctx: Context, x: Value, **params: Any) -> Value:
    """sigmoid, tanh, erf, sin, cos, exp, abs: bounds that hold for any input."""
    result = float_fallback(ctx, (x,))[0]
    lo, hi = (KNOWN_RANGES | MONOTONE_FROM_ZERO)[ctx.eqn.primitive]
    assert isinstance(result, Array)
    return dataclasses.replace(result, lo=lo, hi=hi)


rule(*KNOWN_RANGES, *MONOTONE_FROM_ZERO)(_known_range)


@rule(primitives.select_n_p)
def select_n(ctx: Context, which: Value, *cases: Value, **params: Any) -> Value:
    """where(): the result lies between the smallest lower and the largest upper bound of the cases (leaky relu, masks)."""
    result = float_fallback(ctx, (which, *cases))[0]
    limits = [bounds(c) for c in cases]
    assert isinstance(result, Array)
    return dataclasses.replace(result, lo=min(lo for lo, _ in limits), hi=max(hi for _, hi in limits))
