"""Whatever primitive JAX has or will have: a rule, a function that is entered, or float with the same result."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

import jaxq8 as q8
from tests.small import ALWAYS, SQNR_DB, sqnr_db
from tests.sweep import primitives
from tests.sweep.data import LEFT, RIGHT, D, X, images
from tests.sweep.table import CASES


def invented(name: str, function, results: int | None = None) -> Primitive:
    """A primitive of a JAX that is still to come: it computes `function`, and the library has never heard of it."""
    primitive = Primitive(name)
    primitive.multiple_results = results is not None
    primitive.def_impl(function)

    def shapes(*avals, **params):
        found = jax.eval_shape(lambda *x: function(*x, **params), *avals)
        kinds = [jax.core.ShapedArray(s.shape, s.dtype) for s in jax.tree.leaves(found)]
        return kinds if primitive.multiple_results else kinds[0]

    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(function, primitive.multiple_results))
    return primitive


TWICE = invented("twice_of_2031", lambda x, *, bias: 2 * x + bias)
PARTS = invented("parts_of_2031", lambda x: [jnp.floor(x), x - jnp.floor(x)], 2)
NOTHING = invented("nothing_of_2031", lambda x: [], 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_unknown_primitive_is_evaluated_in_float_and_recorded(compiled):
    def fn(x):
        whole, rest = PARTS.bind(TWICE.bind(x @ RIGHT, bias=0.5))
        NOTHING.bind(rest)
        return whole, rest, rest @ RIGHT

    found = q8.quantize(fn, ALWAYS)
    found = (jax.jit(found) if compiled else found)(LEFT)
    expected = fn(LEFT)
    np.testing.assert_array_equal(expected[0], found[0])  # the product before it is exact in eight bits
    np.testing.assert_array_equal(expected[1], found[1])
    assert sqnr_db(expected[2], found[2]) > SQNR_DB
    plan = q8.explain(fn, LEFT, config=ALWAYS)
    assert [(s.reason, s.eight_bit) for s in plan.sites if s.op == "twice_of_2031"] == [
        (q8.Reason.NO_RULE, False)
    ]
    assert plan.eight_bit_share == 1.0


def test_an_unknown_primitive_in_a_loop_and_in_a_branch():
    def step(x):
        return lax.cond(x.sum() > 0, lambda x: TWICE.bind(x @ RIGHT, bias=1.0), lambda x: x, x) / 8

    def fn(x):
        return lax.scan(lambda x, _: (step(x), None), x, length=2)[0]

    assert sqnr_db(fn(LEFT), jax.jit(q8.quantize(fn, ALWAYS))(LEFT)) > SQNR_DB


def test_what_an_unknown_primitive_holds_is_left_alone():
    """A function inside a primitive that nobody knows how to enter: its products stay float."""
    holder = invented("holder_of_2031", lambda x, *, body: jax.extend.core.jaxpr_as_fun(body)(x)[0])
    body = jax.make_jaxpr(lambda x: jnp.sin(x @ D.y))(X)

    def fn(x):
        return holder.bind(x @ RIGHT, body=body)

    np.testing.assert_allclose(fn(LEFT), jax.jit(q8.quantize(fn, ALWAYS))(LEFT), atol=1e-5)
    assert q8.explain(fn, LEFT, config=ALWAYS).macs == 8 * 8 * 8


WINDOW = {"window_dimensions": (1, 2, 2, 1), "window_strides": (1, 2, 2, 1), "padding": "VALID"}
BESIDE = {
    "select_and_scatter_add": jax.grad(
        lambda x: lax.reduce_window(images(x), -jnp.inf, lax.max, **WINDOW).sum()
    ),
    "reduce_window": lambda x: lax.reduce_window(images(x), 0.0, lambda a, b: lax.add(a, b), **WINDOW),
}


@pytest.mark.parametrize("name", BESIDE)
def test_primitives_that_no_function_of_the_sweep_has(name):
    fn = BESIDE[name]
    assert name in {e.primitive.name for e in jax.make_jaxpr(fn)(X).eqns}
    found = jax.jit(q8.quantize(lambda x: fn(x @ RIGHT), ALWAYS))(LEFT)
    np.testing.assert_allclose(fn(X), found, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # deprecated functions are functions too
def test_every_primitive_of_jax_is_run_by_the_sweep_or_has_a_reason():
    reasons = {name for names in primitives.NOT_RUN.values() for name in names.split()}
    run = primitives.run_by(CASES)
    assert primitives.public() - run - reasons == set()
    assert run & reasons == set()
    assert {primitives.treatment(name) for name in run} == {"rule", "entered", "fallback"}
