"""Weights with a scale for each group of neighbours: encoded as by hand, decoded everywhere, stored packed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from tests.small import dense, grad, normal, sqnr_db

SPEC = q8.Spec(bits=4, symmetric=True, granularity="group", group=32)
CONFIG = q8.Config(kernels="xla", weights=SPEC)
V = {"w": normal(128, 64) / 11 * jnp.geomspace(0.01, 1, 128)[:, None], "v": normal(64, 32) / 8}
EVEN, Y = {"w": normal(128, 64) / 11, "v": normal(64, 32) / 8}, normal(16, 128)
X = Y / jnp.geomspace(0.01, 1, 128)


def test_groups_are_those_of_numpy() -> None:
    q = q8.quantize_weights(dense, V, X, config=CONFIG, correct=None)["w"]
    assert (q.shape, q.scale.shape, q.is_grouped) == ((128, 64), (4, 64), True)
    groups = np.asarray(V["w"]).reshape(4, 32, 64)
    scale = np.abs(groups).max(1, keepdims=True) / 7
    np.testing.assert_allclose(q.scale, scale[:, 0], rtol=1e-6)
    real = np.asarray(q.dequantize()).reshape(4, 32, 64)
    assert (np.abs(real - groups) <= scale * 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("axis", "shape", "scales"),
    [
        ((3,), (3, 3, 64, 8), (1, 1, 2, 8)),
        ((3,), (3, 3, 1, 64), (1, 1, 1, 64)),
        ((0,), (8, 96), (8, 3)),
        ((1,), (48, 8), (1, 8)),
    ],
)
def test_groups_lie_along_the_last_summed_axis_that_they_divide(axis, shape, scales) -> None:
    x = normal(*shape)
    q = q8.QTensor.from_float(x, SPEC, axis=axis)
    assert q.scale.shape == scales
    step = np.asarray(q.by_element(q.scale))
    assert (np.abs(q.dequantize() - x) <= step * 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    "mode",
    [
        "eightbit",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("weights", "weights_rounded", "simulate")),
    ],
)
def test_every_mode_computes_with_the_decoded_weights(mode: str) -> None:
    config = q8.Config(mode=mode, kernels="xla", weights=SPEC)
    q_vars = q8.quantize_weights(dense, EVEN, Y, config=config, correct=None)
    decoded = jax.tree.map(lambda q: q.dequantize() if isinstance(q, q8.QTensor) else q, q_vars,
                           is_leaf=lambda q: isinstance(q, q8.QTensor))  # fmt: skip
    found = jax.jit(q8.quantize(dense, config))(q_vars, Y)
    # In the modes that compute in float only the order of sums differs; eight-bit activations and weights have 38 dB a layer.
    assert sqnr_db(dense(decoded, Y), found) > (90 if mode.startswith("weights") else 30)
    again = jax.jit(q8.quantize(dense, config))(EVEN, Y)
    assert sqnr_db(found, again) > 60


def test_groups_of_uneven_inputs_are_better_than_channels() -> None:
    exact = dense(V, X)
    channel = q8.Config(
        kernels="xla", mode="weights", weights=q8.Spec(bits=4, symmetric=True, granularity="channel")
    )
    group = q8.Config(kernels="xla", mode="weights", weights=SPEC)
    plain, grouped = (sqnr_db(exact, jax.jit(q8.quantize(dense, c))(V, X)) for c in (channel, group))
    assert grouped > plain + 6


@pytest.mark.slow
def test_learned_rounding_and_derivatives_with_groups() -> None:
    train = normal(64, 128) / jnp.geomspace(0.01, 1, 128)
    config = q8.Config(kernels="xla", mode="weights", weights=SPEC)
    learned = q8.learn_rounding(dense, V, [train], config=config, stages=1, progress=False)
    assert learned["w"].scale.shape == (4, 64)
    fast = jax.jit(q8.quantize(dense, config))
    nearest = q8.learn_rounding(
        dense, V, [train], method="nearest", search=False, stages=1, config=config, progress=False
    )
    np.testing.assert_array_equal(
        nearest["w"].scale, q8.quantize_weights(dense, V, X, config=config, correct=None)["w"].scale
    )
    assert sqnr_db(dense(V, train), fast(learned, train)) > sqnr_db(dense(V, train), fast(nearest, train))
    slope = grad(lambda v: q8.quantize(dense, CONFIG.simulated())(v, Y).sum())(EVEN)
    exact = grad(lambda v: dense(v, Y).sum())(EVEN)
    assert sqnr_db(exact, slope) > 10  # straight through four bits: about 20 dB a layer


def test_files_hold_groups_packed(tmp_path) -> None:
    q_vars = q8.quantize_weights(dense, V, X, config=CONFIG, correct=None)
    q8.save(tmp_path / "m.q8", q_vars, config=CONFIG)
    loaded, _, config = q8.load(tmp_path / "m.q8")
    assert config == CONFIG
    for name in V:
        np.testing.assert_array_equal(loaded[name].values, q_vars[name].values)
        np.testing.assert_array_equal(loaded[name].scale, q_vars[name].scale)
    elements = 128 * 64 + 64 * 32
    assert (tmp_path / "m.q8").stat().st_size < elements // 2 + elements // 32 * 4 + 4000


def test_what_is_refused() -> None:
    with pytest.raises(
        q8.SpecError, match="give the size of groups with granularity 'group', and only there"
    ):
        q8.Spec(granularity="group")
    with pytest.raises(q8.SpecError, match=r"Spec\(granularity='channel', group=32\)"):
        q8.Spec(granularity="channel", group=32)
    with pytest.raises(q8.SpecError, match="groups are for weights"):
        q8.Config(activations=SPEC)
    q = q8.QTensor.from_float(normal(64, 8), SPEC, axis=1)
    broken = q8.QTensor(q.values, q.scale[:1].repeat(3, 0), q.zero_point[:1].repeat(3, 0), 4, True)
    with pytest.raises(q8.TensorError, match=r"scale \(3, 8\) does not broadcast to values \(64, 8\)"):
        q8.quantize(dense, CONFIG)({"w": broken, "v": normal(8, 8)}, normal(4, 64))
