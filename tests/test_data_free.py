"""Corrections of weights without data: `quantize_weights(..., correct="statistics")` and its parts."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxq8 as q8
from jaxq8.analysis.flat_function import Chains
from jaxq8.data_free.balanced_codes import balanced
from jaxq8.data_free.batch_norms import batch_norms
from jaxq8.data_free.expected_inputs import expected_inputs
from tests.small import sqnr_db

FOUR = q8.Spec(bits=4, symmetric=True)


def expected_square(codes, weight, mean=1.0, variance=1.0):
    """The expected squared error of each column's result, for independent inputs of this mean and variance."""
    error = np.asarray(codes.dequantize(), np.float64) - weight
    return np.sum(error * mean, 0) ** 2 + np.sum(error**2 * variance, 0)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("rows", [1, 9, 200])
def test_balanced_codes_lower_the_expected_error(bits, rows):
    weight = np.random.default_rng(bits + rows).normal(size=(rows, 32)).astype(np.float32)
    codes = q8.QTensor.from_float(weight, q8.Spec(bits=bits, symmetric=True), axis=1)
    better = balanced(weight, codes, (1,))
    steps = np.abs(np.asarray(better.values, int) - np.asarray(codes.values, int))
    assert steps.max() <= 1
    assert np.abs(better.values).max() <= 2 ** (bits - 1) - 1
    before, after = expected_square(codes, weight), expected_square(better, weight)
    assert (after <= before * (1 + 1e-5)).all()
    if rows == 200:  # a sum of many errors can be made small, and costs little
        assert after.sum() < 0.6 * before.sum()
        sums = np.sum(np.asarray(better.dequantize()) - weight, 0)
        assert np.abs(sums / np.asarray(codes.scale)[0]).max() <= 0.75


def test_balanced_codes_are_near_the_best_of_all_codes():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(6, 40)).astype(np.float32)
    mean, variance = rng.uniform(0.2, 2, (6, 1)), rng.uniform(0.1, 1, (6, 1))
    codes = q8.QTensor.from_float(weight, FOUR, axis=1)
    found = expected_square(balanced(weight, codes, (1,), mean, variance), weight, mean, variance)
    scale, low = np.asarray(codes.scale), np.floor(weight / np.asarray(codes.scale))
    every = [low + np.reshape(up, (6, 1)) for up in itertools.product((0, 1), repeat=6)]
    squares = [
        np.sum((c * scale - weight) * mean, 0) ** 2 + np.sum((c * scale - weight) ** 2 * variance, 0)
        for c in every
    ]
    best, plain = np.min(squares, 0).sum(), expected_square(codes, weight, mean, variance).sum()
    assert found.sum() - best < 0.2 * (plain - best)


def test_inputs_of_mean_zero_leave_codes_as_they_are():
    weight = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    codes = q8.QTensor.from_float(weight, FOUR, axis=1)
    assert np.array_equal(balanced(weight, codes, (1,), mean=0.0).values, codes.values)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (2, 1)])
def test_channels_may_lie_on_any_axes(axes):
    weight = np.random.default_rng(1).normal(size=(6, 7, 8)).astype(np.float32)
    codes = q8.QTensor.from_float(weight, FOUR, axis=axes)
    better = balanced(weight, codes, axes)
    others = tuple(d for d in range(3) if d not in axes)
    moved = np.moveaxis(weight, axes, range(-len(axes), 0)).reshape(-1, *(weight.shape[a] for a in axes))
    flat = q8.QTensor.from_float(moved, FOUR, axis=tuple(range(1, moved.ndim)))
    expected = balanced(moved, flat, tuple(range(1, moved.ndim)))
    assert np.array_equal(
        np.sort(np.asarray(better.values), axis=None), np.sort(np.asarray(expected.values), axis=None)
    )
    sums = np.abs(np.sum(np.asarray(better.dequantize()) - weight, others))
    assert sums.mean() < 0.7 * np.abs(np.sum(np.asarray(codes.dequantize()) - weight, others)).mean()


def test_groups_have_steps_of_their_own():
    weight = np.random.default_rng(2).normal(size=(64, 16)).astype(np.float32)
    weight[:32] *= 10
    spec = q8.Spec(bits=4, symmetric=True, granularity="group", group=32)
    codes = q8.QTensor.from_float(weight, spec, axis=(1,))
    better = balanced(weight, codes, (1,))
    assert expected_square(better, weight).sum() < 0.7 * expected_square(codes, weight).sum()


