"""What `quantize` must keep of a function, checked on one case."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxq8 as q8
from jaxq8.analysis.traced_call import Call
from tests.small import ALWAYS, SQNR_DB, sqnr_db
from tests.sweep.data import LEFT, RIGHT, X
from tests.sweep.table import Case

# XLA compiles two programs: sums in another order and fused multiply-adds move the last bits of float32's 24; a function
# that amplifies its argument's error more than 2**7 times would need another bound.
ROUNDING = 2.0**-17


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: how many of its sites read codes, alone and after a product, and the error in dB."""

    alone: int
    after: int
    sqnr_alone: float
    sqnr_after: float


def check(case: Case) -> Outcome:
    """Runs a case alone and on the eight-bit product of exact factors.

    Raises:
      AssertionError: Structure, shape, dtype or values are not those that the float function has.
    """
    alone, left = _compare(case, X, 0)
    after, right = _compare(lambda x: case(x @ RIGHT), LEFT, 1)
    return Outcome(alone, after, left, right)


def _compare(function: Any, x: jax.Array, known: int) -> tuple[int, float]:
    """(sites in eight bits or with eight-bit weights, beside the known exact one; SQNR)."""
    expected = jax.jit(lambda a: function(a))(x)
    found = jax.jit(q8.quantize(lambda a: function(a), ALWAYS))(x)
    plan = q8.explain(lambda a: function(a), x, config=ALWAYS)
    count = sum(s.eight_bit or bool(s.weights) for s in plan.sites) - known
    _same_form(expected, found)
    pairs = [
        (_numbers(e), _numbers(f))
        for e, f in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    ]
    if not Call.trace(function, (x,), {}).analyse(ALWAYS).sites:  # `quantize` returns the function itself
        for e, f in pairs:
            np.testing.assert_array_equal(f, e)
    elif count <= 0:
        for e, f in pairs:
            _within_rounding(e, f)
    return count, _error(pairs, count)


def _same_form(expected: Any, found: Any) -> None:
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    forms = [
        [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)] for tree in (expected, found)
    ]
    assert forms[0] == forms[1]


def _numbers(x: Any) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _within_rounding(expected: np.ndarray, found: np.ndarray) -> None:
    largest = np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=float(ROUNDING * largest))


def _error(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> float:
    """SQNR of finite numbers; functions with contractions of their own have the error of two operands of eight bits."""
    kept = [(e[np.isfinite(e)], f[np.isfinite(e)]) for e, f in pairs if e.dtype.kind == "f"]
    if count <= 0 or not any(e.size for e, _ in kept):
        return float("inf")
    found = sqnr_db([e for e, _ in kept], [f for _, f in kept])
    assert found >= SQNR_DB, f"{found:.1f} dB"
    return found
