"""`quantize` among JAX's transformations: what is the same integer arithmetic gives the same bits, whoever calls it.

What `tests/test_transform.py` tests on bodies of control flow is not repeated here. Two programs are equal bit for bit where
XLA compiles the float code around the integers in the same way; else a code on a boundary may move.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxq8 as q8
from tests.small import (
    ALWAYS,
    BATCH,
    BOUNDARY_DB,
    PAIR,
    SIMULATE,
    SQNR_DB,
    X,
    assert_equal,
    dense,
    fast,
    grad,
    loss,
    normal,
    sqnr_db,
)  # fmt: skip
from tests.zoo import ZOO

COMPILED = jax.jit(fast)(PAIR, X)


def test_the_function_that_the_others_are_compared_with_is_quantized():
    assert SQNR_DB < sqnr_db(dense(PAIR, X), COMPILED) < 80


def scanned(x):
    return jax.lax.scan(lambda carry, one: (carry, fast(PAIR, one)), 0, x)[1]


def unrolled(x):
    return jnp.stack([fast(PAIR, one) for one in x])


@pytest.mark.parametrize(
    "mapped", [scanned, lambda x: jax.lax.map(functools.partial(fast, PAIR), x), jax.vmap(functools.partial(fast, PAIR))],
    ids=["scan", "map", "vmap"],
)  # fmt: skip
def test_loops_over_examples_equal_unrolled_ones(mapped):
    assert_equal(jax.jit(unrolled)(BATCH), jax.jit(mapped)(BATCH))


@pytest.mark.parametrize("loop", ["fori", "while"])
def test_loops_that_carry_their_result_equal_unrolled_ones(loop):
    def looped(x):
        if loop == "fori":
            return jax.lax.fori_loop(0, 3, lambda i, h: fast(PAIR, h), x)
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, fast(PAIR, s[1])), (0, x))[1]

    expected = jax.jit(lambda x: fast(PAIR, fast(PAIR, fast(PAIR, x))))(X)
    assert sqnr_db(expected, jax.jit(looped)(X)) > BOUNDARY_DB


def test_vmap_finds_ranges_for_each_example():
    """An example that is a thousand times larger leaves the codes of the others alone; in one call it would not."""
    config = q8.Config(kernels="xla", activations=q8.Spec(granularity="tensor"))
    one = q8.quantize(dense, config)
    x = BATCH.at[1].multiply(1000)
    mapped = jax.jit(jax.vmap(one, (None, 0)))(PAIR, x)
    apart = jax.jit(lambda x: jnp.stack([one(PAIR, e) for e in x]))(x)
    for i in range(
        len(x)
    ):  # the same integers; XLA fuses the float epilogues of the two programs differently
        assert sqnr_db(apart[i], mapped[i]) > BOUNDARY_DB
    together = jax.jit(one)(PAIR, x.reshape(-1, 32)).reshape(x.shape)
    exact = dense(PAIR, x)
    assert sqnr_db(exact[0], mapped[0]) > SQNR_DB > 10 > sqnr_db(exact[0], together[0])


def test_vmap_over_weights_encodes_each_of_them():
    many = jax.tree.map(lambda w: jnp.stack([w, 2 * w, w[::-1]]), PAIR)
    found = jax.jit(jax.vmap(fast, (0, None)))(many, X)
    for i in range(3):
        one = jax.tree.map(lambda w, i=i: w[i], many)
        assert sqnr_db(jax.jit(fast)(one, X), found[i]) > BOUNDARY_DB


def test_conditionals_around_a_quantized_function():
    branches = [lambda x: x, lambda x: fast(PAIR, x), lambda x: -x]
    assert_equal(COMPILED, jax.jit(lambda i, x: jax.lax.switch(i, branches, x))(1, X))
    assert_equal(COMPILED, jax.jit(lambda p, x: jax.lax.cond(p, branches[1], branches[0], x))(True, X))
    assert_equal(X, jax.jit(lambda p, x: jax.lax.cond(p, branches[1], branches[0], x))(False, X))


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_switch_inside_is_quantized(branch):
    def fn(variables, x, i):
        return jax.lax.switch(i, [lambda x: x, functools.partial(dense, variables), jnp.negative], x)

    expected = [X, COMPILED, -X][branch]
    assert_equal(expected, jax.jit(q8.quantize(fn, ALWAYS))(PAIR, X, branch))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.named_call], ids=["jit", "remat", "named"])
def test_wrappers_around_and_inside_change_nothing(wrap):
    assert_equal(COMPILED, jax.jit(wrap(fast))(PAIR, X))
    assert_equal(COMPILED, jax.jit(q8.quantize(wrap(dense), ALWAYS))(PAIR, X))


def test_without_compilation_of_inner_functions():
    with jax.disable_jit():
        found = fast(PAIR, X)
    assert sqnr_db(COMPILED, found) > BOUNDARY_DB


def test_quantizing_twice_is_quantizing_once():
    twice = q8.quantize(fast, ALWAYS)
    assert_equal(COMPILED, jax.jit(twice)(PAIR, X))
    assert_equal(COMPILED, jax.jit(q8.quantize(jax.jit(fast), ALWAYS))(PAIR, X))
    assert q8.explain(fast, PAIR, X, config=ALWAYS).eight_bit_share == 1.0
    gradients = [grad(loss(f))(PAIR, X) for f in (fast, twice)]
    assert sqnr_db(*gradients) > 100  # float32 keeps 140 dB


def test_inside_a_larger_float_function():
    def larger(f, variables, x):
        return jax.nn.softmax(jnp.sin(x) + f(variables, jnp.cos(x))) @ x.T

    found = jax.jit(functools.partial(larger, fast))(PAIR, X)
    assert sqnr_db(larger(dense, PAIR, X), found) > SQNR_DB
    assert (
        sqnr_db(jax.jit(functools.partial(larger, q8.quantize(dense, SIMULATE)))(PAIR, X), found)
        > BOUNDARY_DB
    )


def test_shapes_and_jaxprs_without_data():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PAIR, X))
    assert jax.eval_shape(fast, *shapes) == jax.eval_shape(dense, *shapes)
    closed = jax.make_jaxpr(fast)(*shapes)
    assert_equal(COMPILED, jax.jit(jax.extend.core.jaxpr_as_fun(closed))(*jax.tree.leaves((PAIR, X)))[0])
    assert_equal(COMPILED, jax.jit(fast).lower(*shapes).compile()(PAIR, X))


@pytest.mark.parametrize("encoded", [False, True])
def test_exported_programs_give_the_same_bits(encoded):
    leaves, tree = jax.tree.flatten(
        q8.quantize_weights(dense, PAIR, X, config=ALWAYS, correct=None) if encoded else PAIR
    )

    def flat(leaves, x):
        return fast(jax.tree.unflatten(tree, leaves), x)

    program = jax.export.export(jax.jit(flat))(leaves, X)
    again = jax.export.deserialize(program.serialize(vjp_order=0))
    assert_equal(jax.jit(flat)(leaves, X), again.call(leaves, X))


def test_exported_programs_keep_their_gradient():
    program = jax.export.export(jax.jit(fast))(PAIR, X)
    again = jax.export.deserialize(program.serialize(vjp_order=1))
    gradients = [grad(loss(f))(PAIR, X) for f in (jax.jit(fast), again.call)]
    assert sqnr_db(*gradients) > BOUNDARY_DB


def test_donated_arguments():
    assert_equal(COMPILED, jax.jit(fast, donate_argnums=1)(PAIR, jnp.array(X)))


def test_static_arguments_of_a_compiled_function():
    def fn(variables, x, times, activation="tanh"):
        return getattr(jnp, activation)(x @ variables["w"]) @ variables["v"] * times

    compiled = jax.jit(q8.quantize(fn, ALWAYS), static_argnums=2, static_argnames="activation")
    assert_equal(2 * COMPILED, compiled(PAIR, X, 2))
    assert sqnr_db(fn(PAIR, X, 3, "sin"), compiled(PAIR, X, 3, activation="sin")) > SQNR_DB


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_floats(dtype):
    variables, x = jax.tree.map(lambda a: a.astype(dtype), (PAIR, X))
    found = jax.jit(fast)(variables, x)
    assert found.dtype == dtype
    assert sqnr_db(dense(PAIR, X), found) > SQNR_DB  # bfloat16 itself has 8 bits: 45 dB an operation
    gradients = grad(loss(fast))(variables, x)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(dtype)}


def test_with_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        assert_equal(COMPILED, jax.jit(q8.quantize(dense, ALWAYS))(PAIR, X))
        variables, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (PAIR, X))
        assert jax.jit(q8.quantize(dense, ALWAYS))(variables, x).dtype == jnp.bfloat16
        grad(loss(q8.quantize(dense, ALWAYS)))(variables, x)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_resnet", "tiny_depthwise"])
def test_networks_under_strict_settings(name, mixed, monkeypatch):
    """With both signs of activations in dots, whatever this processor prefers."""
    monkeypatch.setattr("jaxq8.kernels.dot.mixed_dots_are_fast", lambda: mixed)
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(q8.quantize(fn, ALWAYS), variables, *inputs)
    if name != "tiny_cnn":  # Flax's average pooling mixes dtypes itself
        with jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(q8.quantize(fn, ALWAYS), variables, *inputs)
    with jax.checking_leaks():
        jax.make_jaxpr(q8.quantize(fn, ALWAYS))(variables, *inputs)


def test_nothing_of_a_trace_stays_behind():
    with jax.checking_leaks():
        jax.jit(q8.quantize(dense, ALWAYS))(PAIR, X)
        grad(loss(q8.quantize(dense, ALWAYS)))(PAIR, X)
        jax.jit(jax.vmap(lambda x: q8.quantize(dense, ALWAYS)(PAIR, x)))(BATCH)


def test_with_double_precision_enabled():
    with jax.enable_x64(True):
        assert_equal(COMPILED, jax.jit(q8.quantize(dense, ALWAYS))(PAIR, X))
        variables, x = jax.tree.map(lambda a: np.asarray(a, np.float64), (PAIR, X))
        found = jax.jit(q8.quantize(dense, ALWAYS))(variables, x)
        assert found.dtype == jnp.float64
        assert sqnr_db(COMPILED, found) > BOUNDARY_DB


def test_random_numbers_are_those_of_the_float_function():
    def fn(variables, x, key):
        return dense(variables, jax.random.bernoulli(key, 0.5, x.shape) * x)

    found = jax.jit(q8.quantize(fn, ALWAYS))(PAIR, X, jax.random.key(3))
    assert sqnr_db(fn(PAIR, X, jax.random.key(3)), found) > SQNR_DB
    assert sqnr_db(fn(PAIR, X, jax.random.key(4)), found) < 5


def test_merged_weights_of_a_scan_equal_unrolled_code():
    """A body that reads whole weights and slices of stacked ones, its weights encoded outside of the loop."""

    def looped(v, x):
        def body(h, w):
            return jnp.tanh(h @ w + x @ v["in"]), h.sum(-1)

        h, sums = jax.lax.scan(body, jnp.zeros_like(x), v["stack"])
        return h, sums

    def straight(v, x):
        h, sums = jnp.zeros_like(x), []
        for w in v["stack"]:
            sums.append(h.sum(-1))
            h = jnp.tanh(h @ w + x @ v["in"])
        return h, jnp.stack(sums)

    v = {"in": normal(32, 32) / 6, "stack": normal(4, 32, 32) / 6}
    expected, found = (jax.jit(q8.quantize(f, ALWAYS))(v, X) for f in (straight, looped))
    assert sqnr_db(expected, found) > BOUNDARY_DB
    encoded = q8.quantize_weights(looped, v, X, config=ALWAYS, correct=None)
    assert sqnr_db(found, jax.jit(q8.quantize(looped, ALWAYS))(encoded, X)) > BOUNDARY_DB
    assert "i8[4,32,32]" in str(
        jax.make_jaxpr(q8.quantize(looped, ALWAYS))(v, X)
    )  # whole: outside of the loop


def test_names_for_checkpoint_policies_let_codes_through():
    def fn(variables, x):
        h = checkpoint_name(x @ variables["w"], "hidden")
        return jnp.tanh(h) @ checkpoint_name(variables["v"], "weight")

    assert isinstance(q8.quantize_weights(fn, PAIR, X, config=ALWAYS, correct=None)["v"], q8.QTensor)
    assert_equal(COMPILED, jax.jit(q8.quantize(fn, ALWAYS))(PAIR, X))
    assert {s.op for s in q8.explain(fn, PAIR, X, config=ALWAYS).sites} == {
        "dot",
        "tanh",
    }  # nothing decoded for a name
