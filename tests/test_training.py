"""Learned step sizes: the derivative of the paper, and training through the quantized function."""

from __future__ import annotations

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from examples import finetune
from tests.small import normal

THREE = q8.Spec(bits=3, symmetric=True)


def test_the_derivative_by_the_step_is_that_of_the_paper() -> None:
    w, step = jnp.array([0.9, 0.3, -0.72, 5.0, -5.0]), jnp.array([0.5])
    slope = jax.vmap(
        jax.grad(lambda s, i: q8.learned_step(w, s, THREE).dequantize()[i], argnums=0), (None, 0)
    )
    found = slope(step, jnp.arange(5))[:, 0]
    ratio = np.asarray(w) / 0.5
    inside = np.abs(ratio) < 3
    expected = np.where(inside, np.round(ratio) - ratio, np.sign(ratio) * 3) / np.sqrt(5 * 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_derivative_by_the_weight_is_one_inside_and_zero_beyond() -> None:
    w = jnp.array([0.9, 0.3, -0.72, 5.0, -5.0])
    slope = jax.grad(lambda w: q8.learned_step(w, jnp.array([0.5]), THREE).dequantize().sum())(w)
    np.testing.assert_allclose(slope, [1, 1, 1, 0, 0], rtol=1e-6)


def test_codes_and_first_step() -> None:
    w = normal(32, 8)
    step = q8.initial_step(w, THREE, (1,))
    np.testing.assert_allclose(step, 2 * np.abs(w).mean(0, keepdims=True) / np.sqrt(3), rtol=1e-5)
    trained = q8.integer_codes({"w": q8.learned_step(w, step, THREE), "b": w})
    assert trained["w"].values.dtype == jnp.int8
    np.testing.assert_array_equal(trained["w"].values, np.clip(np.rint(np.asarray(w / step)), -3, 3))
    assert trained["b"] is w
    with pytest.raises(q8.SpecError, match="needs a signed symmetric Spec"):
        q8.learned_step(w, step, q8.Spec(bits=3))


FEW = q8.Spec(bits=3, granularity="tensor")
X, W = normal(16, 32), {"w": normal(32, 8) / 6}


def product(v, x):
    return x @ v["w"]


def codes_of(ends, x):
    """What an activation's codes stand for, by an identity in the place of the weight."""
    config = q8.Config(
        kernels="simulate", activations=FEW, weights=q8.Spec(symmetric=True, granularity="channel")
    )
    ranges = q8.learned_ranges({"w:dot": ends})
    return q8.quantize(product, config, ranges=ranges)({"w": jnp.eye(x.shape[-1])}, x)


def test_the_derivative_by_the_ends_of_a_range_is_that_of_the_papers() -> None:
    """Grid -1, -0.5, ... 2.5 for -1..2.5 in three bits: inside, below and above it, and by a value itself."""
    x = jnp.array([[0.3, -2.7, 4.0, 1.0]])
    ends = jnp.array([-1.0, 2.5])
    np.testing.assert_allclose(codes_of(ends, x), [[0.5, -1.0, 2.5, 1.0]], atol=1e-6)
    slopes = jax.jacrev(codes_of)(ends, x)[0] * np.sqrt(4 * 7)
    # Inside the step alone counts: (round(x / s) - x / s) times its derivatives -1/7 and 1/7 by the two ends.
    left = 1.0 - 0.3 / 0.5
    expected = [[-left / 7, left / 7], [1, 0], [0, 1], [0, 0]]
    np.testing.assert_allclose(slopes, expected, atol=1e-5)
    by_value = jax.grad(lambda ends, x: codes_of(ends, x).sum(), argnums=(0, 1))(ends, x)[1]
    np.testing.assert_allclose(by_value, [[1, 0, 0, 1]], atol=1e-6)


def test_a_range_without_negative_numbers_stays_so() -> None:
    slopes = jax.jacrev(codes_of)(jnp.array([0.0, 2.0]), jnp.array([[0.3, -1.7, 4.0, 0.0]]))[0]
    np.testing.assert_array_equal(slopes[:, 0], 0)
    assert slopes[2, 1] > 0


def test_trained_ranges_are_ranges_afterwards() -> None:
    config = q8.Config(kernels="simulate", activations=FEW)
    ends = q8.initial_ranges(q8.calibrate(product, W, [X], config=config, progress=False))
    simulated = jax.jit(lambda e: q8.quantize(product, config, ranges=q8.learned_ranges(e))(W, X))(ends)
    after = q8.learned_ranges(ends)
    assert isinstance(after["w:dot"], q8.Range)
    integers = jax.jit(q8.quantize(product, q8.Config(kernels="xla", activations=FEW), ranges=after))(W, X)
    # Codes that differ are those of ties, which a float32 quotient or product decides differently: none here.
    np.testing.assert_allclose(simulated, integers, atol=1e-5)
    with pytest.raises(q8.SpecError, match="need Config\\(kernels='simulate'\\)"):
        jax.jit(lambda e: q8.quantize(product, q8.Config(kernels="xla"), ranges=q8.learned_ranges(e))(W, X))(
            ends
        )


@pytest.mark.slow
def test_learning_a_range_lessens_the_error() -> None:
    """Descent from a range that is far too wide, at three bits."""

    def error(ends):
        return ((codes_of(ends, X) - X) ** 2).mean()

    start = ends = jnp.array([-12.0, 12.0])
    step = jax.jit(lambda e: e - 400 * jax.grad(error)(e))
    for _ in range(60):
        ends = step(ends)
    assert error(ends) < 0.5 * error(start)


def test_folding_a_batch_norm_into_weights_of_channels_changes_no_code() -> None:
    """Codes do not depend on a positive factor of their channel: there is nothing that training would have to fold."""
    w, factor = normal(3, 3, 4, 8), jnp.exp(normal(8))
    plain, folded = (
        q8.QTensor.from_float(v, q8.Spec(bits=4, symmetric=True), axis=3) for v in (w, w * factor)
    )
    differ = np.asarray(plain.values) != np.asarray(folded.values)
    steps = np.asarray(w / plain.scale)
    assert (np.abs(np.abs(steps[differ] % 1) - 0.5) < 1e-4).all()  # ties, if any
    np.testing.assert_allclose(folded.scale, plain.scale * factor, rtol=1e-6)


def write_idx(folder, name: str, data: np.ndarray, packed: bool) -> None:
    header = bytes((0, 0, 8, data.ndim)) + b"".join(int(n).to_bytes(4, "big") for n in data.shape)
    raw = header + data.astype(np.uint8).tobytes()
    (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of ten classes: a bright row at the class's height, under noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count)
    images = generator.integers(0, 100, (count, 28, 28))
    images[np.arange(count), 4 + 2 * labels] += 120
    return images, labels


@pytest.mark.slow
def test_finetuning_at_two_bits_learns_what_rounding_loses(tmp_path) -> None:
    for part, (images, labels) in {"train": stripes(1000, 0), "t10k": stripes(500, 1)}.items():
        write_idx(tmp_path, f"{part}-images-idx3-ubyte", images, packed=True)
        write_idx(tmp_path, f"{part}-labels-idx1-ubyte", labels, packed=False)
    data = finetune.from_folder(tmp_path)
    assert data.images.shape == (1000, 28, 28, 1)
    variables = finetune.train_float(data, 4, jax.random.key(0))
    tuned, _ = finetune.finetune(variables, 2, data, 2)
    integer, simulated = (q8.quantize(finetune.infer, finetune.config(2, k)) for k in ("xla", "simulate"))
    exact, found, same = (
        finetune.accuracy(fn, v, data)
        for fn, v in ((finetune.infer, variables), (integer, tuned), (simulated, tuned))
    )
    assert exact >= 95
    assert found >= exact - 5
    assert (
        abs(found - same) <= 0.4
    )  # an activation half-way between two codes may tip over: two of 500 images
    kernel = tuned["params"]["Conv_1"]["kernel"]
    assert set(np.unique(kernel.values)) <= {-1, 0, 1}


def test_a_folder_without_the_files_is_named(tmp_path, capsys) -> None:
    assert finetune.main(["--data", str(tmp_path)]) == 1
    assert "has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz" in capsys.readouterr().err
