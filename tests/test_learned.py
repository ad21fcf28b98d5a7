"""Learned rounding: exact where the answer is known, never worse than nearest, reproducible, and accepted everywhere."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.kernels.canonical import conv_layout
from jaxq8.learning.layer_moments import as_columns, read_rows
from jaxq8.learning.rounding_problems import get_method
from jaxq8.numerics.rounding import get_rounding
from tests.small import PAIR, dense, normal, sqnr_db

FOUR = q8.Config(kernels="xla", weights=q8.Spec(bits=4, symmetric=True, granularity="channel"))
METHODS = ("nearest", "stochastic", "gptq", "adaround")


def problem(groups: int = 2, k: int = 6, n: int = 3, bits: int = 3) -> q8.RoundingProblem:
    """Correlated inputs, so that the errors of different weights can cancel."""
    x = normal(200, groups, k) + 2 * normal(200, groups, 1)
    hessian = np.einsum("rgi,rgj->gij", x, x) / len(x)
    weight = np.asarray(normal(groups, k, n))
    spec = q8.Spec(bits=bits, symmetric=True)
    scale = np.broadcast_to(np.abs(weight).max(1, keepdims=True) / spec.qmax, weight.shape)
    return q8.RoundingProblem("here", weight, hessian, scale, np.zeros_like(weight), spec.qmin, spec.qmax)


def best_of_all(p: q8.RoundingProblem) -> np.ndarray:
    """The least error of each output over all ways to round up or down."""
    below = np.floor(p.steps)
    ways = itertools.product((0, 1), repeat=p.weight.shape[1])
    codes = (np.clip(below + np.array(way, np.float32)[:, None], p.qmin, p.qmax) for way in ways)
    return np.min([p.error(c) for c in codes], axis=0)


@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_learning_is_between_nearest_and_the_best_of_all_roundings(method: str) -> None:
    p = problem(n=40)  # the ratio below is 0.34 to 0.45 over eight draws; of 6 outputs it would be 0.2 to 1
    codes = get_method(method)(p, jax.random.key(0))
    found, plain = p.error(codes), p.error(p.nearest())
    assert (found <= plain).all()
    # Weights that exceed the range by an error fed back may round further than up or down: only AdaRound is bounded below.
    if method == "adaround":
        assert (found >= best_of_all(p) * (1 - 1e-5)).all()
    assert found.sum() < 0.7 * plain.sum()


def test_the_error_is_that_of_the_outputs() -> None:
    x, p = np.asarray(normal(50, 6)), problem(groups=1)
    p = q8.RoundingProblem(p.name, p.weight, x.T[None] @ x[None] / 50, p.scale, p.zero_point, p.qmin, p.qmax)
    off = x @ (p.weight[0] - p.real(p.nearest())[0])
    np.testing.assert_allclose(p.error(p.nearest())[0], (off**2).mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m != "gptq")) for m in METHODS]
)
def test_codes_are_reproducible_and_run_in_integers(method: str) -> None:
    batches = [normal(40, 32), normal(24, 32)]
    first, second = (
        q8.learn_rounding(
            dense, PAIR, batches, method=method, config=FOUR, key=jax.random.key(3), progress=False
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(first["w"].values, second["w"].values)
    assert (first["w"].bits, first["w"].scale.shape, first["w"].values.dtype) == (4, (1, 64), jnp.int8)
    found = jax.jit(q8.quantize(dense, FOUR))(first, batches[0])
    simulated = jax.jit(q8.quantize(dense, q8.Config(kernels="simulate")))(first, batches[0])
    # The same codes; a range that differs in its last bit moves single activations by a code.
    assert sqnr_db(simulated, found) > 40


@pytest.mark.parametrize("method", [pytest.param("gptq", marks=pytest.mark.slow), "adaround"])
def test_a_net_with_learned_rounding_is_closer_to_float(method: str) -> None:
    """Inputs in a subspace of 8 dimensions: most of what 32 weights round off cancels."""
    mix = normal(8, 32)
    train, test = normal(256, 8) @ mix, normal(64, 8) @ mix
    exact, fast = dense(PAIR, test), jax.jit(q8.quantize(dense, FOUR))
    nearest = fast(q8.quantize_weights(dense, PAIR, test, config=FOUR, correct=None), test)
    learned = q8.learn_rounding(dense, PAIR, [train], method=method, config=FOUR, progress=False)
    assert sqnr_db(exact, fast(learned, test)) > sqnr_db(exact, nearest) + 3


CONVOLUTIONS = {
    "plain": nn.Conv(8, (3, 3), strides=2, padding="SAME"),
    "dilated": nn.Conv(8, (2, 3), kernel_dilation=(1, 2), padding=((1, 0), (2, 2))),
    "grouped": nn.Conv(8, (3, 3), feature_group_count=2),
    "depthwise": nn.Conv(12, (3, 3), feature_group_count=4),
    "1-D": nn.Conv(8, (5,), padding="VALID"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("plain", "1-D", "depthwise"))) for n in CONVOLUTIONS],
)
def test_patches_times_columns_is_the_convolution(name: str) -> None:
    module, shape = CONVOLUTIONS[name], (2, 9, 4) if name == "1-D" else (2, 9, 8, 4)
    x = normal(*shape)
    variables = module.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    closed = jax.make_jaxpr(module.apply)(variables, x)
    (eqn,) = [e for e in closed.eqns if e.primitive.name == "conv_general_dilated"]
    layout = conv_layout(eqn.params, x.shape, kernel.shape)
    found = jnp.einsum("rgk,gkn->rgn", read_rows(layout, x), as_columns(layout, kernel))
    expected = module.apply(variables, x) - variables["params"]["bias"]
    np.testing.assert_allclose(layout.result(found.reshape(layout.form.batch, *layout.form.out_spatial, -1)), expected,
                               atol=1e-4)  # fmt: skip


class Tower(nn.Module):
    """Convolutions of every kind of grouping, batch norm, and a dense layer of several axes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(16, (3, 3))(x)))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(32, (3, 3), feature_group_count=16)(x)))
        return nn.DenseGeneral((4, 8))(x.mean((1, 2)))


