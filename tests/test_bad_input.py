"""Input that is wrong, empty or unusual: a clear error, or the answer that float gives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8

ALWAYS = q8.Config(kernels="xla")
SATURATE = dataclasses.replace(ALWAYS, nonfinite="saturate")
RANGES = {"none": None, "static": {"w:dot": q8.Range(-4, 4), "k:conv": q8.Range(-4, 4)}}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32))


DENSE = {"w": normal(32, 48)}
CONV = {"k": normal(3, 3, 8, 16)}
X, IMAGES = normal(6, 32), normal(2, 6, 6, 8)


def dense(v, x):
    return jax.nn.relu(x @ v["w"])


def conv(v, x):
    return jax.lax.conv_general_dilated(x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def model(v, x):
    return conv({"k": v["k2"]}, jax.nn.relu(conv(v, x)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_row_with_a_bad_number_has_no_good_result(bad, compiled):
    """Rows have ranges of their own: a token that is broken leaves the others alone, as in float."""
    fast = q8.quantize(dense, ALWAYS)
    fast = jax.jit(fast) if compiled else fast
    found = fast(DENSE, X.at[2, 5].set(bad))
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(fast(DENSE, X), 2, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["none", "static"])
@pytest.mark.parametrize(("fn", "v", "x"), [(dense, DENSE, X), (conv, CONV, IMAGES)], ids=["dense", "conv"])
def test_bad_numbers_never_become_finite_garbage(fn, v, x, bad, where):
    site = "w:dot" if fn is dense else "k:conv"
    ranges = None if RANGES[where] is None else {site: RANGES[where][site]}
    flat = x.reshape(-1).at[3].set(bad).reshape(x.shape)
    found = np.asarray(jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(v, flat))
    exact = np.asarray(fn(v, flat))
    assert np.isnan(found[~np.isfinite(exact)]).all()
    assert np.isfinite(jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(v, x)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_reach_the_end_of_a_network(bad):
    """Also where every later value is only ever an accumulator or codes."""
    v = {**CONV, "k2": normal(3, 3, 16, 16)}
    found = q8.quantize(model, ALWAYS)(v, IMAGES.at[0, 3, 3, 0].set(bad))
    assert not np.isfinite(found[0, 3, 3]).any()


@pytest.mark.parametrize(
    "activation", [jax.nn.relu, jax.nn.relu6, lambda x: x + 1], ids=["relu", "relu6", "none"]
)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_pass_ranges_that_are_known(activation, static, bad):
    """Nobody measures the second layer's input; that its scale comes from a bad one is known all the same."""

    def fn(v, x):
        h = activation(conv(v, x))
        return conv({"k": v["k2"]}, jnp.concatenate([h, h], -1)), conv(
            {"k": v["k2"][..., :16, :]}, h[..., ::-1]
        )

    v = {**CONV, "k2": normal(3, 3, 32, 16)}
    ranges = q8.calibrate(fn, v, [IMAGES], config=ALWAYS, progress=False) if static else None
    fast = jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))
    for good, found in zip(fast(v, IMAGES), fast(v, IMAGES.at[0, 3, 3, 0].set(bad)), strict=True):
        assert np.isfinite(good).all()
        assert np.isnan(found[0]).all()


def normed(h):
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)


BETWEEN = {
    "norm": normed, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "silu": jax.nn.silu, "softmax": jax.nn.softmax,
    "leaky": jax.nn.leaky_relu, "half": lambda h: h[:, :8], "masked": lambda h: jnp.where(X > 9, 0, h),
    "sum": lambda h: sum((jnp.sin(h * i) for i in range(9)), h),
    "loop": lambda h: jax.lax.fori_loop(0, 2, lambda _, c: c * 0.5, h),
}  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("between", BETWEEN)
def test_bad_numbers_pass_whatever_stands_between_two_sites(between, bad):
    """With every choice of the sites whose range is given, also where the others have a range for each row."""

    def fn(v, x):
        h = BETWEEN[between](dense({"w": v["a"]}, x * 0.5 - 0.25))
        return dense({"w": v["b"][: h.shape[-1]]}, h)

    width = X.shape[-1]
    v = {"a": normal(width, width), "b": normal(width, 8)}
    ranges = q8.calibrate(fn, v, [X], config=ALWAYS, progress=False)
    assert len(ranges) == 2
    broken = X.at[2, 5].set(bad)
    for names in ([], *([name] for name in ranges), list(ranges)):
        fast = jax.jit(q8.quantize(fn, ALWAYS, ranges={name: ranges[name] for name in names}))
        assert np.isfinite(fast(v, X)).all()
        found = np.asarray(fast(v, broken))
        assert np.isnan(found[2]).all(), names
        if not names:
            assert np.isfinite(np.delete(found, 2, 0)).all()


def gated(v, x):
    """A gate for each channel, as in squeeze and excite: NaN of the data is in the scale of one channel."""
    images, gate = x
    return conv({"k": v["k2"]}, jax.nn.relu(conv(v, images) * gate[:, None, None, :]))