# What is known of batch norms: several ways to write one.

CHANNELS, IMAGES = 6, (2, 8, 8, 3)


def statistics(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.normal(size=(3, 3, 3, CHANNELS)).astype(np.float32),
        "bias": rng.normal(size=CHANNELS).astype(np.float32),
        "mean": rng.normal(size=CHANNELS).astype(np.float32),
        "var": rng.uniform(0.5, 3, CHANNELS).astype(np.float32),
        "gamma": rng.uniform(-2, 2, CHANNELS).astype(np.float32),
        "beta": rng.normal(size=CHANNELS).astype(np.float32),
        "next": rng.normal(size=(1, 1, CHANNELS, 32)).astype(np.float32),
    }


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def linen(y, v):
    return (y - v["mean"]) * (lax.rsqrt(v["var"] + 1e-3) * v["gamma"]) + v["beta"]


def keras(y, v):
    scale = lax.rsqrt(v["var"] + 1e-3) * v["gamma"]
    return y * scale + (-v["mean"] * scale + v["beta"])


def quotient(y, v):
    return (y - v["mean"]) / jnp.sqrt(v["var"] + 1e-3) * v["gamma"] + v["beta"]


def by_shape(y, v):
    mean, var = (v[n].reshape(1, 1, 1, -1) for n in ("mean", "var"))
    return v["gamma"] * ((y - mean) * lax.rsqrt(var + 1e-3)) + v["beta"]


def net(norm, bias=False, activation=jax.nn.relu):
    def apply(v, x):
        y = conv(x, v["kernel"])
        return conv(activation(norm(y + v["bias"] if bias else y, v)), v["next"])

    return apply


def traced(fn, v, shape=IMAGES):
    chains = Chains.trace(fn, (v, jax.ShapeDtypeStruct(shape, jnp.float32)), {}, q8.Config())
    leaves = dict(enumerate(jax.tree.leaves(v)))
    return chains, leaves, batch_norms(chains, leaves)


@pytest.mark.parametrize("norm", [linen, keras, quotient, by_shape])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_is_found_however_it_is_written(norm, bias):
    v = statistics()
    chains, _, norms = traced(net(norm, bias), v)
    assert len(norms) == 1
    assert "mean" in chains.names[norms[0].leaf]
    # The mean is that of the value before the first vector, which is the convolution's bias where there is one.
    np.testing.assert_allclose(norms[0].mean, v["mean"] - (v["bias"] if bias else 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norms[0].result_mean, v["beta"], atol=1e-5)
    np.testing.assert_allclose(norms[0].result_spread, np.abs(v["gamma"]), rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        lambda y, v: y * v["gamma"] + v["beta"],
        lambda y, v: (y - v["mean"]) * v["gamma"] + v["beta"],
        lambda y, v: (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-3) * v["gamma"] + v["beta"],
        lambda y, v: y * lax.rsqrt(v["var"] + 1e-3) + v["mean"],
    ],
    ids=["scale and shift", "no root", "layer norm", "added"],
)  # fmt: skip
def test_other_vectors_are_no_batch_norm(other):
    assert traced(net(other), statistics())[2] == []


def test_a_batch_norm_before_a_convolution_is_found():
    v = statistics()
    v["kernel"] = np.ones((1, 1, CHANNELS, 4), np.float32)
    fn = lambda v, x: conv(jax.nn.relu(linen(x, v)), v["kernel"])  # noqa: E731
    chains, leaves, norms = traced(fn, v, (2, 8, 8, CHANNELS))
    assert len(norms) == 1
    assert len(expected_inputs(chains, leaves, norms)) == 1


def normal(z):
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))


