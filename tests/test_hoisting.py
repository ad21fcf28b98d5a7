"""Contractions of a scan's body that need no carry run before the loop: same sites, same ranges, same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8._compat import open_jaxpr, primitives
from jaxq8.analysis import scan_hoisting
from jaxq8.analysis.inner_functions import callees
from jaxq8.evaluation.rules import control
from tests.small import ALWAYS, BOUNDARY_DB, SQNR_DB, grad, normal, sqnr_db

STEPS = 6
WEIGHTS = {"in": normal(24, 32) * 0.2, "in2": normal(24, 8) * 0.2, "carry": normal(32, 32) * 0.2}
XS = normal(STEPS, 3, 24)


def cell(v, xs, reverse=False):
    """A recurrent cell whose input reaches its projection through a merge of weights and an elementwise operation."""

    def step(h, x):
        merged = jnp.concatenate([v["in"][:, :24], v["in2"]], axis=1)
        h = jnp.tanh((x * 0.5) @ merged + h @ v["carry"])
        return h, (h, x @ v["in2"])

    return jax.lax.scan(step, jnp.zeros((xs.shape[1], 32)), xs, reverse=reverse)


def stacked_layers(v, xs):
    """Weights are the slices here: each belongs to one step."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), (xs[0] @ v["in"]) @ w), normal(3, 32), v["layers"])


def eight_bit_dots(jaxpr, inside=False):
    """How many contractions a jaxpr has in bodies of loops, and how many outside of them."""
    jaxpr = open_jaxpr(jaxpr)[0]
    found = [inside for e in jaxpr.eqns if e.primitive is primitives.dot_general_p]
    for eqn in jaxpr.eqns:
        platforms = callees(eqn)[:1] if eqn.primitive is primitives.cond_p else callees(eqn)
        for callee in platforms:
            found += eight_bit_dots(callee.jaxpr, inside or callee.key == "scan")
    return found


@pytest.fixture
def in_the_loop(monkeypatch):
    """Calls a function with nothing moved."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(control, "parted", lambda *a: None)
            return function()

    return call


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_results_are_those_of_the_loop(in_the_loop, reverse, static):
    def run(v, xs):
        return cell(v, xs, reverse)

    ranges = q8.calibrate(run, WEIGHTS, [(XS,)], config=ALWAYS, progress=False) if static else None
    fast = lambda v, xs: jax.jit(q8.quantize(run, ALWAYS, ranges=ranges))(v, xs)  # noqa: E731
    moved, looped = fast(WEIGHTS, XS), in_the_loop(lambda: fast(WEIGHTS, XS))
    assert sqnr_db(looped, moved) > BOUNDARY_DB
    assert sqnr_db(run(WEIGHTS, XS), moved) > SQNR_DB


def test_only_what_needs_the_carry_stays_in_the_loop(in_the_loop):
    trace = lambda: jax.make_jaxpr(q8.quantize(cell, ALWAYS))(WEIGHTS, XS)  # noqa: E731
    count = lambda jaxpr: (eight_bit_dots(jaxpr).count(True), eight_bit_dots(jaxpr).count(False))  # noqa: E731
    assert count(trace()) == (1, 2)
    assert count(in_the_loop(trace)) == (3, 0)


def test_the_plan_and_the_ranges_do_not_depend_on_it(in_the_loop):
    plan = lambda: q8.explain(cell, WEIGHTS, XS, config=ALWAYS)  # noqa: E731
    table = lambda p: {s.name: (s.eight_bit, s.macs, s.kernel) for s in p.sites if s.op == "dot"}  # noqa: E731
    assert table(plan()) == table(in_the_loop(plan))
    assert len(table(plan())) == 3
    ranges = lambda: q8.calibrate(cell, WEIGHTS, [(XS,)], config=ALWAYS, progress=False)  # noqa: E731
    moved, looped = ranges(), in_the_loop(ranges)
    assert moved.keys() == looped.keys()
    for name in moved:
        ends = [(r[name].minimum, r[name].maximum) for r in (moved, looped)]
        np.testing.assert_allclose(*ends, rtol=1e-5)


def test_weights_that_are_slices_stay(in_the_loop):
    weights = {**WEIGHTS, "layers": normal(4, 32, 32) * 0.2}
    trace = lambda: eight_bit_dots(jax.make_jaxpr(q8.quantize(stacked_layers, ALWAYS))(weights, XS))  # noqa: E731
    assert trace() == in_the_loop(trace)


def test_results_too_large_for_memory_stay(monkeypatch):
    monkeypatch.setattr(scan_hoisting, "MAXIMUM_BYTES", 4 * STEPS * 3 * 40 - 1)
    assert eight_bit_dots(jax.make_jaxpr(q8.quantize(cell, ALWAYS))(WEIGHTS, XS)).count(False) == 0


def test_float_modes_leave_the_loop_as_it_is():
    for mode in ("off", "weights"):
        jaxpr = jax.make_jaxpr(q8.quantize(cell, q8.Config(mode=mode)))(WEIGHTS, XS)
        assert eight_bit_dots(jaxpr).count(False) == 0


def test_gradients_pass(in_the_loop):
    slope = lambda: grad(lambda v: jnp.sum(q8.quantize(cell, ALWAYS)(v, XS)[0] ** 2))(WEIGHTS)  # noqa: E731
    assert sqnr_db(in_the_loop(slope), slope()) > BOUNDARY_DB


def test_examples_under_vmap_equal_a_loop_over_them():
    batch = jnp.stack([XS, XS * 3])
    fast = q8.quantize(cell, ALWAYS)
    mapped = jax.jit(jax.vmap(lambda xs: fast(WEIGHTS, xs)))(batch)
    alone = [jax.jit(fast)(WEIGHTS, xs) for xs in batch]
    assert sqnr_db(jax.tree.map(lambda *x: jnp.stack(x), *alone), mapped) > BOUNDARY_DB


def test_codes_as_data_are_sliced():
    codes = q8.QTensor.from_uint8(np.arange(STEPS * 3 * 24, dtype=np.uint8).reshape(XS.shape), 0.01, 100)
    found = jax.jit(q8.quantize(cell, ALWAYS))(WEIGHTS, codes)
    assert sqnr_db(cell(WEIGHTS, codes.dequantize()), found) > SQNR_DB


def test_an_exported_program_of_any_batch_runs(tmp_path):
    swapped = lambda v, x: cell(v, x.swapaxes(0, 1))[0]  # noqa: E731
    q8.export(tmp_path / "cell.q8x", swapped, WEIGHTS, XS.swapaxes(0, 1), config=ALWAYS)
    found = q8.load_exported(tmp_path / "cell.q8x")(XS.swapaxes(0, 1)[:2])
    assert sqnr_db(cell(WEIGHTS, XS[:, :2])[0], found) > SQNR_DB
