"""What kernels are handed: unsigned codes on either side of a product, whatever else reads them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import normal

import jaxq8 as q8
from jaxq8.kernels.forms import DotForm
from jaxq8.kernels.registry import KERNELS, Operand

# A missing correction for the zero point is an error of the size of the result; rounding to eight bits stays below this.
ROUNDING = 0.01


def relative(exact, found):
    """The error over the size of what is exact; 0 where nothing differs, also of zeros."""
    error = np.linalg.norm(np.asarray(exact) - np.asarray(found))
    return float(error / np.linalg.norm(np.asarray(exact))) if error else 0.0


def bytes_like(*shape):
    """Uniform in 0..255: never negative, so that the zero point of its codes is 0 and known."""
    return jnp.asarray(np.random.default_rng(shape).uniform(0, 255, shape), jnp.float32)


def both_sides(p, x):
    return x @ p[0], jax.nn.relu(p[1]) @ x


def beside_a_resized_image(p, x):
    return x @ p[0], jax.image.resize(x, (192, 192), "bilinear")


def squared(p, x):
    return jax.nn.relu(x) @ jax.nn.relu(x).T @ p[0]


def super_resolution(p, x):
    y = x
    for w in p:
        y = jax.nn.relu(jax.lax.conv_general_dilated(
            y, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ))  # fmt: skip
    return jax.image.resize(x, (1, 32, 32, 3), "bilinear") + jax.image.resize(y, (1, 32, 32, 3), "nearest")


SQUARE = [normal(64, 64), normal(64, 64) + 0.01]
IMAGES = [normal(3, 3, 3, 16) / 5, normal(3, 3, 16, 16) / 12, normal(3, 3, 16, 3) / 12]


@pytest.mark.parametrize("kernels", ["auto", "xla", "reference", "simulate"])
@pytest.mark.parametrize(
    ("fn", "p", "x"),
    [
        (both_sides, SQUARE, bytes_like(64, 64)),
        (beside_a_resized_image, SQUARE, bytes_like(64, 64)),
        (squared, SQUARE, bytes_like(64, 64) / 100),
        (super_resolution, IMAGES, bytes_like(1, 16, 16, 3)),
    ],
)
def test_codes_of_an_activation_are_right_on_the_weights_side(fn, p, x, kernels):
    """The codes are made for one product, unsigned with zero point 0, and another reads them as its right operand."""
    config = q8.Config(kernels=kernels, attention=True)
    ranges = q8.calibrate(fn, p, [x], config=config, progress=False)
    exact = jax.tree.leaves(fn(p, x))
    for given in (None, ranges):
        found = jax.tree.leaves(jax.jit(q8.quantize(fn, config, ranges=given))(p, x))
        assert [relative(e, f) < ROUNDING for e, f in zip(exact, found, strict=True)] == [True] * len(exact)


@pytest.mark.parametrize("weights", [q8.Spec(granularity="channel"), q8.Spec(symmetric=True, signed=False)])
def test_weights_by_unsigned_codes(weights):
    """Weights with a zero point, and weights that are never negative by codes that know that."""
    p, x = {"w": jnp.abs(normal(64, 48))}, normal(16, 64)
    config = q8.Config(kernels="xla", weights=weights)
    found = jax.jit(q8.quantize(lambda p, x: x @ p["w"], config))(p, x)
    assert relative(x @ p["w"], found) < ROUNDING


@pytest.mark.parametrize("kernels", ["xla", "reference", "simulate"])
@pytest.mark.parametrize("fn", [lambda p, x: x @ p["w"], lambda p, x: p["w"].T @ x.T])
def test_one_channel_and_rows_with_ranges_of_their_own(fn, kernels):
    """The correction for the zero points of rows is one for each row, also where there is one channel alone."""
    p, x = {"w": normal(12, 1)}, normal(24, 12) + 1
    found = jax.jit(q8.quantize(fn, q8.Config(kernels=kernels)))(p, x)
    assert relative(fn(p, x), found) < 2 * ROUNDING


def test_one_step_computes_what_the_whole_sequence_does():
    """Whether a product with a weight runs in eight bits does not depend on how many rows there are."""

    def fn(p, x):
        return jnp.tanh(x @ p[0]) @ p[1]

    p, x = [normal(64, 128) / 8, normal(128, 64) / 11], normal(24, 64)
    fast = jax.jit(q8.quantize(fn))
    assert q8.explain(fn, p, x[:1]).eight_bit_share == 1
    steps = jnp.concatenate([fast(p, row[None]) for row in x])
    # Rows have ranges of their own: the codes are the same, and what is left is the rounding of float32.
    assert relative(fast(p, x), steps) < 1e-5


def test_an_operand_checks_its_codes():
    codes = jnp.zeros((4, 4), jnp.uint8)
    with pytest.raises(q8.errors.TensorError, match="signed codes of uint8"):
        Operand(codes, signed=True)
    with pytest.raises(q8.errors.TensorError, match="zero point is float32"):
        Operand(codes, jnp.float32(3))
    with pytest.raises(q8.errors.TensorError, match="unsigned codes on the weight's side"):
        KERNELS["xla"].run(DotForm(0, 4, 4, 4), Operand(codes), Operand(codes))


@pytest.mark.parametrize("zero", [None, np.int32(7)])
def test_signed_codes_stand_for_the_same_numbers(zero):
    codes = jnp.arange(256, dtype=jnp.uint8)
    for carried in (codes, codes.astype(jnp.float32)):
        before, after = Operand(carried, zero, signed=False), Operand(carried, zero, signed=False).as_signed()
        assert after.signed
        real = np.asarray(after.codes, np.int64) - after.zero
        np.testing.assert_array_equal(
            real, np.asarray(before.codes, np.int64) - (0 if zero is None else zero)
        )
