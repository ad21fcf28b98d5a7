"""`compare`, `sensitivity` and the repairs, on cases where the trouble was planted."""

from __future__ import annotations

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8

KEYS = jax.random.split(jax.random.key(0), 8)
EIGHT = q8.Config(kernels="xla")
X = jax.random.normal(KEYS[0], (16, 32))
V = {
    "a": jax.random.normal(KEYS[1], (32, 32)) / 6,
    "bias": jnp.ones(32),
    "b": jax.random.normal(KEYS[2], (32, 10)) / 6,
}


def mlp(v, x):
    return jax.nn.relu(x @ v["a"] + v["bias"]) @ v["b"]


def sqnr_db(exact, found) -> float:
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)))


def uneven(factor):
    """The same function with hidden channels whose ranges differ by up to `factor`."""
    s = jnp.geomspace(1 / np.sqrt(factor), np.sqrt(factor), 32)
    return {"a": V["a"] * s, "bias": V["bias"] * s, "b": V["b"] / s[:, None]}


def static(v, calibration=X):
    ranges = q8.calibrate(mlp, v, [calibration], config=EIGHT, progress=False)
    return jax.jit(q8.quantize(mlp, EIGHT, ranges=ranges)), ranges


def test_equalising_rescues_uneven_channels_and_changes_nothing_in_float():
    v, exact = uneven(10000.0), mlp(V, X)
    even = q8.equalize(mlp, v, [X], config=EIGHT, progress=False)
    np.testing.assert_allclose(mlp(even, X), exact, rtol=1e-3, atol=1e-4)
    before, after = (sqnr_db(exact, static(w)[0](w, X)) for w in (v, even))
    assert before < 25
    assert after > before + 10


def test_bias_correction_takes_back_a_planted_shift():
    """Weights of 3 bits over inputs far from zero: rounding shifts the mean of channels; both layers have a bias to take it.

    Ten other nets and data gain 9 to 18 dB, 14 +- 2.5.
    """

    def biased(v, x):
        return mlp(v, x) + v["last"]

    config = q8.Config(kernels="xla", weights=q8.Spec(bits=3, symmetric=True, granularity="channel"))
    v, x = {**V, "last": jnp.zeros(10)}, X + 5
    better = q8.correct_bias(biased, v, [x], config=config, progress=False)
    fast, exact = jax.jit(q8.quantize(biased, config)), biased(v, x)
    assert sqnr_db(exact, fast(better, x)) > sqnr_db(exact, fast(v, x)) + 6
    np.testing.assert_array_equal(better["a"], v["a"])
    assert np.abs(better["bias"] - v["bias"]).max() > 0


def test_report_has_the_figures_of_numpy(tmp_path):
    fast, _ = static(V)
    report = q8.compare(mlp, fast, V, [X[:10], X[10:]], progress=False)
    exact, found = np.asarray(mlp(V, X), np.float64), np.asarray(fast(V, X), np.float64)
    assert report.output.sqnr_db == pytest.approx(sqnr_db(exact, found), abs=0.01)
    assert report.output.max_error == pytest.approx(np.abs(exact - found).max(), rel=1e-4)
    assert report.output.top1 == np.mean(exact.argmax(1) == found.argmax(1))
    assert [s.name for s in report.sites] == ["a:dot", "b:dot"]
    assert report["a:dot"].clipped == 0  # the ends move by up to half a step, which is rounding, not clipping
    assert json.loads(report.to_json())["sites"][1]["name"] == "b:dot"
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(q8.ArgumentError, match="cannot write"):
        report.plot(tmp_path / "report.nothing")


def test_clipped_is_what_lies_outside_of_the_range():
    x = jnp.clip(X, -1.3, 2)
    ranges = {"a:dot": (-1.0, 2.0), "b:dot": (0, 9)}
    fast = jax.jit(q8.quantize(mlp, EIGHT, ranges=ranges))
    report = q8.compare(mlp, fast, V, [x], progress=False)
    step = 3 / 255
    assert report["a:dot"].clipped == pytest.approx(float(np.mean(x < -1 - step / 2)), abs=1e-3)
    assert report["b:dot"].clipped == 0
    assert report["a:dot"].maximum - report["a:dot"].minimum == pytest.approx(3, rel=1e-5)


def test_other_functions_are_compared_by_their_results():
    report = q8.compare(mlp, lambda v, x: mlp(v, x) + 0.5, V, [X], progress=False)
    assert report.sites == ()
    assert report.output.max_error == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(q8.ArgumentError, match="results have shapes"):
        q8.compare(mlp, lambda v, x: x, V, [X], progress=False)


def test_sensitivity_finds_the_planted_site_and_its_overrides_reach_the_target():
    data = X.at[0, 0].set(400.0)  # the first site's range is spoilt
    with pytest.warns(q8.CalibrationWarning, match="example 0 of batch 0 is 182 times as large"):
        _, ranges = static(V, data)
    found = q8.sensitivity(mlp, V, [X], config=EIGHT, ranges=ranges, target_db=30, progress=False)
    assert found.all_db < 30 <= found.reached_db
    assert [s.name for s in found.sites] == ["a:dot", "b:dot"]
    config = q8.Config(kernels="xla", overrides=found.overrides)
    fast = jax.jit(q8.quantize(mlp, config, ranges=ranges))
    assert sqnr_db(mlp(V, X), fast(V, X)) == pytest.approx(found.reached_db, abs=1.0)
    easy = q8.sensitivity(mlp, V, [X], config=EIGHT, target_db=10, progress=False)
    assert easy.overrides == ()


