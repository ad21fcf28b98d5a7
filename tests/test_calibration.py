"""`calibrate`: what it observes, how it streams, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from tests.zoo import ZOO

KEY = jax.random.key(0)
W = {"a": jax.random.normal(KEY, (32, 32)) / 8, "b": jax.random.normal(jax.random.key(1), (32, 16))}
X = jax.random.normal(jax.random.key(2), (8, 32))


def mlp(v, x):
    return jax.nn.relu(x @ v["a"]) @ v["b"]


def calibrated(fn, v, batches, **options):
    options.setdefault("config", q8.Config(kernels="xla"))  # the sites here are too small to gain
    return q8.calibrate(fn, v, batches, progress=False, **options)


def test_ranges_are_those_of_the_float_function():
    hidden = jax.nn.relu(X @ W["a"])
    ranges = calibrated(mlp, W, [X])
    assert list(ranges) == ["a:dot", "b:dot"]
    np.testing.assert_allclose(tuple(ranges["a:dot"]), (X.min(), X.max()), rtol=1e-6)
    np.testing.assert_allclose(tuple(ranges["b:dot"]), (0, hidden.max()), rtol=1e-5)


def test_batches_stream_in_one_pass_and_may_differ_in_size():
    seen = []

    def batches():
        for part in (X[:3], X[3:4], X[4:]):
            seen.append(len(part))
            yield part

    assert calibrated(mlp, W, batches()) == calibrated(mlp, W, [X])
    assert seen == [3, 1, 4]


def test_halves_merge_to_the_whole_and_json_can_be_edited():
    halves = calibrated(mlp, W, [X[:4]]).merge(calibrated(mlp, W, [X[4:]]))
    whole = calibrated(mlp, W, [X])
    assert halves == whole
    edited = q8.Ranges.from_json(whole.to_json().replace(repr(whole["b:dot"].maximum), "2.5"))
    assert edited["b:dot"].maximum == 2.5
    assert "given" in str(q8.explain(mlp, W, X, config=q8.Config(kernels="xla"), ranges=edited))


def test_sites_choose_observers_of_their_own():
    config = q8.Config(kernels="xla", overrides=(("a:*", {"activations": q8.Spec(range="moving_average")}),))
    ranges = calibrated(mlp, W, [10 * X, X], config=config)
    assert ranges["a:dot"].maximum == pytest.approx((0.9 * 10 + 0.1) * float(X.max()), rel=1e-5)
    assert ranges["b:dot"].maximum == pytest.approx(10 * float(jax.nn.relu(X @ W["a"]).max()), rel=1e-5)
    fixed = q8.Config(
        kernels="xla", overrides=(("a:*", {"activations": q8.Spec(range=q8.Range(-9.0, 9.0))}),)
    )
    assert calibrated(mlp, W, [X], config=fixed)["a:dot"] == q8.Range(-9.0, 9.0)


def test_encoded_weights_are_observed_as_the_numbers_they_stand_for():
    codes = q8.quantize_weights(mlp, W, X, correct=None)
    ranges = calibrated(mlp, codes, [X])
    exact = jax.nn.relu(X @ codes["a"].dequantize())
    np.testing.assert_allclose(ranges["b:dot"].maximum, exact.max(), rtol=1e-4)


def loops(kind):
    def scanned(v, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ v["a"]) * 3, None), x, length=4)[0]

    def unrolled(v, x):
        for _ in range(4):
            x = jnp.tanh(x @ v["a"]) * 3
        return x

    def counted(v, x):
        return jax.lax.while_loop(
            lambda s: s[0] < 4, lambda s: (s[0] + 1, jnp.tanh(s[1] @ v["a"]) * 3), (0, x)
        )[1]

    def branched(v, x):
        return jax.lax.cond(x.sum() > 1e9, lambda x: x @ v["b"], lambda x: (x * 2) @ v["b"], x)

    return {"scan": scanned, "while": counted, "unrolled": unrolled, "cond": branched}[kind]


@pytest.mark.parametrize("kind", ["scan", "while"])
def test_bodies_of_loops_are_observed_in_every_step(kind):
    unrolled = calibrated(loops("unrolled"), W, [X])
    whole = (min(r.minimum for r in unrolled.values()), max(r.maximum for r in unrolled.values()))
    looped = calibrated(loops(kind), W, [X])
    assert list(looped) == ["a:dot"]
    np.testing.assert_allclose(tuple(looped["a:dot"]), whole, rtol=1e-5)
    found = jax.jit(q8.quantize(loops(kind), q8.Config(kernels="xla"), ranges=looped))(W, X)
    assert np.abs(found - loops(kind)(W, X)).max() < 0.5


def test_only_the_branch_that_runs_is_observed():
    ranges = calibrated(loops("cond"), W, [X])
    taken = [r for r in ranges.values() if r.maximum == pytest.approx(float(2 * X.max()))]
    assert len(taken) == 1


def test_no_data_nan_data_and_nothing_to_calibrate_are_errors():
    with pytest.raises(q8.ArgumentError, match="no batches; pass an iterable"):
        calibrated(mlp, W, [])
    with pytest.raises(q8.RangesError, match="NaN or infinity in batch 1 at a:dot and 1 later sites; repair"):
        calibrated(mlp, W, [X, X.at[0, 0].set(jnp.nan)])
    with pytest.raises(q8.RangesError, match="no site that runs in eight bits"):
        calibrated(lambda v, x: x + 1, W, [X])
    with pytest.raises(q8.SpecError, match="unknown observer 'min'"):
        calibrated(mlp, W, [X], observer="min")


@pytest.mark.parametrize("wrong", [X, None, {"x": X}])
def test_a_single_batch_is_no_iterable_of_batches(wrong):
    with pytest.raises(
        q8.ArgumentError, match=rf"got {type(wrong).__name__}; pass \[x\] for a single batch x"
    ):
        calibrated(mlp, W, wrong)


def test_a_function_that_is_quantized_already_is_named():
    with pytest.raises(q8.RangesError, match="quantized already: pass the float function"):
        calibrated(jax.jit(q8.quantize(mlp, q8.Config(kernels="xla"))), W, [X])


def test_zeros_tell_nothing_of_a_range():
    """A site that saw only zeros would clip everything to zero later: it finds its range while running."""
    biased = {**W, "bias": jnp.ones(32)}

    def shifted(v, x):
        return jax.nn.relu(x @ v["a"] + v["bias"]) @ v["b"]

    assert dict(calibrated(shifted, biased, [0 * X])) == {"b:dot": q8.Range(1, 1)}
    with pytest.raises(q8.RangesError, match="every site saw nothing but zeros"):
        calibrated(mlp, W, [0 * X])


def test_ranges_of_a_renamed_model_are_refused_by_name():
    ranges = calibrated(mlp, W, [X])
    renamed = {"a": W["a"], "head": W["b"]}

    def other(v, x):
        return jax.nn.relu(x @ v["a"]) @ v["head"]

    with pytest.raises(q8.RangesError, match="'b:dot'"):
        q8.quantize(other, ranges=ranges)(renamed, X)


def test_watermelon_inputs_far_from_zero_with_borders_of_zeros():
    """Zero padding of inputs in 100..255: exact because zero is in every range; without it the border is far off."""
    x = jax.random.uniform(KEY, (2, 12, 12, 8), minval=100, maxval=255)
    k = {"k": jax.random.normal(KEY, (3, 3, 8, 16)) / 8}

    def conv(v, x):
        return jax.lax.conv_general_dilated(
            x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    exact = conv(k, x)
    ranges = calibrated(conv, k, [x])
    for given in (None, ranges):
        found = jax.jit(q8.quantize(conv, q8.Config(kernels="xla"), ranges=given))(k, x)
        assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)) > 35
    # The 2016 failure, by hand: a range of 100..255 has no code of zero, and the nearest that it has is 100.
    step = 155 / 255
    codes = jnp.clip(jnp.round((x - 100) / step), 0, 255)
    bordered = jnp.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0))) * step + 100  # code 0 at the border means 100
    wrong = jax.lax.conv_general_dilated(
        bordered, k["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - wrong) ** 2)) < 15


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_resnet", "tiny_depthwise", "tiny_encoder", "tiny_lstm"])
def test_static_models_keep_their_results(name):
    fn, variables, inputs = ZOO[name].build(KEY)
    ranges = calibrated(fn, variables, [tuple(inputs)])
    config = q8.Config(kernels="xla")
    exact = jax.tree.leaves(jax.jit(fn)(variables, *inputs))
    found = jax.tree.leaves(jax.jit(q8.quantize(fn, config, ranges=ranges))(variables, *inputs))
    signal, noise = (sum(float(np.sum(np.square(np.asarray(a, np.float64)))) for a in t)
                     for t in (exact, [e - f for e, f in zip(exact, found, strict=True)]))  # fmt: skip
    assert 10 * np.log10(signal / noise) > 15


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_152_layers_do_not_fall_apart(static):
    fn, variables, (images,) = ZOO["resnet152"].build(KEY, 2)
    seen, new = images[:1], images[1:]
    ranges = calibrated(fn, variables, [seen]) if static else None
    exact = jax.jit(fn)(variables, new)
    found = jax.jit(q8.quantize(fn, ranges=ranges))(variables, new)
    assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)) > 20


def test_an_argument_that_two_contractions_read_has_one_range():
    ranges = calibrated(lambda v, x: (x @ v["a"], x @ v["b"]), W, [X])
    assert {tuple(r) for r in ranges.values()} == {(float(X.min()), float(X.max()))}