@pytest.mark.slow
def test_layers_in_stages_memory_groups_and_modes() -> None:
    x = normal(4, 8, 8, 8)
    model = Tower()
    variables = model.init(jax.random.key(1), x)

    def learned(**settings):
        return q8.learn_rounding(model.apply, variables, [x], progress=False, **{"config": FOUR, **settings})

    all_at_once, one_by_one = learned(stages=1), learned(stages=1, memory=1)
    # The first layer reads the images in both; later ones read what was rounded before their group.
    np.testing.assert_array_equal(
        *(t["params"]["Conv_0"]["kernel"].values for t in (all_at_once, one_by_one))
    )
    assert jax.tree.structure(all_at_once) == jax.tree.structure(one_by_one)
    kernel = all_at_once["params"]["Conv_1"]["kernel"]
    assert kernel.shape == (3, 3, 1, 32)
    assert kernel.scale.shape == (1, 1, 1, 32)
    rounded = learned(config=q8.Config(mode="weights_rounded", kernels="xla", weights=FOUR.weights))
    flat = rounded["params"]["Conv_1"]["kernel"]
    assert flat.dtype == jnp.float32
    assert max(len(np.unique(flat[..., c])) for c in range(32)) <= 15


def test_the_mean_error_goes_into_the_bias() -> None:
    """Inputs far from zero: what rounding shifts is taken out of the result's mean."""

    def one(v, x):
        return x @ v["w"] + v["b"]

    v, x = {"w": PAIR["w"], "b": jnp.zeros(64)}, normal(64, 32) + 5
    q_vars = q8.learn_rounding(one, v, [x], method="nearest", config=FOUR, search=False, progress=False)
    off = x @ v["w"] - one({"w": q_vars["w"].dequantize(), "b": q_vars["b"]}, x)
    plain = x @ (v["w"] - q_vars["w"].dequantize())
    # float32 sums of 64 numbers of size 5 * 6
    np.testing.assert_allclose(off.mean(0), 0, atol=1e-4)
    assert np.abs(plain.mean(0)).max() > 0.1


def test_weights_that_nothing_can_be_learned_of_are_rounded_to_nearest() -> None:
    def shared(v, x):
        return x @ v["w"] @ v["w"]

    v, x = {"w": normal(32, 32) / 6}, normal(8, 32)
    learned = q8.learn_rounding(shared, v, [x], config=FOUR, progress=False)
    plain = q8.quantize_weights(shared, v, x, config=FOUR, correct=None)
    np.testing.assert_array_equal(learned["w"].values, plain["w"].values)


def test_a_method_of_ones_own_and_what_is_refused() -> None:
    @q8.register_learned_rounding("test upwards")
    def upwards(problem, key):
        return np.clip(np.ceil(problem.steps), problem.qmin, problem.qmax)

    assert "test upwards" in q8.learned_rounding_names()
    x = normal(8, 32)
    q_vars = q8.learn_rounding(
        dense, PAIR, [x], method="test upwards", config=FOUR, search=False, stages=1, progress=False
    )
    above = (q_vars["w"].dequantize() - PAIR["w"]) / q_vars["w"].scale
    assert above.min() > -1e-5  # in steps; the largest weight is 7 of them but for rounding in float32
    assert 0.9 < above.max() < 1 + 1e-5
    with pytest.raises(q8.RuleError, match="'test upwards' is already registered"):
        q8.register_learned_rounding("test upwards")(lambda problem, key: problem.nearest())
    with pytest.raises(q8.SpecError, match="unknown method 'none'; known: adaround"):
        q8.learn_rounding(dense, PAIR, [x], method="none")
    with pytest.raises(q8.ArgumentError, match="no batches"):
        q8.learn_rounding(dense, PAIR, [])
    for wrong, text in (
        (lambda p, key: p.steps, "expected integers of shape"),
        (lambda p, key: p.nearest() + 99, "clip them"),
    ):
        with pytest.raises(q8.TensorError, match=text):
            q8.learn_rounding(dense, PAIR, [x], method=wrong, config=FOUR, progress=False)
    with pytest.raises(q8.TensorError, match="weight of w:dot holds NaN"):
        q8.learn_rounding(
            dense, {**PAIR, "w": PAIR["w"] * jnp.nan}, [x], config=FOUR, stages=1, progress=False
        )


def test_stochastic_rounding_is_unbiased_over_ten_thousand_keys() -> None:
    p = problem(groups=1)
    keys = jax.random.split(jax.random.key(11), 10_000)
    inside = np.clip(p.steps, p.qmin, p.qmax)
    drawn = jax.vmap(lambda key: get_rounding("stochastic")(jnp.asarray(inside), key))(keys)
    mean, fraction = np.asarray(drawn).mean(0), inside - np.floor(inside)
    deviation = np.sqrt(fraction * (1 - fraction) / len(keys))
    # 18 means of 10,000 draws: four standard deviations are passed by chance once in 900 runs of other keys.
    assert (np.abs(mean - inside) <= 4 * deviation + 1e-5).all()