def right_operand(v, x):
    """Data as the right operand: its channels have scales of their own."""
    return (jax.nn.relu(v["w"][:6, :6]) @ x).T @ v["w"][:6]


def rows_of_volumes(v, x):
    """A row-wise product behind a convolution in three dimensions: extremes of its rows pass over NaN in XLA:CPU."""
    wide = v["k"][:2, :2, None]
    h = jax.lax.conv_general_dilated(
        x, wide, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    return h @ v["w"][:16, :8]


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (gated, (normal(1, 6, 6, 8), normal(1, 16))),
        (right_operand, normal(6, 32)),
        (rows_of_volumes, normal(1, 10, 4, 12, 8)),
    ],
)
def test_bad_numbers_in_one_channel_or_row_are_not_lost(fn, x, static, where):
    v = {**DENSE, **CONV, "k2": normal(3, 3, 16, 4)}
    ranges = q8.calibrate(fn, v, [(x,)], config=ALWAYS, progress=False) if static else None
    leaves, tree = jax.tree.flatten(x)
    leaves[-1] = leaves[-1].at[(0 if where == "first" else -1,) * leaves[-1].ndim].set(np.nan)
    bad = jax.tree.unflatten(tree, leaves)
    expected = np.isnan(fn(v, bad))
    found = np.isnan(jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(v, bad))
    assert expected.any()
    assert not (expected & ~found).any()


@pytest.mark.parametrize("static", [False, True])
def test_numbers_that_the_function_takes_out_are_not_looked_for(static):
    """A mask of minus infinity, and NaN that is replaced."""

    def fn(v, x, mask):
        weights = jax.nn.softmax(dense({"w": v["a"]}, jnp.where(jnp.isnan(x), 0, x)) + mask)
        return dense({"w": v["b"]}, weights)

    width = X.shape[-1]
    v = {"a": normal(width, width), "b": normal(width, 8)}
    mask = jnp.where(jnp.arange(width) < 5, 0, -jnp.inf)
    broken = X.at[2, 5].set(np.nan)
    ranges = q8.calibrate(fn, v, [(X, mask)], config=ALWAYS, progress=False) if static else None
    found = jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(v, broken, mask)
    expected = fn(v, broken, mask)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["none", "static"])
def test_saturation_gives_finite_results(bad, where):
    ranges = None if where == "none" else {"w:dot": RANGES[where]["w:dot"]}
    x = X.at[2, 5].set(bad)
    found = q8.quantize(dense, SATURATE, ranges=ranges)(DENSE, x)
    assert np.isfinite(found).all()
    # NaN counts as zero, infinity as the end of the range: of the row's finite values, or of the one given.
    low, high = (
        (x[2, jnp.isfinite(x[2])].min(), x[2, jnp.isfinite(x[2])].max()) if where == "none" else (-4, 4)
    )
    clean = x.at[2, 5].set(0.0 if np.isnan(bad) else high if bad > 0 else low)
    step = (8 if where == "static" else float(jnp.ptp(clean[2]))) / 255
    bound = (step / 2 + 1e-5) * np.abs(DENSE["w"]).sum(0) + np.abs(clean[2]).sum() * np.abs(DENSE["w"]).max(
        0
    ) / 254
    beyond = np.maximum(np.abs(clean[2]) - 4, 0).sum() * 4 if where == "static" else 0
    assert np.all(np.abs(found[2] - dense(DENSE, clean)[2]) <= bound * 1.05 + beyond)


@pytest.mark.parametrize("kernels", ["xla", "simulate"])
# The zero point of float_minimum is no integer.
@pytest.mark.parametrize("rounding", [n for n in q8.rounding_names() if n != "float_minimum"])
def test_nan_counts_as_zero_whatever_rounds_it(rounding, kernels):
    config = dataclasses.replace(SATURATE, rounding=rounding, kernels=kernels)
    fast = jax.jit(q8.quantize(dense, config))
    np.testing.assert_array_equal(fast(DENSE, X.at[2, 5].set(0)), fast(DENSE, X.at[2, 5].set(np.nan)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_with_bad_numbers_is_named_or_propagates(bad):
    broken = {"w": DENSE["w"].at[0, 7].set(bad)}
    with pytest.raises(q8.TensorError, match="weight w:dot holds NaN or infinity; repair"):
        q8.quantize(dense, ALWAYS)(broken, X)
    found = jax.jit(q8.quantize(dense, ALWAYS))(broken, X)  # a traced weight cannot be looked at
    assert not np.isfinite(found[:, 7]).any()
    assert np.isfinite(np.delete(found, 7, 1)).all()


@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 32)])
def test_empty_batches(shape):
    found = q8.quantize(dense, ALWAYS)(DENSE, jnp.zeros(shape))
    assert found.shape == (*shape[:-1], 48)
    assert found.dtype == jnp.float32


def test_empty_sums_are_zero():
    found = q8.quantize(dense, ALWAYS)({"w": jnp.zeros((0, 48))}, jnp.zeros((5, 0)))
    np.testing.assert_array_equal(found, np.zeros((5, 48)))