def clipped_mean(mean, spread, high=math.inf):
    """The mean of a normal distribution that is clipped to 0..high: Nagel et al. 2019, appendix C."""
    (low_density, low_share), (high_density, high_share) = (
        normal(-mean / spread),
        normal((high - mean) / spread),
    )
    inside = mean * (high_share - low_share) + spread * (low_density - high_density)
    return inside + (0 if math.isinf(high) else high * (1 - high_share))


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_expected_inputs_are_those_of_the_clipped_normal_distribution(activation):
    v = statistics(1)
    v["beta"] = v["beta"] + np.float32(3)
    fn = net(linen, activation=getattr(jax.nn, activation))
    chains, leaves, norms = traced(fn, v, (8, 32, 32, 3))
    known = {site.name: known for node, site in chains.contractions()
             if (known := expected_inputs(chains, leaves, norms).get(node))}  # fmt: skip
    (moments,) = known.values()  # what the first convolution reads is not known
    high = 6.0 if activation == "relu6" else math.inf
    expected = [clipped_mean(m, abs(s), high) for m, s in zip(v["beta"], v["gamma"], strict=True)]
    np.testing.assert_allclose(moments.mean, expected, atol=0.05)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width, groups in ((16, 1), (16, 16), (32, 1), (32, 32)):
            x = nn.Conv(width, (3, 3) if groups > 1 else (1, 1), feature_group_count=groups, use_bias=False)(
                x
            )
            x = nn.relu(nn.BatchNorm(use_running_average=not self.is_mutable_collection("batch_stats"))(x))
        return nn.Dense(10)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def trained():
    """A net whose statistics are those of its data, the variables, and data that the statistics have not seen."""
    model, keys = Small(), jax.random.split(jax.random.key(0), 3)
    images = [jnp.cumsum(jax.random.normal(k, (16, 12, 12, 3)), 1) / 3 + 0.5 for k in keys]
    variables = model.init(keys[0], images[0])
    step = jax.jit(lambda v, x: model.apply(v, x, mutable=["batch_stats"])[1])
    for _ in range(300):  # a running mean keeps 99% of what it was
        new = step(variables, images[1])
        variables = {**variables, **new}
    return model.apply, jax.device_get(variables), images[2]


def exact_arithmetic(fn, variables, x):
    """The result with the numbers that codes stand for, in float."""
    plain = jax.tree.map(lambda a: a.dequantize() if isinstance(a, q8.QTensor) else a, variables,
                         is_leaf=lambda a: isinstance(a, q8.QTensor))  # fmt: skip
    return jax.jit(fn)(plain, x)


@pytest.mark.parametrize("bits", [8, 5])
def test_what_rounding_weights_costs_becomes_less(trained, bits):
    fn, variables, images = trained
    config = q8.Config(weights=q8.Spec(bits=bits, symmetric=True, granularity="channel"), kernels="xla")
    exact = jax.jit(fn)(variables, images)
    plain, better = (
        q8.quantize_weights(fn, variables, images, config=config, correct=c) for c in (None, "statistics")
    )
    assert jax.tree.structure(plain) == jax.tree.structure(better)
    before, after = (sqnr_db(exact, exact_arithmetic(fn, v, images)) for v in (plain, better))
    assert after > before + 1
    fast = jax.jit(q8.quantize(fn, config))
    assert sqnr_db(exact, fast(better, images)) > sqnr_db(exact, fast(plain, images))
    again = q8.quantize_weights(fn, variables, images, config=config, correct="statistics")
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (better, again)), strict=True))


def test_corrected_weights_go_through_the_rest(trained, tmp_path):
    fn, variables, images = trained
    config = q8.Config(kernels="xla")
    fast = jax.jit(q8.quantize(fn, config))
    better = q8.quantize_weights(fn, variables, images, config=config, correct="statistics")
    expected = fast(better, images)
    q8.save(tmp_path / "net.q8", better)
    assert np.array_equal(fast(q8.load(tmp_path / "net.q8")[0], images), expected)
    folded = q8.fold_norms(fn, better, images, config=config)
    assert sqnr_db(expected, fast(folded, images)) > 40
    # What is encoded already stays as it is.
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(better),
            jax.tree.leaves(q8.quantize_weights(fn, better, images, config=config, correct="statistics")),
            strict=True,
        )
    )


@pytest.mark.parametrize("mode", ["weights", "simulate", "weights_rounded", "off"])
def test_every_mode_takes_corrected_weights(trained, mode):
    fn, variables, images = trained
    config = q8.Config(mode=mode, kernels="auto")
    better = q8.quantize_weights(fn, variables, images, config=config, correct="statistics")
    exact = fn(variables, images)
    assert sqnr_db(exact, jax.jit(q8.quantize(fn, config))(better, images)) > 25


