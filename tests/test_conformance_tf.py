"""What TensorFlow 1.x's eight-bit kernels promised in their unit tests, reproduced row by row by this
library.

The numbers are those of the tests of `quantize_graph` and of the kernels behind it (2016 to 2018); the
parameter `row` is the place in our table of them. The old choices are selected where they differ from this
library's defaults: ranges that need not hold zero (``include_zero=False``), ties away from zero, and the
rounded minimum subtracted from the rounded value. Tolerances are TensorFlow's; 0 means the same number.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxq8 as q8
from jaxq8.numerics.qtensor import extremes
from jaxq8.numerics.rounding import Rounding, bucket_centers

INT32 = (-(2**31), 2**31 - 1)
FLOAT_ERROR = 2.0**-22  # of float32 numbers up to 2
KERNELS = ("reference", "xla", "simulate")
MIN_FIRST, MIN_COMBINED = "rounded_minimum", "float_minimum"


def min_first(bits: int = 8, signed: bool = False, include_zero: bool = False) -> q8.Spec:
    return q8.Spec(bits=bits, signed=signed, include_zero=include_zero)


UNSIGNED, SIGNED, WIDE = min_first(), min_first(signed=True), min_first(bits=32, signed=True)
SCALED_UNSIGNED, SCALED_SIGNED = q8.Spec(symmetric=True, signed=False), q8.Spec(symmetric=True)


def encoded(
    values: Any, ends: tuple[float, float], spec: q8.Spec = UNSIGNED, rounding: str = MIN_FIRST
) -> q8.QTensor:
    """`values` as codes of a range."""
    fixed = dataclasses.replace(spec, range=q8.Range(*ends))
    return q8.QTensor.from_float(jnp.asarray(values, jnp.float32), fixed, rounding=rounding)


def coded(
    codes: Any, ends: tuple[float, float], spec: q8.Spec = UNSIGNED, rounding: str = MIN_FIRST
) -> q8.QTensor:
    """Codes that stand for a range."""
    return q8.QTensor.from_codes(np.asarray(codes, spec.storage), q8.Range(*ends), spec, rounding=rounding)


def close(actual: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance)


# --- Floats to codes

ENCODE = [
    ("1-3", [0, 0.5, 1], (0, 1), UNSIGNED, MIN_FIRST, [0, 128, 255]),
    ("4-6", [0, 1, 2], (0, 2), UNSIGNED, MIN_FIRST, [0, 128, 255]),
    ("7-9", [-128, 0, 127], (-128, 127), UNSIGNED, MIN_FIRST, [0, 128, 255]),
    ("10-12", [1, 128, 256], (1, 256), UNSIGNED, MIN_FIRST, [0, 127, 255]),
    ("13-15", [-128, 0, 128], (-128, 128), WIDE, MIN_FIRST, [INT32[0], 0, INT32[1]]),
    ("25", [1, -1, 10, 10.25, 127, 255, 512, 0, 23], (0, 255), UNSIGNED, MIN_FIRST, [1, 0, 10, 10, 127, 255, 255, 0, 23]),
    ("27", [0, 1, 1.25, 1.75, 127, 255, 500], (0, 255), UNSIGNED, MIN_FIRST, [0, 1, 1, 2, 127, 255, 255]),
    ("28", [-255, 0, 1, 1.25, 1.75, 127, 255, 500], (-255, 127), SCALED_UNSIGNED, "half_away", [0, 0, 1, 1, 2, 127, 255, 255]),
    ("29", [-1, 0, 2], (-1, 2), SCALED_UNSIGNED, "half_away", [0, 0, 255]),
    ("30", [-127, 0, 1, 1.25, 1.75, 64, 127], (-127, 100), SCALED_SIGNED, "half_away", [-127, 0, 1, 1, 2, 64, 127]),
    ("31", [-1, 0, 2], (-1, 2), SCALED_SIGNED, "half_away", [-64, 0, 127]),
    ("32", [-126.5, 0, 1, 2.5, 3.5, 64, 127], (-127, 127), SCALED_SIGNED, "half_even", [-126, 0, 1, 2, 4, 64, 127]),
    ("33", [-126.5, 0, 1, 2.5, 3.5, 64, 127], (-127, 127), SCALED_SIGNED, "half_away", [-127, 0, 1, 3, 4, 64, 127]),
    (
        "34", [-500, 0, 1, 1.25, 1.75, 127, 255, 500], (-256, 256), WIDE, MIN_FIRST,
        [INT32[0], 0, 2**23, 10485760, 14680064, 127 * 2**23, 255 * 2**23, INT32[1]],
    ),
]  # fmt: skip


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("row", "values", "ends", "spec", "rounding", "codes"), ENCODE, ids=[r[0] for r in ENCODE]
)
def test_encode(
    row: str, values: Any, ends: Any, spec: q8.Spec, rounding: str, codes: Any, jit: bool
) -> None:
    encode = functools.partial(encoded, ends=ends, spec=spec, rounding=rounding)
    q = (jax.jit(encode) if jit else encode)(np.float32(values))
    assert q.values.dtype == spec.storage
    assert q.values.tolist() == codes


OUTPUT_RANGES = [
    ("28", (-255, 127), SCALED_UNSIGNED, (0, 255)),
    ("29", (-1, 2), SCALED_UNSIGNED, (0, 2)),
    ("30", (-127, 100), SCALED_SIGNED, (-127, 127)),
    ("31", (-1, 2), SCALED_SIGNED, (-2, 2)),
    ("43", (-1, 1), UNSIGNED, (-1, 1)),
]


@pytest.mark.parametrize(
    ("row", "ends", "spec", "expected"), OUTPUT_RANGES, ids=[r[0] for r in OUTPUT_RANGES]
)
def test_range_of_the_result(row: str, ends: Any, spec: q8.Spec, expected: Any) -> None:
    q = encoded([0.0], ends, spec, "half_away")
    # Asymmetric ranges move by the fraction of a step that makes zero a code, at most half a step.
    tolerance = 0 if spec.symmetric else float(q.scale[0]) / 2 + FLOAT_ERROR
    close([q.minimum[0], q.maximum[0]], expected, tolerance)


# --- Codes to floats

DECODE = [
    ("16-18", [0, 127, 255], (0, 1), UNSIGNED, MIN_FIRST, [0, 0.5, 1], 1 / 255),
    ("19-21", [0, 127, 255], (1, 256), UNSIGNED, MIN_FIRST, [1, 128, 256], 1 / 255),
    ("22", [INT32[0], 0, INT32[1]], (-1, 1), WIDE, MIN_FIRST, [-1, 0, 1], 1e-5),
    (
        "26", [0, 128, 255, 23, 24, 25, 243, 244, 245], (-128, 127), UNSIGNED, MIN_FIRST,
        [-128, 0, 127, -105, -104, -103, 115, 116, 117], 0,
    ),
    ("35 quint8", [0, 128, 255], (0, 6), UNSIGNED, MIN_COMBINED, [0, 6 * 128 / 255, 6], 1e-5),
    ("35 qint8", [-128, 0, 127], (-1, 2), SIGNED, MIN_COMBINED, [-1, 128 * 3 / 255 - 1, 2], 1e-5),
    ("36", [127], (-255, 127), SCALED_UNSIGNED, "half_away", [127], 1e-5),
    ("37", [255], (-1, 2), SCALED_UNSIGNED, "half_away", [2], 1e-6),
    ("38", [255], (200, 400), SCALED_UNSIGNED, "half_away", [400], 1e-4),
    ("39", [0], (-255, 127), SCALED_UNSIGNED, "half_away", [0], 0),
    ("40", [-127], (-10, 127), SCALED_SIGNED, "half_away", [-127], 1e-5),
    ("41", [-127], (-2, 1), SCALED_SIGNED, "half_away", [-2], 1e-6),
    ("42", [42], (-1, 300), SCALED_SIGNED, "half_away", [99.212601], 1e-4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "codes", "ends", "spec", "rounding", "reals", "tolerance"), DECODE, ids=[r[0] for r in DECODE]
)
def test_decode(
    row: str, codes: Any, ends: Any, spec: q8.Spec, rounding: str, reals: Any, tolerance: float
) -> None:
    close(coded(codes, ends, spec, rounding).dequantize(), reals, tolerance)


def test_row_23_every_code_survives_the_round_trip() -> None:
    codes = np.arange(256)
    assert encoded(coded(codes, (0, 2)).dequantize(), (0, 2)).values.tolist() == codes.tolist()


def test_row_24_numbers_on_the_grid_survive_the_round_trip() -> None:
    low, high = -0.1375, 1.1385
    step = (high - low) / 255
    on_grid = (np.arange(256) - 27) * step
    q = encoded(on_grid, (low, high))
    assert q.values[27] == int(q.zero_point[0]) == 27
    close(q.dequantize(), on_grid, step / 1000)


# --- From 32 bits to 8


def accumulators() -> q8.QTensor:
    """-1, 0 and 1 as 32-bit codes of the range -256..256."""
    return coded([-(2**23), 0, 2**23], (-256, 256), WIDE)


def test_row_43_requantize() -> None:
    assert encoded(accumulators().dequantize(), (-1, 1)).values.tolist() == [0, 128, 255]


def test_row_44_a_requested_range_without_zero_is_widened_to_hold_it() -> None:
    # TensorFlow refused such a range; here it is widened, so that zero is exact.
    q = encoded(accumulators().dequantize(), (0.01, 1), min_first(include_zero=True))
    assert float(q.minimum[0]) == 0
    assert q.dequantize().tolist() == [0, 0, 1]


def test_row_45_a_requested_range_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(
        q8.SpecError, match=r"Range\(-10\.0, -11\.0\): the minimum exceeds the maximum; swap them"
    ):
        encoded(accumulators().dequantize(), (-10, -11))


def test_row_46_quantize_down_and_shrink_range() -> None:
    # That kernel worked in fixed point, adding half and shifting: ties go up, and the middle code is 127
    # instead of 128.
    reals = accumulators().dequantize()
    half_up = Rounding("half_up", lambda x: jnp.floor(x + 0.5), by_range=True)
    q = q8.QTensor.from_float(reals, q8.Spec(), rounding=half_up)
    assert q.values.tolist() == [0, 127, 255]
    close([q.minimum[0], q.maximum[0]], (-1, 1), 1 / 255 + FLOAT_ERROR)


def test_row_47_requantization_range() -> None:
    assert [float(end[0]) for end in extremes(accumulators().dequantize(), ())] == [-1, 1]


# --- Contractions

BYTES = (0, 255)
IMAGE_3X4, FILTER_3X3 = (
    np.arange(1, 13).reshape(1, 3, 4, 1),
    np.array([1, 4, 7, 2, 5, 8, 3, 6, 9]).reshape(3, 3, 1, 1),
)


def same_convolution(stride: int) -> Callable[..., jax.Array]:
    return lambda x, w: lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


CONTRACTIONS = [
    (
        "48", jnp.matmul, coded(np.arange(1, 7).reshape(2, 3), BYTES), coded(np.arange(7, 19).reshape(3, 4), BYTES),
        [74, 80, 86, 92, 173, 188, 203, 218], 0,
    ),
    ("49", lambda a, b: a.T @ b, coded([[11]], (-12, 243)), coded([[0]], (1, 256)), [-1], 0),
    (
        "50", lambda a, b: a.T @ b, coded(np.arange(11, -1, -1).reshape(3, 4), (-12, 243)),
        coded(np.array([1, 4, 2, 5, 3, 6]).reshape(3, 2), BYTES), [-38, -83, -44, -98, -50, -113, -56, -128], 0,
    ),
    (
        "52", same_convolution(1), encoded(IMAGE_3X4, (0, 12)), encoded(FILTER_3X3, (1, 9)),
        [105, 150, 183, 95, 235, 312, 357, 178, 187, 234, 261, 121], 1.0,
    ),
    (
        "53", same_convolution(1), coded(IMAGE_3X4 * 10, BYTES), coded(FILTER_3X3 * 10, BYTES),
        [10500, 15000, 18300, 9500, 23500, 31200, 35700, 17800, 18700, 23400, 26100, 12100], 0,
    ),
    (
        "54", same_convolution(2), coded(np.tile(np.arange(1, 17).reshape(1, 4, 4, 1), (3, 1, 1, 1)), BYTES),
        coded(np.arange(1, 10).reshape(3, 3, 1, 1), BYTES), [348, 252, 274, 175] * 3, 0,
    ),
]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("row", "function", "x", "w", "expected", "tolerance"), CONTRACTIONS, ids=[r[0] for r in CONTRACTIONS]
)
def test_contraction(
    row: str, function: Any, x: q8.QTensor, w: q8.QTensor, expected: Any, tolerance: float, kernel: str
) -> None:
    # Both operands keep the codes that they come with: the default for weights is symmetric.
    config = q8.Config(kernels=kernel, weights=q8.Spec())
    (site,) = q8.explain(function, x, w, config=config).sites
    assert site.eight_bit
    assert site.kernel.startswith(kernel)
    close(jax.jit(q8.quantize(function, config))(x, w).reshape(-1), expected, tolerance)


def test_row_51_a_range_without_width_is_exact() -> None:
    # TensorFlow refused the range 1..1 in a product; here its only number is represented exactly.
    ones = encoded([[1.0]], (1, 1))
    assert q8.quantize(jnp.matmul, q8.Config(kernels="reference"))(
        encoded([[3.0]], (0, 255)), ones
    ).tolist() == [[3.0]]


TINY = [
    ("1x1x1", [[2]], [[3]]), ("1x2x1", [[1]], [[2, 3]]), ("1x1x2 ones", [[1, 1]], [[1], [1]]),
    ("1x1x2 zeros", [[0, 0]], [[1], [1]]), ("1x1x2", [[1, 2]], [[1], [2]]),
]  # fmt: skip


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
@pytest.mark.parametrize(("shape", "a", "b"), TINY, ids=[f"71 {t[0]}" for t in TINY])
def test_row_71_products_of_tiny_matrices_of_equal_numbers(shape: str, a: Any, b: Any, kernel: str) -> None:
    a, b = np.float32(a), np.float32(b)
    close(q8.quantize(jnp.matmul, q8.Config(kernels=kernel))(a, b), a @ b, 1.0)


# --- Element by element

ONE_TO_TEN, TWENTY = np.arange(1.0, 11.0), np.arange(1.0, 21.0).reshape(2, 10)
TEN = encoded(ONE_TO_TEN, (0, 10))
RELU_INPUT = encoded([-100, -1, 0, 1, 3, 6, 7, 100], (-128, 127))
ROW_55 = (encoded([[10, 20, 30], [40, 50, 60]], (0, 60)), encoded([1, 2, 3], (0, 3)))
POOLED = encoded(np.arange(1, 33).reshape(1, 4, 4, 2), BYTES)

WINDOW: dict[str, Any] = {"window_shape": (2, 2), "strides": (2, 2), "padding": "SAME"}
FIRST, SECOND = np.arange(1, 13), np.arange(13, 25)
ROWS_2X2X3 = (encoded(FIRST.reshape(2, 2, 3), BYTES), encoded(SECOND.reshape(2, 2, 3), (0, 25)))

ELEMENTWISE = [
    ("55", jnp.add, ROW_55, [11, 22, 33, 41, 52, 63], 0.2),
    ("57", jnp.add, (TEN, encoded([10], (-100, 100))), np.arange(11, 21), 1.0),
    ("58 vector", jnp.add, (TEN, TEN), 2 * ONE_TO_TEN, 1.0),
    ("58 broadcast", jnp.add, (TEN, encoded(TWENTY, (0, 20))), [*range(2, 21, 2), *range(12, 31, 2)], 1.0),
    ("59 scalar", jnp.multiply, (TEN, encoded([10], (-100, 100))), 10 * ONE_TO_TEN, 3.0),
    ("59 vector", jnp.multiply, (TEN, TEN), ONE_TO_TEN**2, 3.0),
    ("60", jnp.multiply, (TEN, encoded(TWENTY, (0, 20))), [*ONE_TO_TEN**2, *range(11, 12), *(ONE_TO_TEN * TWENTY[1])[1:]], 3.0),
    ("61 relu", jax.nn.relu, (RELU_INPUT,), [0, 0, 0, 1, 3, 6, 7, 100], 0.2),
    ("61 relu6", jax.nn.relu6, (RELU_INPUT,), [0, 0, 0, 1, 3, 6, 6, 6], 0.2),
    ("62", functools.partial(nn.avg_pool, **WINDOW), (POOLED,), [6, 7, 10, 11, 22, 23, 26, 27], 0.2),
    ("63", functools.partial(nn.max_pool, **WINDOW), (POOLED,), [11, 12, 15, 16, 27, 28, 31, 32], 0.2),
    (
        "64 two ranges", lambda a, b: jnp.concatenate([a, b]), (encoded(FIRST, BYTES), encoded(SECOND, (0, 25))),
        np.arange(1, 25), 0.2,
    ),
    (
        "64 one range", lambda a, b: jnp.concatenate([a, b]), (encoded(FIRST, BYTES), encoded(SECOND, BYTES)),
        np.arange(1, 25), 0.2,
    ),
    (
        "65", lambda a, b: jnp.concatenate([a, b], axis=1), ROWS_2X2X3,
        [*range(1, 7), *range(13, 19), *range(7, 13), *range(19, 25)], 0.2,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "function", "operands", "expected", "tolerance"), ELEMENTWISE, ids=[r[0] for r in ELEMENTWISE]
)
def test_elementwise(row: str, function: Any, operands: Any, expected: Any, tolerance: float) -> None:
    close(jax.jit(q8.quantize(function))(*operands).reshape(-1), expected, tolerance)


def test_row_56_bias_of_a_thousandth_of_the_range() -> None:
    rng = np.random.default_rng(56)
    values, bias = rng.normal(0, 600, 64).clip(-2164.25, 2006.27), rng.uniform(-0.739539, 0.641057, 64)
    values[:2], bias[:2] = (-2164.25, 2006.27), (-0.739539, 0.641057)
    x, b = encoded(values[None], (-2164.25, 2006.27)), encoded(bias, (-0.739539, 0.641057))
    close(q8.quantize(jnp.add)(x, b), (values + bias)[None], 20.0)


def test_row_66_reshape_keeps_codes() -> None:
    x = coded(np.arange(200).reshape(10, 20), (-10, 20))
    result = q8.quantize(lambda v: jnp.reshape(v, (5, 10, 4)))(x)
    assert result.tolist() == x.dequantize().reshape(5, 10, 4).tolist()


def test_row_67_batch_norm() -> None:
    x = encoded(np.array([1, 4, 2, 5, 3, 6, -1, -4, -2, -5, -3, -6]).reshape(1, 1, 6, 2), (-128, 127))
    mean, variance, beta = (
        encoded([10, 20], (0, 20)),
        encoded([0.25, 0.5], (0, 1)),
        encoded([0.1, 0.6], (0, 1)),
    )

    def batch_norm(x: Any, mean: Any, variance: Any, beta: Any) -> Any:
        return (x - mean) * lax.rsqrt(variance + 0.001) + beta

    expected = [
        -17.86,
        -22.00,
        -15.87,
        -20.59,
        -13.87,
        -19.18,
        -21.86,
        -33.31,
        -23.85,
        -34.72,
        -25.85,
        -36.13,
    ]
    close(q8.quantize(batch_norm)(x, mean, variance, beta).reshape(-1), expected, 0.1)


FLOAT_MAX = float(np.finfo(np.float32).max)
RANDOM_CODES = np.random.default_rng(68).integers(0, 256, (1, 4, 4, 32))
INSTANCES = [
    ("random", RANDOM_CODES, (0, 1), None),
    ("zeros", np.zeros_like(RANDOM_CODES), (2, 3), None),
    ("largest", np.full_like(RANDOM_CODES, 255), (0, FLOAT_MAX / 32), None),
    ("given -1..1", RANDOM_CODES, (0, 1), (-1, 1)),
    ("given 0..1", RANDOM_CODES, (0, 1), (0, 1)),
]


@pytest.mark.parametrize(("case", "codes", "ends", "given"), INSTANCES, ids=[f"68 {c[0]}" for c in INSTANCES])
def test_row_68_instance_norm(case: str, codes: Any, ends: Any, given: Any) -> None:
    def instance_norm(x: Any) -> Any:
        centred = x - x.mean((1, 2), keepdims=True)
        return centred * lax.rsqrt(jnp.mean(centred**2, (1, 2), keepdims=True) + 1e-5)

    x = coded(codes, ends)
    real = np.asarray(x.dequantize(), np.float64)
    centred = real - real.mean((1, 2), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean((1, 2), keepdims=True) + 1e-5)
    result = q8.quantize(instance_norm)(x)
    if given is not None:
        result, expected = encoded(result, given).dequantize(), expected.clip(*given)
    close(result, expected, 0.1)


def corners(n: int, out: int, align: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source positions of each output position, and the weight of the second."""
    at = np.arange(out) * ((n - 1) / (out - 1) if align else n / out)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, n - 1), (at - low).astype(np.float32)