def test_sensitivity_reaches_an_agreement():
    """A step of 3 leaves little of what the first site reads: without it nine of ten answers are float's."""
    ranges = {**static(V)[1], "a:dot": (-400.0, 400.0)}
    found = q8.sensitivity(mlp, V, [X], config=EIGHT, ranges=ranges, target_agreement=0.9, progress=False)
    assert found.all_agreement < 0.9 <= found.reached_agreement
    assert found.overrides == (("a:dot", {"mode": "off"}),)
    assert "with 1 contractions in float" in str(found)
    fast = jax.jit(q8.quantize(mlp, q8.Config(kernels="xla", overrides=found.overrides), ranges=ranges))
    assert np.mean(fast(V, X).argmax(1) == mlp(V, X).argmax(1)) == found.reached_agreement
    for target, text in (({"target_agreement": 95}, "between 0 and 1"), ({"target_db": np.nan}, "decibels")):
        with pytest.raises(q8.ArgumentError, match=text):
            q8.sensitivity(mlp, V, [X], config=EIGHT, progress=False, **target)


def test_the_clipping_search_of_a_site_saves_what_an_outlier_costs():
    """One of 65,536 normal numbers is 20; at 4 bits a step that holds it would be 1.5 for all others."""
    data = jax.random.normal(KEYS[3], (2048, 32)).at[0, 0].set(20.0)
    four = q8.Spec(bits=4, granularity="tensor")
    plain = q8.Config(kernels="xla", activations=four)
    clip = dataclasses.replace(four, range="mse")
    search = dataclasses.replace(plain, overrides=(("a:*", {"activations": clip}),))

    def found(config):
        ranges = q8.calibrate(mlp, V, [data], config=config, progress=False)
        return sqnr_db(mlp(V, X), jax.jit(q8.quantize(mlp, config, ranges=ranges))(V, X))

    assert found(search) > found(plain) + 3


def test_a_range_for_each_row_saves_what_one_large_row_costs():
    x = X.at[0].multiply(300.0)
    exact = mlp(V, x)
    tensor, row = (
        jax.jit(q8.quantize(mlp, q8.Config(kernels="xla", activations=q8.Spec(granularity=g))))(V, x)
        for g in ("tensor", "row")
    )
    assert sqnr_db(exact[1:], row[1:]) > sqnr_db(exact[1:], tensor[1:]) + 20


def test_migration_rescues_a_transformers_outlier_channels():
    """Layer norm's factor makes three channels 100 times as large, as in large language models; SmoothQuant's case."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.gelu(nn.Dense(64)(nn.LayerNorm()(x)))
            return x + nn.Dense(32)(y)

    net = Layer()
    v = net.init(jax.random.key(0), X)
    p = v["params"]
    p["LayerNorm_0"]["scale"] = p["LayerNorm_0"]["scale"].at[jnp.array([3, 17, 30])].set(100.0)
    p["Dense_0"]["kernel"] = p["Dense_0"]["kernel"].at[jnp.array([3, 17, 30])].divide(100.0)
    even = q8.equalize(net.apply, v, [X], config=EIGHT, progress=False)
    exact = net.apply(v, X) - X
    found = []
    for tree in (v, even):
        ranges = q8.calibrate(net.apply, tree, [X], config=EIGHT, progress=False)
        found.append(jax.jit(q8.quantize(net.apply, EIGHT, ranges=ranges))(tree, X) - X)
    assert sqnr_db(exact, found[1]) > sqnr_db(exact, found[0]) + 10


def test_without_data_each_says_so():
    for call in (q8.equalize, q8.correct_bias, q8.sensitivity):
        with pytest.raises(q8.ArgumentError, match="no batches"):
            call(mlp, V, [], progress=False)
    with pytest.raises(q8.ArgumentError, match="must be between 0 and 1"):
        q8.equalize(mlp, V, [X], strength=2, progress=False)


class Tied(nn.Module):
    """A layer norm whose result two layers read; one of them is used twice when `tied`."""

    tied: bool

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        twice = nn.Dense(32, name="twice")
        y = nn.relu(nn.Dense(32, name="a")(y)) + nn.relu(twice(y))
        return nn.Dense(4, name="head")(twice(y) if self.tied else y)


@pytest.mark.parametrize("tied", [False, True])
def test_layer_norms_take_factors_and_tied_weights_do_not(tied):
    """A weight that two places read belongs to neither: whatever shares channels with it stays as it was."""
    net = Tied(tied)
    v = net.init(jax.random.key(0), X)
    p = v["params"]
    p["LayerNorm_0"]["scale"] = p["LayerNorm_0"]["scale"].at[:3].set(300.0)
    even = q8.equalize(net.apply, v, [X], progress=False)
    np.testing.assert_allclose(net.apply(even, X), net.apply(v, X), rtol=1e-3, atol=1e-3)
    scale = np.asarray(even["params"]["LayerNorm_0"]["scale"])
    assert (scale.max() / scale.min() == 300) == tied


def test_what_only_a_float_site_reads_is_evened_out_too():
    """A classifier too small for eight bits reads what the layer before stores in eight bits."""
    v, exact = uneven(1000.0), mlp(V, X)
    even = q8.equalize(mlp, v, [X], progress=False)
    np.testing.assert_allclose(mlp(even, X), exact, rtol=1e-3, atol=1e-4)
    assert sqnr_db(exact, static(even)[0](even, X)) > sqnr_db(exact, static(v)[0](v, X)) + 3