def test_statistics_of_no_data_are_not_believed(trained):
    """Fresh batch norms say mean 0 and spread 1 of whatever comes: vectors stay as they are, and codes are balanced."""
    fn, variables, images = trained
    fresh = {**variables, "batch_stats": jax.tree.map(np.zeros_like, variables["batch_stats"])}
    fresh["batch_stats"] = {
        name: {"mean": part["mean"], "var": np.ones_like(part["var"])}
        for name, part in fresh["batch_stats"].items()
    }
    config = q8.Config(kernels="xla")
    better = q8.quantize_weights(fn, fresh, images, config=config, correct="statistics")
    statistics = jax.tree.leaves(fresh["batch_stats"]), jax.tree.leaves(better["batch_stats"])
    assert all(np.array_equal(a, b) for a, b in zip(*statistics, strict=True))
    plain = q8.quantize_weights(fn, fresh, images, config=config, correct=None)
    exact = jax.jit(fn)(fresh, images)
    assert sqnr_db(exact, exact_arithmetic(fn, better, images)) > sqnr_db(
        exact, exact_arithmetic(fn, plain, images)
    )


@pytest.mark.parametrize("known", [True, False])
def test_statistics_may_be_another_argument(trained, known):
    """Only the first argument has weights and statistics; what is beside it may be numbers or shapes."""
    fn, variables, images = trained
    apart = lambda params, stats, x: fn({"params": params, "batch_stats": stats}, x)  # noqa: E731
    params, stats = variables["params"], variables["batch_stats"]
    given = stats if known else jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), stats)
    config = q8.Config(kernels="xla")
    plain, better = (
        q8.quantize_weights(apart, params, given, images, config=config, correct=c)
        for c in (None, "statistics")
    )
    exact = jax.jit(fn)(variables, images)
    before, after = (
        sqnr_db(exact, exact_arithmetic(lambda p, x: apart(p, stats, x), v, images)) for v in (plain, better)
    )
    assert after > before


def test_nets_without_statistics_get_balanced_codes():
    rng = np.random.default_rng(5)
    layers = [rng.normal(size=(64, 64)).astype(np.float32) / 8 for _ in range(3)]

    def fn(v, x):
        x = jnp.abs(x)
        for w in v:
            x = jax.nn.relu(x @ w)
        return x

    x = np.abs(rng.normal(size=(32, 64))).astype(np.float32)
    config = q8.Config(kernels="xla")
    exact = fn(layers, x)
    plain, better = (
        sqnr_db(exact, exact_arithmetic(fn, q8.quantize_weights(fn, layers, x, config=config, correct=c), x))
        for c in (None, "statistics")
    )
    assert better > plain + 1


def test_books_and_loops_are_left_as_they_are():
    rng = np.random.default_rng(6)
    stacked = rng.normal(size=(3, 32, 32)).astype(np.float32) / 6

    def fn(w, x):
        return lax.scan(lambda c, k: (jax.nn.relu(c @ k), None), x, w)[0]

    x = jnp.abs(jnp.asarray(rng.normal(size=(8, 32)), jnp.float32))
    config = q8.Config(kernels="xla")
    better = q8.quantize_weights(fn, stacked, x, config=config, correct="statistics")
    assert sqnr_db(fn(stacked, x), jax.jit(q8.quantize(fn, config))(better, x)) > 25
    book = q8.Config(weights=q8.Spec(bits=4, granularity="channel", levels="kmeans"), kernels="xla")
    plain, same = (q8.quantize_weights(fn, stacked, x, config=book, correct=c) for c in (None, "statistics"))
    assert isinstance(same, q8.CodeBook)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (plain, same)), strict=True))


def test_what_cannot_be_corrected_is_refused():
    w, x = np.ones((32, 32), np.float32), np.ones((4, 32), np.float32)

    def fn(w, x):
        return x @ w

    with pytest.raises(q8.ArgumentError, match=r"correct='everything'.*'statistics'"):
        q8.quantize_weights(fn, w, x, correct="everything")
    with pytest.raises(q8.ArgumentError, match="outside of jit"):
        jax.jit(lambda w: q8.quantize_weights(fn, w, x, correct="statistics"))(w)
    with pytest.raises(q8.ArgumentError, match="pass arrays"):
        q8.quantize_weights(fn, jax.ShapeDtypeStruct((32, 32), jnp.float32), x, correct="statistics")
