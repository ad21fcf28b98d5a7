"""Joined values of unlike size: a product over joined channels is the sum of the products of its parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small import ALWAYS, SIMULATE, normal
from test_operands import relative
from test_simulation import conv

import jaxq8 as q8

# One range for both leaves the small part three codes, and then nothing of the result is right: 1.0. Rounding stays below.
ROUNDING = 0.03


def small_only(*shape, axis, split):
    """Weights that read only what lies behind `split` on an axis."""
    w = np.asarray(normal(*shape) / 4).copy()
    w[(slice(None),) * axis + (slice(split),)] = 0
    return jnp.asarray(w)


def convolved(p, x):
    a, b = 500 * jax.nn.relu(conv(x, p[0])), jax.nn.sigmoid(conv(x, p[1]))
    return conv(jnp.concatenate([a, b], -1), p[2])


def both_unbounded(p, x):
    a, b = 500 * jax.nn.relu(conv(x, p[0])), jax.nn.relu(conv(x, p[1]))
    return conv(jnp.concatenate([a, b], -1), p[2])


def channels_first(p, x):
    a, b = (jnp.transpose(v, (0, 3, 1, 2)) for v in (500 * conv(x, p[0]), jnp.tanh(conv(x, p[1]))))
    w = jnp.transpose(p[2], (3, 2, 0, 1))
    return lax.conv_general_dilated(jnp.concatenate([a, b], 1), w, (1, 1), "SAME")


def rows(p, x):
    x = x.reshape(-1, 16)
    a, b = 500 * jax.nn.relu(x @ p[0][0, 0]), jax.nn.relu(x @ p[1][0, 0])
    return jnp.concatenate([a, b], -1) @ p[2][0, 0]


def weight_on_the_left(p, x):
    x = x.reshape(-1, 16).T
    a, b = 500 * jax.nn.relu(p[0][0, 0].T @ x), jax.nn.relu(p[1][0, 0].T @ x)
    return p[2][0, 0].T @ jnp.concatenate([a, b], 0)


def of_codes(p, x):
    a, b = 500 * conv(x, p[0]), conv(x, p[1])
    pooled = [lax.reduce_window(v, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") for v in (a, b)]
    return conv(jnp.concatenate(pooled, -1), p[2])


def inside_a_loop(p, x):
    def step(h, _):
        return jnp.tanh(convolved(p, h)), None

    return lax.scan(step, x, None, length=2)[0]


P = [normal(3, 3, 16, 16) / 12, normal(3, 3, 16, 16) / 11, small_only(3, 3, 32, 16, axis=2, split=16)]
X = normal(2, 10, 10, 16)
SITE = "2:conv"


@pytest.mark.parametrize("config", [ALWAYS, SIMULATE])
@pytest.mark.parametrize(
    "fn",
    [convolved, both_unbounded, channels_first, rows, weight_on_the_left, of_codes, inside_a_loop],
)
def test_known_ranges_that_differ_give_each_part_a_scale_of_its_own(fn, config):
    ranges = q8.calibrate(fn, P, [X], config=config, progress=False)
    found = jax.jit(q8.quantize(fn, config, ranges=ranges))(P, X)
    assert relative(fn(P, X), found) < ROUNDING


def test_bounds_by_construction_split_a_join_without_any_data():
    assert relative(convolved(P, X), jax.jit(q8.quantize(convolved, ALWAYS))(P, X)) < ROUNDING
    record = q8.explain(convolved, P, X, config=ALWAYS)[SITE]
    assert record.joined == "2 products: ranges that are known beside ranges that are not"


def test_the_plan_says_when_and_why_a_product_was_split():
    ranges = q8.calibrate(convolved, P, [X], config=ALWAYS, progress=False)
    assert set(ranges) > {f"{SITE}.part0", f"{SITE}.part1"}
    plan = q8.explain(convolved, P, X, config=ALWAYS, ranges=ranges)
    ratio = ranges[f"{SITE}.part0"].maximum / ranges[f"{SITE}.part1"].maximum
    assert plan[SITE].joined == f"2 products: ranges differ {ratio:.3g} times"
    assert plan[SITE].joined in str(plan)
    assert q8.Plan.from_json(plan.to_json()) == plan


def test_ranges_that_are_found_in_the_run_are_warned_of_and_compare_names_the_part():
    """Nothing tells before the run that the parts are unlike, so they share a range; the Plan and the report say so."""
    plan = q8.explain(rows, P, X, config=ALWAYS)
    assert plan["2:dot"].joined == "2 parts share a range"
    assert "joined parts share a range at 2:dot" in str(plan)
    report = q8.compare(rows, q8.quantize(rows, ALWAYS), P, [X])
    worst = min(report.sites, key=lambda s: s.sqnr_db)
    assert (worst.name, worst.op) == ("2:dot.part1", "dot")
    assert worst.sqnr_db < 10


def test_parts_of_like_size_share_a_range_and_cost_nothing():
    def fn(p, x):
        return conv(jnp.concatenate([jax.nn.relu(conv(x, p[0])), 2 * jax.nn.relu(conv(x, p[1]))], -1), p[2])

    ranges = q8.calibrate(fn, P, [X], config=ALWAYS, progress=False)
    assert not [name for name in ranges if ".part" in name]
    assert q8.explain(fn, P, X, config=ALWAYS, ranges=ranges)[SITE].activations.count("scale") == 1


def test_parts_of_one_size_are_one_product():
    """Four parts of two sizes, in turn: two products."""

    def fn(p, x):
        large, small = 500 * jax.nn.relu(conv(x, p[0])), jax.nn.relu(conv(x, p[1]))
        parts = [large[..., :8], small[..., :8], large[..., 8:] / 2, small[..., 8:] / 3]
        return conv(jnp.concatenate(parts, -1), p[2])

    weights = np.asarray(normal(3, 3, 32, 16) / 4).copy()
    weights[:, :, :8] = weights[:, :, 16:24] = 0
    p = [*P[:2], jnp.asarray(weights)]
    ranges = q8.calibrate(fn, p, [X], config=ALWAYS, progress=False)
    assert q8.explain(fn, p, X, config=ALWAYS, ranges=ranges)[SITE].joined.startswith("2 products")
    assert relative(fn(p, X), jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(p, X)) < ROUNDING


def test_derivatives_through_parts_are_near_those_of_float():
    ranges = q8.calibrate(both_unbounded, P, [X], config=ALWAYS, progress=False)

    def loss(fn):
        return lambda p: jnp.sum(fn(p, X) ** 2)

    exact, found = (
        jax.jit(jax.grad(loss(f)))(P)
        for f in (both_unbounded, q8.quantize(both_unbounded, ALWAYS, ranges=ranges))
    )
    # Rounding changes which relu is at work; without scales of their own the second weight's derivative is all wrong.
    assert [relative(e, f) < 0.2 for e, f in zip(exact, found, strict=True)] == [True] * 3


def test_bias_correction_knows_of_the_parts():
    """It measures what the split product loses, not what one range for both parts would."""

    def fn(p, x):
        return both_unbounded(p["w"], x) + p["b"]

    variables = {"w": P, "b": jnp.zeros(16)}
    ranges = q8.calibrate(fn, variables, [X], config=ALWAYS, progress=False)
    better = q8.correct_bias(fn, variables, [X], config=ALWAYS, ranges=ranges, progress=False)
    found = jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(better, X)
    assert relative(fn(variables, X), found) < ROUNDING


def test_nan_in_one_part_is_nan_in_the_result():
    ranges = q8.calibrate(convolved, P, [X], config=ALWAYS, progress=False)
    bad = X.at[0, 0, 0, 0].set(jnp.nan)
    found = jax.jit(q8.quantize(convolved, ALWAYS, ranges=ranges))(P, bad)
    assert not np.any(np.isfinite(found) & np.isnan(convolved(P, bad)))


def test_ranges_of_parts_can_be_given_by_hand_and_unknown_sites_are_refused():
    given = {SITE: (0.0, 2500.0), f"{SITE}.part1": (0.0, 5.0)}
    found = jax.jit(q8.quantize(both_unbounded, ALWAYS, ranges=given))(P, X)
    assert relative(both_unbounded(P, X), found) < ROUNDING
    with pytest.raises(q8.errors.RangesError, match=r"nowhere:conv\.part0"):
        q8.quantize(both_unbounded, ALWAYS, ranges={"nowhere:conv.part0": (0.0, 1.0)})(P, X)
