"""`QTensor`: the laws of the representation, over every spec."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxq8 as q8
from jaxq8.numerics.qtensor import kept_axes, validate

# Few shapes, so that what is compiled for one example serves the next.
SHAPES = st.sampled_from([(), (7,), (2, 1, 5)])
SPECS = st.builds(
    q8.Spec,
    bits=st.integers(2, 8),
    signed=st.sampled_from([None, False, True]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "row"]),
)
# Beside the half step: a quotient, a product and the scale are each rounded to float32, of up to 256 steps.
HALF_STEP = 0.5 + 4 * 256 * 2.0**-24


def arrays(largest: float = 2.0**100) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(-largest, largest, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-30])
    return SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def error_in_steps(q: q8.QTensor, x: Any) -> np.ndarray:
    real = np.asarray(q.dequantize(np.float32), np.float64)
    return np.abs(real - np.asarray(x, np.float64)) / np.asarray(q.scale, np.float64)


# --- Encoding


@given(x=arrays(), spec=SPECS)
def test_the_round_trip_is_off_by_half_a_step_at_most(x: np.ndarray, spec: q8.Spec) -> None:
    q = q8.QTensor.from_float(x, spec)
    inside = x >= 0 if spec.qmin == 0 and spec.symmetric else np.full(x.shape, True)
    assert (error_in_steps(q, x)[inside] <= HALF_STEP).all()
    assert (
        np.asarray(q.dequantize())[~inside] == 0
    ).all()  # unsigned and symmetric: negative numbers become 0
    assert q.values.dtype == spec.storage
    assert q.shape == x.shape
    assert spec.qmin <= np.min(q.values) <= np.max(q.values) <= spec.qmax


@pytest.mark.parametrize(
    "rounding", ["floor", "ceil", "toward_zero", "stochastic", "half_away", "rounded_minimum"]
)
@given(x=arrays(), spec=SPECS)
def test_other_roundings_are_off_by_less_than_a_step_and_a_half(
    rounding: str, x: np.ndarray, spec: q8.Spec
) -> None:
    # The value is off by less than a step; where it lies beyond the nudged range, another half step is clipped.
    q = q8.QTensor.from_float(
        x, dataclasses.replace(spec, signed=None), rounding=rounding, key=jax.random.key(0)
    )
    assert (error_in_steps(q, x) <= 1 + HALF_STEP).all()


@pytest.mark.parametrize(
    "rounding", ["half_even", "half_away", "floor", "ceil", "toward_zero", "rounded_minimum"]
)
@given(x=arrays(), spec=SPECS)
def test_zero_is_exact(rounding: str, x: np.ndarray, spec: q8.Spec) -> None:
    some_zeros = np.where(np.arange(x.size).reshape(x.shape) % 2, x, np.float32(0))
    real = np.asarray(q8.QTensor.from_float(some_zeros, spec, rounding=rounding).dequantize())
    assert (real[some_zeros == 0] == 0).all()


@given(x=arrays(), spec=SPECS)
def test_encoding_what_was_decoded_changes_nothing(x: np.ndarray, spec: q8.Spec) -> None:
    fixed = dataclasses.replace(spec, granularity="tensor", range=q8.Range(-3, 6))
    q = q8.QTensor.from_float(x, fixed)
    again = q8.QTensor.from_float(q.dequantize(), fixed)
    assert (again.values == q.values).all()


@given(x=arrays(2.0**20), spec=SPECS)
def test_jit_gives_the_same_codes(x: np.ndarray, spec: q8.Spec) -> None:
    eager = q8.QTensor.from_float(x, spec)
    compiled = jax.jit(lambda v: q8.QTensor.from_float(v, spec))(x)
    # Compiled code may compute the scale to another last bit, which can move a tie to the other neighbour.
    assert np.max(np.abs(eager.values.astype(int) - compiled.values.astype(int)), initial=0) <= 1
    assert (error_in_steps(compiled, eager.dequantize(np.float32)) <= 1 + HALF_STEP).all()
    assert compiled.spec == eager.spec


def test_vmap_encodes_each_row_for_itself() -> None:
    x = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32) * [[1], [10], [0.1], [0]]
    rows = jax.vmap(lambda v: q8.QTensor.from_float(v).dequantize())(x)
    assert (rows == q8.QTensor.from_float(x, q8.Spec(granularity="row")).dequantize()).all()


WORKED = [
    (q8.Range(-10, 30), [0, 128, 255], [-10, 10, 30], 40 / 255),
    (q8.Range(-3, 6), [0, 128, 255], [-3, 1.5, 6], 9 / 255),
]


@pytest.mark.parametrize(("ends", "codes", "reals", "step"), WORKED)
def test_worked_examples(ends: q8.Range, codes: list[int], reals: list[float], step: float) -> None:
    q = q8.QTensor.from_codes(np.uint8(codes), ends)
    np.testing.assert_allclose(q.dequantize(), reals, rtol=0, atol=step * HALF_STEP)
    encoded = q8.QTensor.from_float(np.float32([*reals, 0]), q8.Spec(range=ends))
    assert (error_in_steps(encoded, [*reals, 0]) <= [HALF_STEP] * 3 + [0]).all()


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-45, 1e-30, 2.0**100])
def test_arrays_of_equal_numbers(value: float) -> None:
    x = np.full((3, 2), value, np.float32)
    for spec in (q8.Spec(), q8.Spec(symmetric=True, granularity="channel")):
        q = q8.QTensor.from_float(x, spec)
        assert (np.asarray(q.scale) > 0).all()
        np.testing.assert_allclose(q.dequantize(), x, rtol=2.0**-22, atol=1e-37)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "row"])
def test_empty_arrays(shape: tuple[int, ...], granularity: Any) -> None:
    q = q8.QTensor.from_float(np.zeros(shape, np.float32), q8.Spec(granularity=granularity))
    validate(q, "empty")
    assert q.dequantize().shape == shape
    assert (np.asarray(q.scale) == 1).all()
    assert "x".join(map(str, shape)) in repr(q)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_tensor_stands_for_the_dtype_it_was_made_from(dtype: Any) -> None:
    x = jnp.linspace(-2, 3, 50).astype(dtype)
    q = q8.QTensor.from_float(x)
    assert q.dtype == q.dequantize().dtype == dtype
    assert q.scale.dtype == jnp.float32
    assert q.dequantize(jnp.float32).dtype == jnp.float32
    assert (error_in_steps(q, x) <= HALF_STEP).all()


@pytest.mark.parametrize(
    ("granularity", "axis", "scale"),
    [
        ("tensor", None, (1, 1, 1)), ("channel", None, (1, 1, 5)), ("row", None, (3, 4, 1)), ("channel", 0, (3, 1, 1)),
        ("tensor", (0, -1), (3, 1, 5)), ("row", (), (1, 1, 1)),
    ],
)  # fmt: skip
def test_axes_that_keep_a_scale(granularity: Any, axis: Any, scale: tuple[int, ...]) -> None:
    q = q8.QTensor.from_float(np.ones((3, 4, 5), np.float32), q8.Spec(granularity=granularity), axis=axis)
    assert q.scale.shape == q.zero_point.shape == scale
    validate(q, "test")


@pytest.mark.parametrize(("ndim", "axis"), [(2, 2), (2, -3), (0, 0), (3, (0, 3))])
def test_an_axis_must_exist(ndim: int, axis: Any) -> None:
    with pytest.raises(
        q8.TensorError, match=re.escape(f"axis {axis} does not exist in an array of {ndim} axes")
    ):
        kept_axes(ndim, q8.Spec(), axis)


# --- What cannot be encoded


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_while_they_can_be_seen(bad: float) -> None:
    with pytest.raises(
        q8.TensorError, match=r"QTensor\.from_float: the array holds NaN or infinity; replace them first"
    ):
        q8.QTensor.from_float(np.array([1.0, bad], np.float32))


@pytest.mark.parametrize("spec", [q8.Spec(), q8.Spec(symmetric=True), q8.Spec(range=q8.Range(-1, 1))])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_never_become_finite_codes_inside_jit(spec: q8.Spec, bad: float) -> None:
    decode = jax.jit(lambda x: q8.QTensor.from_float(x, spec).dequantize())
    assert np.isnan(decode(np.array([0.5, bad], np.float32))).all()
    assert np.isfinite(decode(np.array([0.5, 1.0], np.float32))).all()


def test_one_bad_channel_leaves_the_others_alone() -> None:
    x = np.array([[1, np.nan], [2, 3]], np.float32)
    real = jax.jit(lambda v: q8.QTensor.from_float(v, q8.Spec(granularity="channel")).dequantize())(x)
    assert np.isnan(real).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("x", [np.arange(3), np.array([True]), np.array([1j], np.complex64), [1, 2]])
def test_only_floats_are_encoded(x: Any) -> None:
    with pytest.raises(
        q8.TensorError,
        match=r"expected a float array, got (int|bool|complex)\d*\[\d\]; convert it with \.astype",
    ):
        q8.QTensor.from_float(x)


def test_codes_are_not_encoded_again() -> None:
    q = q8.QTensor.from_float(np.ones(3, np.float32))
    with pytest.raises(q8.TensorError, match=r"is a QTensor already; call \.dequantize\(\) first"):
        q8.QTensor.from_float(q)


# --- Codes from elsewhere


def test_an_image_is_wrapped_as_it_is() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    q = q8.QTensor.from_uint8(image, 1 / 128, 127)
    assert q.values is image
    np.testing.assert_array_equal(q.dequantize(), (image.astype(np.float32) - 127) / 128)
    per_channel = q8.QTensor.from_uint8(image, np.float32([[[1, 2, 4]]]))
    np.testing.assert_array_equal(per_channel.dequantize(), image * np.float32([1, 2, 4]))


def test_an_image_is_wrapped_inside_jit() -> None:
    wrap = jax.jit(lambda image, scale, zero: q8.QTensor.from_uint8(image, scale, zero).dequantize())
    assert wrap(np.uint8([3, 5]), 0.5, 3).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(2, np.int8),), r"from_uint8: expected a uint8 array, got int8\[2\]"),
        (([1, 2],), r"from_uint8: expected a uint8 array, got list"),
        ((np.zeros(2, np.uint8), 0.0), r"from_uint8: scale must be positive and finite, got 0\.0"),
        ((np.zeros(2, np.uint8), np.nan), r"from_uint8: scale must be positive and finite, got nan"),
        ((np.zeros(2, np.uint8), 1.0, 256), r"from_uint8: zero_point must be an integer 0\.\.255, got 256"),
        ((np.zeros(2, np.uint8), 1.0, 127.5), r"from_uint8: zero_point must be an integer 0\.\.255, got 127\.5"),
        (
            (np.zeros((2, 3), np.uint8), np.ones(3)),
            r"from_uint8: not a valid QTensor: scale \(3,\) and zero_point \(3,\) need the 2 axes of values \(2, 3\)",
        ),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(q8.TensorError, match=message):
        q8.QTensor.from_uint8(*arguments)


def test_codes_must_have_the_dtype_of_their_spec() -> None:
    with pytest.raises(q8.TensorError, match=r"from_codes: Spec\(.*\) has uint8 codes, got int8\[3\]"):
        q8.QTensor.from_codes(np.int8([1, 2, 3]), q8.Range(0, 1))


FINE = q8.QTensor.from_float(np.ones((2, 3), np.float32))
BROKEN = [
    ({"scale": np.ones(3, np.float32)}, r"scale \(3,\) and zero_point \(1, 1\) need the 2 axes of values \(2, 3\)"),
    ({"scale": np.ones((1, 2), np.float32)}, r"scale \(1, 2\) does not broadcast to values \(2, 3\)"),
    ({"zero_point": np.zeros((2, 1), int)}, r"zero_point \(2, 1\) differs in shape from scale \(1, 1\)"),
    ({"values": np.zeros((2, 3), np.int16)}, r"values are int16; expected int8, uint8 or int32 codes"),
    ({"scale": np.ones((1, 1), np.int32)}, r"scale is int32; expected a float"),
    (
        {"values": np.zeros((2, 3), bool), "scale": np.ones((1, 1), np.int32)},
        r"values are bool; .*; scale is int32; expected a float",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_validate_names_every_violation(changes: dict[str, Any], message: str) -> None:
    validate(FINE, "here")
    with pytest.raises(q8.TensorError, match="^here: not a valid QTensor: .*" + message):
        validate(dataclasses.replace(FINE, **changes), "here")


# --- The pytree


def tensor() -> q8.QTensor:
    return q8.QTensor.from_float(
        np.float32([[-1, 2], [0.5, 1]]), q8.Spec(bits=4, symmetric=True, granularity="channel")
    )


def test_flattening_keeps_everything() -> None:
    q = tensor()
    leaves, tree = jax.tree.flatten(q)
    assert len(leaves) == 3
    again = jax.tree.unflatten(tree, leaves)
    assert (again.bits, again.symmetric, again.dtype, again.spec) == (4, True, np.float32, q.spec)
    assert jax.tree.structure(again) == tree
    assert jax.tree.structure(q8.QTensor.from_float(np.ones((2, 2), np.float32))) != tree
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path({"w": q})]
    assert names == ["['w'].values", "['w'].scale", "['w'].zero_point"]


@pytest.mark.parametrize("placeholder", [None, object(), "leaf", jax.ShapeDtypeStruct((2, 2), np.int8)])
def test_any_leaf_can_stand_in_for_an_array(placeholder: Any) -> None:
    q = jax.tree.map(lambda _: placeholder, tensor())
    assert isinstance(q, q8.QTensor)
    assert q.values is placeholder
    assert repr(q).startswith("QTensor(")


def test_a_tensor_passes_through_transformations() -> None:
    q = tensor()
    for result in (
        jax.jit(lambda t: t)(q),
        jax.device_put(q),
        jax.lax.scan(lambda carry, _: (carry, None), q, length=2)[0],
        jax.tree.map(jnp.asarray, q),
    ):
        assert result.spec == q.spec
        np.testing.assert_array_equal(result.dequantize(), q.dequantize())
    batched = jax.vmap(lambda v: q8.QTensor.from_float(v))(np.ones((5, 3), np.float32))
    assert (batched.shape, batched.scale.shape) == ((5, 3), (5, 1))


def test_shapes_are_known_without_data() -> None:
    q = jax.eval_shape(lambda x: q8.QTensor.from_float(x), jax.ShapeDtypeStruct((8, 3), jnp.bfloat16))
    assert (q.shape, q.ndim, q.size, q.dtype) == ((8, 3), 2, 24, jnp.bfloat16)
    assert q.nbytes == 24 + 4 + 4
    assert repr(q) == "QTensor(8x3, 8 bits unsigned, scale [1, 1], stands for bfloat16)"


REPRESENTATIONS = [
    (lambda: tensor(), "QTensor(2x2, 4 bits signed, range -2..2 over 2 scales, stands for float32)"),
    (
        lambda: q8.QTensor.from_codes(np.uint8([7]), q8.Range(-10, 30)),
        "QTensor(1, 8 bits unsigned, range -10.04..29.96, stands for float32)",
    ),
    (lambda: q8.QTensor.from_float(jnp.float32(3)), "QTensor(scalar, 8 bits unsigned, range 0..3, stands for float32)"),
    (
        lambda: q8.QTensor.from_float(np.ones((4, 0), np.float32), q8.Spec(granularity="channel")),
        "QTensor(4x0, 8 bits unsigned, no values, stands for float32)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), REPRESENTATIONS)
def test_repr_shows_range_bits_and_shape(make: Callable[[], q8.QTensor], text: str) -> None:
    assert repr(make()) == text


def test_repr_works_while_tracing() -> None:
    seen = []
    jax.jit(lambda x: seen.append(repr(q8.QTensor.from_float(x))))(np.ones((2, 3), np.float32))
    assert seen == ["QTensor(2x3, 8 bits unsigned, scale [1, 1], stands for float32)"]


def test_the_ends_of_the_range_are_those_of_the_codes() -> None:
    q = q8.QTensor.from_codes(np.uint8([0, 255]), q8.Range(-10, 30))
    assert [float(q.minimum[0]), float(q.maximum[0])] == q.dequantize().tolist()
    wide = q8.QTensor.from_codes(np.int32([0]), q8.Range(0, 1), q8.Spec(bits=32, signed=True))
    assert (float(wide.minimum[0]), float(wide.maximum[0])) == (0, 1)


def test_a_quarter_of_the_bytes() -> None:
    x = np.ones((512, 512), np.float32)
    assert q8.QTensor.from_float(x).nbytes == x.nbytes // 4 + 8
