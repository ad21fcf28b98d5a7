"""`compare`, `sensitivity` and the repairs, on cases where the trouble was planted."""

from __future__ import annotations

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
    """Weights of 3 bits over inputs far from zero: rounding shifts every channel's mean."""
    config = q8.Config(kernels="xla", weights=q8.Spec(bits=3, symmetric=True, granularity="channel"))
    x = X + 5
    better = q8.correct_bias(mlp, V, [x], config=config, progress=False)
    fast, exact = jax.jit(q8.quantize(mlp, config)), mlp(V, x)
    assert sqnr_db(exact, fast(better, x)) > sqnr_db(exact, fast(V, x)) + 3
    np.testing.assert_array_equal(better["a"], V["a"])
    assert np.abs(better["bias"] - V["bias"]).max() > 0


def test_report_has_the_figures_of_numpy(tmp_path):
    fast, _ = static(V)
    report = q8.compare(mlp, fast, V, [X[:10], X[10:]], progress=False)
    exact, found = np.asarray(mlp(V, X), np.float64), np.asarray(fast(V, X), np.float64)
    assert report.output.sqnr_db == pytest.approx(sqnr_db(exact, found), abs=0.01)
    assert report.output.max_error == pytest.approx(np.abs(exact - found).max(), rel=1e-4)
    assert report.output.top1 == np.mean(exact.argmax(1) == found.argmax(1))
    assert [s.name for s in report.sites] == ["a:dot", "b:dot"]
    assert (
        report["a:dot"].clipped < 0.01
    )  # the ends of a range move by up to half a step, so that zero is a code
    assert json.loads(report.to_json())["sites"][1]["name"] == "b:dot"
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(q8.ArgumentError, match="cannot write"):
        report.plot(tmp_path / "report.nothing")


def test_other_functions_are_compared_by_their_results():
    report = q8.compare(mlp, lambda v, x: mlp(v, x) + 0.5, V, [X], progress=False)
    assert report.sites == ()
    assert report.output.max_error == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(q8.ArgumentError, match="results have shapes"):
        q8.compare(mlp, lambda v, x: x, V, [X], progress=False)


def test_sensitivity_finds_the_planted_site_and_its_overrides_reach_the_target():
    data = X.at[0, 0].set(400.0)  # the first site's range is spoilt
    _, ranges = static(V, data)
    found = q8.sensitivity(mlp, V, [X], config=EIGHT, ranges=ranges, target_db=30, progress=False)
    assert found.all_db < 30 <= found.reached_db
    assert [s.name for s in found.sites] == ["a:dot", "b:dot"]
    config = q8.Config(kernels="xla", overrides=found.overrides)
    fast = jax.jit(q8.quantize(mlp, config, ranges=ranges))
    assert sqnr_db(mlp(V, X), fast(V, X)) == pytest.approx(found.reached_db, abs=1.0)
    easy = q8.sensitivity(mlp, V, [X], config=EIGHT, target_db=10, progress=False)
    assert easy.overrides == ()


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
