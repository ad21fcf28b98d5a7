"""The disturbance that eight-bit rounding would make, added to a program in float: where the bound of the errors comes from.

Every value that a program computes, its weights and its inputs get noise of half a step at most, a step being 1/255 of the
value's range (1/127 of the largest magnitude for weights and right operands, whose codes are symmetric). Half of the draws are
independent in every element; in the others all elements of a value are off by the same, as where many are equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DRAWS = 6
FLOAT = 1e-4  # what float32 rounds, as noise of the same form: of half a step of eight bits
EPSILON = 2e-6  # of the size of a result: what float32 rounds at least
LENGTH = 50_000  # elements of noise, of which every value takes some
MARGIN = 4  # an error may be that many times the largest of the draws


def numbers(draw: int, size: float) -> np.ndarray:
    """The noise of one draw, in steps: half of the draws are the same number everywhere."""
    pick = np.random.default_rng(draw)
    even = draw % 2 == 0
    return np.float32(size) * (
        pick.uniform(-0.5, 0.5, LENGTH) if even else np.full(LENGTH, pick.choice([-0.5, -0.4, 0.4, 0.5]))
    ).astype(np.float32)


NOTHING = np.zeros(LENGTH, np.float32)
FLOATS = [numbers(d, FLOAT) for d in range(2)]


def marks(steps: Any, own: Any) -> dict[str, Callable[..., Any]]:
    """What the marks of a program mean: see `operations`.

    Args:
      steps: From `numbers`, or zeros, which leave every value as it is, NaN included; traced.
      own: Whether ranges are static: each value has the one of its data then, also where construction tells another, and the
        parts of a joined value keep steps of their own where their ranges differ by more than 8; traced.
    """
    count = itertools.count()

    def disturbed(v: Any, step: Any) -> Any:
        number = next(count)
        start = number * 2503 % (LENGTH - v.size)
        sign = np.float32((-1) ** (number * 2654435761 >> 7))
        noise = jax.lax.stop_gradient(steps[start : start + v.size].reshape(v.shape) * (sign * step))
        return jnp.where((steps[0] != 0) & (v != 0), v + noise, v)  # zero is exactly a code

    def every(v: Any, times: float = 1.0) -> Any:
        if not jnp.issubdtype(v.dtype, jnp.floating) or v.size == 0:
            return v
        return disturbed(v, times * (jnp.maximum(jnp.max(v), 0) - jnp.minimum(jnp.min(v), 0)) / 255)

    def symmetric(v: Any) -> Any:
        return disturbed(v, jnp.max(jnp.abs(v)) / 127) if v.size else v

    def joined(parts: list[Any], axis: int) -> Any:
        ranges = [jnp.maximum(jnp.max(a), 0) - jnp.minimum(jnp.min(a), 0) for a in parts]
        widest = jnp.maximum(jnp.max(jnp.concatenate([a.ravel() for a in parts])), 0) - jnp.minimum(
            jnp.min(jnp.concatenate([a.ravel() for a in parts])), 0
        )
        kept = [jnp.where((own > 0) & (8 * r < widest), r, widest) / 255 for r in ranges]
        return jnp.concatenate([disturbed(a, step) for a, step in zip(parts, kept, strict=True)], axis)

    def known(width: float) -> Callable[..., Any]:
        return lambda v: jnp.where(own > 0, every(v, 2.0), disturbed(v, 2 * width / 255))

    return {
        "E": every, "E2": lambda v: every(v, 2.0), "S": symmetric, "J": joined,
        **{f"K{width}": known(float(width)) for width in (1, 2, 3, 6)},
        # In a loop a static range is that of all steps, however small the values of one step are.
        "L2": lambda v: disturbed(v, 4 / 255),
    }  # fmt: skip


def norm(a: Any) -> float:
    """The 2-norm, in float64."""
    return float(np.linalg.norm(np.asarray(a, np.float64).ravel()))


def distance(a: Any, b: Any) -> float:
    """The 2-norm of a difference; NaN where infinity meets infinity."""
    with np.errstate(invalid="ignore"):
        return norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))


def largest(exact: list[Any], draws: list[list[Any]]) -> list[float]:
    """For each output the largest deviation of the draws."""
    return [max(distance(e, d[i]) for d in draws) for i, e in enumerate(exact)]


def deviations(
    run: Callable[[np.ndarray], list[Any]], steps: list[np.ndarray]
) -> tuple[list[Any], list[float], list[float]]:
    """(exact results, largest deviation of each by eight bits, by float32) of a function of noise."""
    exact = run(NOTHING)
    moved = largest(exact, [run(s) for s in steps])
    floor = largest(exact, [run(s) for s in FLOATS])
    return exact, moved, [f + EPSILON * norm(e) for f, e in zip(floor, exact, strict=True)]


def limits(moved: list[float], floor: list[float], times: float) -> list[float]:
    """How far apart results may be: `times` the noise, and what float32 rounds."""
    return [times * m + f for m, f in zip(moved, floor, strict=True)]


def differences(a: list[Any], b: list[Any], allowed: list[float], what: str = "output") -> list[str]:
    """A line for each pair that is further apart than its limit, NaN included."""
    found = []
    for i, (one, other, limit) in enumerate(zip(a, b, allowed, strict=True)):
        if one.shape != other.shape:
            found.append(f"{what} {i} has shape {other.shape}, not {one.shape}")
            continue
        apart, size = distance(one, other), norm(one) or 1.0
        if not apart <= limit:
            found.append(f"{what} {i}: {apart / size:.3g} of its size apart, allowed {limit / size:.3g}")
    return found
