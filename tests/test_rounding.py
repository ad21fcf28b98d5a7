"""Rounding schemes against exact arithmetic, their bias, and their registry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import jaxq8 as q8
from jaxq8.numerics import rounding
from jaxq8.numerics.rounding import Rounding, get_rounding, straight_through

HALF = Fraction(1, 2)


def exactly_half_away(x: Fraction) -> int:
    return math.floor(x + HALF) if x >= 0 else math.ceil(x - HALF)


# Scheme -> the same in exact arithmetic, and how far it may be from its argument.
EXACT: dict[str, tuple[Callable[[Fraction], int], float]] = {
    "half_even": (round, 0.5),
    "half_away": (exactly_half_away, 0.5),
    "rounded_minimum": (exactly_half_away, 0.5),
    "float_minimum": (exactly_half_away, 0.5),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "toward_zero": (math.trunc, 1),
}
STEPS = st.floats(-(2.0**25), 2.0**25, width=32)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(rounding, "_REGISTRY", dict(rounding._REGISTRY))


def test_every_scheme_is_under_test() -> None:
    assert set(q8.rounding_names()) == {*EXACT, "stochastic"}


@pytest.mark.parametrize("name", EXACT)
@given(x=STEPS)
@example(x=float(np.nextafter(np.float32(0.5), np.float32(0))))
@example(x=-float(np.nextafter(np.float32(0.5), np.float32(0))))
@example(x=2.0**23 + 1)
@example(x=2.5)
@example(x=-2.5)
def test_schemes_equal_exact_arithmetic(name: str, x: float) -> None:
    exact, bound = EXACT[name]
    result = float(get_rounding(name)(jnp.float32(x)))
    assert result == exact(Fraction(x))
    assert abs(Fraction(result) - Fraction(x)) <= bound


@given(x=st.floats(-100, 100, width=32), seed=st.integers(0, 2**31 - 1))
def test_stochastic_takes_one_of_the_two_neighbours(x: float, seed: int) -> None:
    result = float(get_rounding("stochastic")(jnp.float32(x), jax.random.key(seed)))
    assert result in (math.floor(x), math.ceil(x))


@pytest.mark.parametrize("x", [0.25, -0.25, 2.9, -7.5, 3.0])
def test_stochastic_is_unbiased(x: float, new_key: Callable[[], jax.Array]) -> None:
    draws = 20_000
    mean = get_rounding("stochastic")(jnp.full(draws, x), new_key()).mean(dtype=jnp.float32)
    fraction = x - math.floor(x)
    assert abs(float(mean) - x) <= 5 * math.sqrt(fraction * (1 - fraction) / draws) + 1e-5


def test_stochastic_is_reproducible_under_jit_and_vmap(new_key: Callable[[], jax.Array]) -> None:
    scheme, keys = get_rounding("stochastic"), jax.random.split(new_key(), 3)
    x = jnp.linspace(-3, 3, 101)
    one_by_one = np.stack([scheme(x, key) for key in keys])
    assert (jax.vmap(scheme, (None, 0))(x, keys) == one_by_one).all()
    assert (jax.jit(scheme.__call__)(x, keys[0]) == one_by_one[0]).all()
    assert (scheme(x, keys[0]) == one_by_one[0]).all()
    assert (one_by_one[0] != one_by_one[1]).any()


def test_stochastic_needs_a_key() -> None:
    with pytest.raises(
        q8.SpecError, match=r"rounding 'stochastic' draws random numbers: pass key=jax\.random\.key"
    ):
        q8.QTensor.from_float(jnp.ones(3), rounding="stochastic")


# --- The bias of 2016


def mean_error(scheme: str, x: Any, low: float, high: float) -> float:
    q = q8.QTensor.from_float(x, q8.Spec(range=q8.Range(low, high)), rounding=scheme)
    return float(np.mean(np.asarray(q.dequantize(), np.float64) - np.asarray(x, np.float64)))


@pytest.mark.parametrize("offset", [0.1, 0.25, 0.4, 0.6, 0.9])
def test_subtracting_the_rounded_minimum_is_unbiased_and_the_float_minimum_is_not(offset: float) -> None:
    # One step is 1, the minimum misses the grid of whole numbers by `offset`, and half of the data are relu's zeros.
    low = -20 - offset
    spacing = 0.01
    x = np.maximum(np.arange(-20_000, 20_000) * spacing, 0).astype(np.float32)
    evenly_spread = (
        spacing / 2 + 1e-4
    )  # how far the errors of evenly spread numbers are from cancelling; float32
    assert abs(mean_error("rounded_minimum", x, low, low + 255)) <= evenly_spread
    assert mean_error("rounded_minimum", np.zeros(1, np.float32), low, low + 255) == 0
    miss = round(offset) - offset  # to the nearest code: what every zero becomes
    assert mean_error("float_minimum", np.zeros(1, np.float32), low, low + 255) == pytest.approx(
        miss, abs=1e-4
    )
    zeros = float((x == 0).mean())
    assert mean_error("float_minimum", x, low, low + 255) == pytest.approx(zeros * miss, abs=evenly_spread)


def test_the_bias_is_zero_within_its_interval_for_the_rounded_minimum_alone() -> None:
    """10,000 normal numbers behind a relu, in the range that an accumulator had before it: 95% intervals of the mean error."""
    x = np.maximum(np.random.default_rng(0).standard_normal(10_000), 0).astype(np.float32)
    zero = {}
    for scheme in ("rounded_minimum", "float_minimum"):
        q = q8.QTensor.from_float(x, q8.Spec(range=q8.Range(-1.5, 4.1)), rounding=scheme)
        _, low, high = q8.bootstrap(np.asarray(q.dequantize(), np.float64) - x)
        zero[scheme] = low <= 0 <= high
    assert zero == {"rounded_minimum": True, "float_minimum": False}


# --- The registry


@pytest.mark.usefixtures("own_registries")
def test_a_users_scheme_registers_in_one_line() -> None:
    q8.register_rounding("half_down")(lambda x: jnp.ceil(x - 0.5))
    assert "half_down" in q8.rounding_names()
    q = q8.QTensor.from_float(jnp.array([0.0, 2.5, 255.0]), rounding="half_down")
    assert q.values.tolist() == [0, 2, 255]
    assert q8.Config(rounding="half_down").rounding == "half_down"


def test_a_keyed_scheme_gets_the_key(new_key: Callable[[], jax.Array]) -> None:
    @q8.register_rounding("dithered", keyed=True)
    def dithered(x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.round(x + jax.random.uniform(key, x.shape, minval=-0.5, maxval=0.5))

    key, x = new_key(), jnp.linspace(0, 255, 11)
    q = q8.QTensor.from_float(x, rounding="dithered", key=key)
    assert q.values.tolist() == jnp.clip(dithered(x, key), 0, 255).tolist()


def test_a_function_is_a_scheme() -> None:
    def quarter(x: jax.Array) -> jax.Array:
        return jnp.floor(x + 0.25)

    scheme = get_rounding(quarter)
    assert scheme.name == "quarter"
    assert get_rounding(scheme) is scheme
    assert q8.QTensor.from_float(jnp.array([0.0, 1.7, 1.8, 255.0]), rounding=quarter).values.tolist() == [
        0,
        1,
        2,
        255,
    ]


def test_a_name_is_given_once() -> None:
    def first(x: jax.Array) -> jax.Array:
        return x

    q8.register_rounding("mine")(first)
    q8.register_rounding("mine")(first)  # a module that is imported again
    text = r"rounding 'mine' is already registered by .*first; .*exact.* needs another name"
    with pytest.raises(q8.RuleError, match=text):
        q8.register_rounding("mine")(exactly_half_away)


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = ", ".join(q8.rounding_names())
    with pytest.raises(
        q8.SpecError, match=re.escape(f"unknown rounding 'nearest'; known: {known}, or pass a function")
    ):
        get_rounding("nearest")


# --- Straight through


@pytest.mark.parametrize("name", EXACT)
@given(x=st.floats(-1000, 1000, width=32, allow_subnormal=False))
def test_straight_through_rounds_in_value_and_not_in_derivative(name: str, x: float) -> None:
    scheme: Rounding = get_rounding(name)
    value, derivative = jax.value_and_grad(lambda v: straight_through(v, scheme(v)))(jnp.float32(x))
    assert value == scheme(jnp.float32(x))
    assert derivative == 1