def resized(x: Any, out: int, align: bool) -> Any:
    """TensorFlow's bilinear resize: linear in between the four dequantized corners."""
    for axis in (1, 2):
        low, high, weight = corners(x.shape[axis], out, align)
        weight = np.expand_dims(weight, [a for a in range(4) if a != axis])
        before, after = x.take(low, axis), x.take(high, axis)
        x = before + (after - before) * weight
    return x


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("out", [3, 10])
@pytest.mark.parametrize("spec", [UNSIGNED, WIDE], ids=["69 quint8", "69 qint32"])
def test_row_69_resize_bilinear(spec: q8.Spec, out: int, align: bool) -> None:
    ends = np.iinfo(spec.storage)
    codes = np.random.default_rng(69).integers(ends.min, ends.max, (1, 6, 6, 3), endpoint=True)
    x = coded(codes, (0, 1), spec)
    result = q8.quantize(functools.partial(resized, out=out, align=align))(x)
    if spec is WIDE:  # nothing to shrink: the same numbers as float arithmetic on the decoded corners
        assert (result == resized(x.dequantize(), out, align)).all()
    else:
        close(result, resized(np.asarray(x.dequantize(), np.float64), out, align), float(x.scale.reshape(())))


# --- Bucket centres

BUCKETS = [
    ([0, 0.3, 0.6, 1], 2, [0.25, 0.25, 0.75, 0.75]), ([0, 0.3, 0.6, 1], 1, [0.5] * 4), ([1, 1, 1], 10, [1, 1, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "count", "expected"), BUCKETS)
def test_row_70_quantize_array(values: Any, count: int, expected: Any) -> None:
    assert bucket_centers(jnp.float32(values), count).tolist() == expected


@pytest.mark.parametrize(("values", "count"), [([1.0], 0), ([], 4)])
def test_row_70_refuses_no_buckets_and_no_elements(values: Any, count: int) -> None:
    with pytest.raises(
        q8.SpecError, match=rf"at least 1 bucket and 1 element, got {count} and {len(values)}"
    ):
        bucket_centers(jnp.float32(values), count)
