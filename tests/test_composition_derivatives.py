"""Derivatives through integers: those of the same arithmetic in float with straight-through rounding, rules of users kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from tests.small import ALWAYS, BATCH, PAIR, SIMULATE, X, assert_equal, dense, fast, grad, loss, sqnr_db

simulated = q8.quantize(dense, SIMULATE)
# Rounding both operands of two layers leaves their values at 38 dB and more; so it does the products of the backward pass.
GRADIENT_DB = 30
FLOAT_DB = 100  # float32 keeps 140 dB; two orders of summation cost some


def of_data(f):
    return lambda x: f(PAIR, x)


@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_are_those_of_the_simulation_and_near_those_of_float(argument):
    found, same, exact = (jax.grad(loss(f), argument)(PAIR, X) for f in (fast, simulated, dense))
    assert sqnr_db(same, found) > FLOAT_DB
    assert sqnr_db(exact, found) > GRADIENT_DB


def test_values_and_tangents_come_together():
    value, tangent = jax.jvp(of_data(fast), (X,), (BATCH[0],))
    assert_equal(fast(PAIR, X), value)
    assert sqnr_db(jax.jvp(of_data(simulated), (X,), (BATCH[0],))[1], tangent) > FLOAT_DB
    assert sqnr_db(jax.jvp(of_data(dense), (X,), (BATCH[0],))[1], tangent) > GRADIENT_DB


def test_a_linearized_function_is_its_jvp():
    value, linear = jax.linearize(of_data(fast), X)
    expected = jax.jvp(of_data(fast), (X,), (BATCH[0],))
    assert sqnr_db(expected[0], value) > FLOAT_DB
    assert sqnr_db(expected[1], linear(BATCH[0])) > FLOAT_DB


def test_vjp_is_the_transpose_of_jvp():
    value, back = jax.vjp(of_data(fast), X)
    (pulled,) = back(BATCH[1])
    tangent = jax.jvp(of_data(fast), (X,), (BATCH[0],))[1]
    assert value.shape == X.shape
    np.testing.assert_allclose(jnp.vdot(pulled, BATCH[0]), jnp.vdot(BATCH[1], tangent), rtol=1e-4)


def test_both_jacobians_agree():
    def summed(x):
        return fast(PAIR, x).sum(0)

    # Step by step: in two compiled programs a value beside the end of a range may fall on different sides.
    forward, reverse = jax.jacfwd(summed)(X), jax.jacrev(summed)(X)
    assert forward.shape == (32, 16, 32)
    assert sqnr_db(forward, reverse) > FLOAT_DB


def test_second_derivatives_are_those_of_the_simulation():
    found, same = (jax.hessian(lambda x, f=f: (f(PAIR, x) ** 2).sum())(X[:1]) for f in (fast, simulated))
    assert sqnr_db(same, found) > FLOAT_DB


def test_gradients_compose_with_vmap_jit_and_remat():
    each = jnp.stack([grad(lambda x: loss(fast)(PAIR, x))(x) for x in BATCH])
    of_each = jax.jit(jax.vmap(grad(lambda x: loss(fast)(PAIR, x))))(BATCH)
    of_all = grad(lambda x: loss(jax.vmap(fast, (None, 0)))(PAIR, x))(BATCH)
    rematerialised = grad(lambda x: loss(jax.checkpoint(jax.vmap(fast, (None, 0))))(PAIR, x))(BATCH)
    for found in (of_each, of_all, rematerialised):
        assert sqnr_db(each, found) > 60  # a value on a boundary may round the other way in another program


def test_gradients_through_a_scan():
    layers = jnp.stack([PAIR["w"][:, :32], PAIR["w"][:, 32:], PAIR["v"][:32]])

    def looped(w, x):
        return jax.lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, w)[0]

    found, exact = (grad(loss(f))(layers, X) for f in (q8.quantize(looped, ALWAYS), looped))
    assert sqnr_db(exact, found) > 20  # three layers, each fed with the rounded result of the last


def test_extremes_of_a_range_pass_the_whole_gradient():
    """The ends of a measured range are data: no part of their derivative is lost to the clip."""
    w = q8.quantize_weights(lambda v, x: x @ v["w"], PAIR, X, config=ALWAYS, correct=None)
    found = grad(lambda x: q8.quantize(lambda v, x: x @ v["w"], ALWAYS)(w, x).sum())(X)
    expected = jnp.broadcast_to(w["w"].dequantize().sum(1), X.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_data_outside_a_given_range_have_no_gradient():
    site = q8.explain(dense, PAIR, X, config=ALWAYS).sites[0].name
    narrow = q8.quantize(dense, ALWAYS, ranges={site: q8.Range(-1, 1)})
    found = grad(lambda x: loss(narrow)(PAIR, x))(X)
    step = 2 / 255
    assert not np.any(found[jnp.abs(X) > 1 + 2 * step])
    assert np.all(found[jnp.abs(X) < 1] != 0)


MODES = [
    *(q8.Config(mode=mode) for mode in ("weights", "weights_rounded", "round", "simulate", "off")),
    q8.Config(mode="off", overrides=(("*", {"mode": "eightbit", "kernels": "xla"}),)),
    q8.Config(kernels="simulate", overrides=(("w:dot", {"kernels": "xla"}),)),
    q8.Config(overrides=(("*", {"kernels": "reference"}),)),
]


@pytest.mark.parametrize("config", MODES, ids=lambda c: f"{c.mode}-{len(c.overrides)}")
@pytest.mark.parametrize("argument", [0, 1])
def test_every_mode_has_gradients_whatever_its_overrides(config, argument):
    found, exact = (grad(loss(f), argument)(PAIR, X) for f in (q8.quantize(dense, config), dense))
    assert sqnr_db(exact, found) > GRADIENT_DB


@jax.custom_vjp
def sevens(variables, x):
    return dense(variables, x)


sevens.defvjp(
    lambda variables, x: (dense(variables, x), (variables, x)),
    lambda kept, _: (jax.tree.map(jnp.ones_like, kept[0]), jnp.full_like(kept[1], 7)),
)


@jax.custom_jvp
def nines(variables, x):
    return dense(variables, x)


nines.defjvp(lambda primals, tangents: (dense(*primals), jnp.full_like(primals[1], 9)))


@pytest.mark.parametrize("compiled", [False, True])
def test_custom_vjp_of_a_whole_model_is_kept(compiled):
    quantized = q8.quantize(sevens, ALWAYS)
    gradient = jax.grad(lambda v, x: quantized(v, x).sum(), (0, 1))
    variables, x = (jax.jit(gradient) if compiled else gradient)(PAIR, X)
    for g in jax.tree.leaves(variables):
        np.testing.assert_allclose(g, 1, rtol=1e-6)  # a step times its reciprocal
    assert_equal(jnp.full_like(X, 7), x)
    assert_equal(jax.jit(fast)(PAIR, X), jax.jit(quantized)(PAIR, X))


def test_custom_jvp_of_a_whole_model_is_kept():
    quantized = q8.quantize(nines, ALWAYS)
    value, tangent = jax.jvp(of_data(quantized), (X,), (X,))
    assert_equal(fast(PAIR, X), value)
    assert_equal(jnp.full_like(X, 9), tangent)
    assert_equal(tangent, jax.jvp(of_data(q8.quantize(nines, SIMULATE)), (X,), (X,))[1])


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_vjp
def leaking_relu(x):
    return jnp.maximum(x, 0)


leaking_relu.defvjp(lambda x: (leaking_relu(x), None), lambda _, g: (g,))


@pytest.mark.parametrize(
    "activation",
    [
        jax.nn.relu, jax.nn.relu6, jax.nn.silu, jax.nn.gelu, reversed_gradient, leaking_relu,
        lambda x: jax.nn.relu(reversed_gradient(x)), lambda x: jnp.minimum(leaking_relu(x), 1),
        lambda x: jnp.clip(leaking_relu(x), 0.5, 1.0),
    ],
    ids=["relu", "relu6", "silu", "gelu", "reversed", "leaking", "relu of reversed", "clipped", "clamped"],
)  # fmt: skip
def test_custom_derivatives_on_accumulators_are_kept(activation):
    """Activations that are clips of an int32 accumulator: their derivative is their rule's, not the clip's."""

    def net(variables, x):
        return activation(x @ variables["w"]) @ variables["v"]

    for argument in (0, 1):
        exact, found = (grad(loss(f), argument)(PAIR, X) for f in (net, q8.quantize(net, ALWAYS)))
        # A value beside a kink may round across it: one of thousands passes another gradient.
        assert sqnr_db(exact, found) > 15
        cosine = sum(map(jnp.vdot, *map(jax.tree.leaves, (exact, found))))
        assert cosine > 0


def test_simulation_and_integers_agree_in_value_around_custom_rules():
    def net(variables, x):
        return leaking_relu(jax.nn.relu6(x @ variables["w"]) @ variables["v"])

    expected, found = (jax.jit(q8.quantize(net, c))(PAIR, X) for c in (SIMULATE, ALWAYS))
    assert sqnr_db(expected, found) > 40
