"""One model: does it trace, what share runs in eight bits, how far is the result from float, what does compiling cost."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxq8 as q8


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found; `error` is the text of a failure, and the rest is then empty."""

    name: str
    package: str
    macs: int = 0
    share: float = 0.0
    share_attention: float = 0.0
    sqnr_db: float = 0.0
    compile_float: float = 0.0
    compile_ratio: float = 0.0
    why: str = ""
    error: str = ""


def measure(name: str, package: str, build: Callable[[], Any]) -> Row:
    """Builds, quantizes and compares a model; failures become rows."""
    try:
        apply, variables, inputs = build()
    except Exception as error:
        return Row(name, package, error=f"not built: {_short(error)}")
    try:
        return _measured(name, package, apply, variables, inputs)
    except Exception as error:
        return Row(name, package, error=_short(error))


def _measured(name: str, package: str, apply: Any, variables: Any, inputs: Any) -> Row:
    plan = q8.explain(apply, variables, *inputs)
    attention = q8.explain(apply, variables, *inputs, config=q8.Config(attention=True))
    exact, seconds = _compiled(apply, variables, inputs)
    found, ours = _compiled(q8.quantize(apply), variables, inputs)
    return Row(name, package, plan.macs, plan.eight_bit_share, attention.eight_bit_share, _sqnr_db(exact, found),
               seconds, ours / seconds, _reasons(plan))  # fmt: skip


def _compiled(function: Any, variables: Any, inputs: Any) -> tuple[Any, float]:
    """(result, seconds to lower and compile once traced)."""
    traced = jax.jit(lambda *args: function(*args)).trace(variables, *inputs)
    start = time.perf_counter()
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    return jax.tree.map(np.asarray, program(variables, *inputs)), seconds


def _sqnr_db(exact: Any, found: Any) -> float:
    pairs = [
        (np.float64(e), np.float64(f))
        for e, f in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True)
    ]
    noise = sum(np.sum((e - f) ** 2) for e, f in pairs)
    signal = sum(np.sum(e**2) for e, _ in pairs)
    return float(10 * np.log10(signal / noise)) if noise else float("inf")


def _reasons(plan: q8.Plan) -> str:
    """Shares of multiply-adds that stay in float, by reason, the largest first."""
    shares: collections.Counter[str] = collections.Counter()
    for site in plan.sites:
        if site.macs and not site.eight_bit:
            shares[site.reason.name] += site.macs
    return ", ".join(f"{reason} {macs / plan.macs:.1%}" for reason, macs in shares.most_common())


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:220]}".replace("|", "/")