def test_empty_images():
    assert q8.quantize(conv, ALWAYS)(CONV, jnp.zeros((0, 6, 6, 8))).shape == (0, 6, 6, 16)


def test_zeros_stay_zero():
    np.testing.assert_array_equal(q8.quantize(conv, ALWAYS)(CONV, jnp.zeros_like(IMAGES)), 0)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.complex64])
def test_products_of_other_dtypes_are_left_as_they_are(dtype):
    v, x = ({"w": (4 * DENSE["w"]).astype(dtype)}, (4 * X).astype(dtype))

    def product(v, x):
        return x @ v["w"]

    found = q8.quantize(product, ALWAYS)(v, x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, product(v, x))
    assert q8.explain(product, v, x, config=ALWAYS)["w:dot"].reason is q8.Reason.DTYPE


def test_boolean_functions_are_left_as_they_are():
    x = jnp.array([True, False, True])
    np.testing.assert_array_equal(q8.quantize(lambda x: x & ~x[::-1], ALWAYS)(x), x & ~x[::-1])


GOOD = q8.QTensor.from_float(X)
MALFORMED = {
    "scale of another rank": (
        dataclasses.replace(GOOD, scale=jnp.ones(())),
        r"scale \(\) and zero_point \(1, 1\) need the 2 axes of values \(6, 32\)",
    ),
    "scale that does not broadcast": (
        dataclasses.replace(GOOD, scale=jnp.ones((5, 1)), zero_point=jnp.zeros((5, 1), jnp.int32)),
        r"scale \(5, 1\) does not broadcast to values \(6, 32\)",
    ),
    "zero points of another shape": (
        dataclasses.replace(GOOD, zero_point=jnp.zeros((6, 1), jnp.int32)),
        r"zero_point \(6, 1\) differs in shape from scale \(1, 1\)",
    ),
    "codes of int16": (
        dataclasses.replace(GOOD, values=GOOD.values.astype(jnp.int16)),
        "values are int16; expected int8, uint8 or int32 codes",
    ),
    "an integer scale": (
        dataclasses.replace(GOOD, scale=jnp.ones((1, 1), jnp.int32)),
        "scale is int32; expected a float",
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_codes_are_refused_by_name(fault):
    tensor, text = MALFORMED[fault]
    with pytest.raises(q8.TensorError, match="1: not a valid QTensor: .*" + text):
        q8.quantize(dense, ALWAYS)(DENSE, tensor)


def test_all_faults_of_a_tensor_are_named_together():
    tensor = dataclasses.replace(GOOD, scale=jnp.ones((), jnp.int32))
    with pytest.raises(q8.TensorError, match=r"need the 2 axes.*; .*differs in shape.*; scale is int32"):
        q8.quantize(dense, ALWAYS)(DENSE, tensor)


def test_codes_in_place_of_a_static_integer():
    """The function sees a float array there, and its own error says what it does with it."""
    with pytest.raises(TypeError, match="float32"):
        q8.quantize(lambda x, n: jnp.broadcast_to(x, (n, 3)))(
            jnp.ones(3), q8.QTensor.from_float(jnp.ones(()))
        )


def test_codes_where_the_function_indexes():
    with pytest.raises(TypeError, match="must have integer or boolean type"):
        q8.quantize(lambda x, i: x[i])(jnp.ones(3), GOOD)


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("mode", "eightbit, weights, weights_rounded, round, simulate, off"),
        ("kernels", "auto, xla, native, reference, simulate"),
        ("nonfinite", "propagate, saturate"),
    ],
)
def test_unknown_settings_list_the_known_ones(field, known):
    with pytest.raises(q8.SpecError, match=rf"Config\({field}='fast'\): known are {known}"):
        q8.Config(**{field: "fast"})


def test_unknown_rounding():
    with pytest.raises(q8.SpecError, match=r"unknown rounding 'upwards'.*half_even"):
        q8.Config(rounding="upwards")


@pytest.mark.parametrize(("what", "name"), [(3, "int"), (None, "NoneType"), (DENSE, "dict")])
def test_only_functions_can_be_quantized(what, name):
    for act in (q8.quantize, q8.explain):
        with pytest.raises(
            q8.ArgumentError, match=f"expects a function, got {name}; for a Flax model pass model.apply"
        ):
            act(what)


def test_a_dictionary_is_no_config():
    with pytest.raises(q8.SpecError, match=r"config must be a q8.Config, got dict"):
        q8.quantize(dense, {"mode": "off"})


def test_arrays_of_text_are_refused():
    with pytest.raises(q8.ArgumentError, match="is not an array that JAX can compute with"):
        q8.quantize(dense)(DENSE, np.array(["a", "b"]))


def test_errors_of_the_function_itself_come_through():
    with pytest.raises(TypeError, match="dot_general requires contracting dimensions to have the same shape"):
        q8.quantize(dense)(DENSE, normal(6, 31))
