"""`quantize` on whole models and on plain functions: the numbers, the signature, and other transformations around it."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxq8 as q8
from tests.zoo import TINY, ZOO
from tests.zoo.tiny import NnxNet

ALWAYS = q8.Config(kernels="xla")
# A code covers 1/255 of a range. For data with extremes at 4 deviations its noise, step**2 / 12, lies 41 dB below the
# signal; both operands of a layer together give 38 dB. The noise of eight layers adds up to 9 dB, and extremes at six
# deviations, which batch norm's outliers reach, cost 3.5 dB more: 25 dB are left.
SQNR_DB = 25
# A code that moves by one where a range differs in its last bit is an error of one step at one place of many: far below
# the half step that every place has anyway.
BOUNDARY_DB = 40


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32))


def sqnr_db(exact, found) -> float:
    exact, found = (np.asarray(v, np.float64) for v in (exact, found))
    noise = np.sum((exact - found) ** 2)
    return float(10 * np.log10(np.sum(exact**2) / noise)) if noise else float("inf")


@functools.cache
def results(name: str, kernels: str) -> tuple:
    """The compiled eight-bit results of a tiny model, as leaves, and their tree."""
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    return jax.tree.flatten(jax.jit(q8.quantize(fn, q8.Config(kernels=kernels)))(variables, *inputs))


@pytest.fixture(scope="module", autouse=True)
def _forget():
    yield
    results.cache_clear()


@pytest.mark.parametrize("name", TINY)
def test_models_keep_their_results_within_the_noise_of_eight_bits(name):
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    expected, tree = jax.tree.flatten(jax.jit(fn)(variables, *inputs))
    found, found_tree = results(name, "xla")
    assert found_tree == tree
    assert [(f.shape, f.dtype) for f in found] == [(e.shape, e.dtype) for e in expected]
    for e, f in zip(expected, found, strict=True):
        assert SQNR_DB < sqnr_db(e, f) < 80  # exact results would mean that nothing ran in eight bits


@pytest.mark.parametrize("name", TINY)
def test_encoded_variables_give_the_same_results(name):
    """The codes are the same; the float code around them is another program, to a few units of float32."""
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    encoded = q8.quantize_weights(fn, variables, *inputs, config=ALWAYS, correct=None)
    again = jax.tree.leaves(jax.jit(q8.quantize(fn, ALWAYS))(encoded, *inputs))
    for f, a in zip(results(name, "xla")[0], again, strict=True):
        np.testing.assert_allclose(f, a, rtol=1e-5, atol=1e-5 * np.abs(f).max())


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_depthwise", "tiny_conv3d", "tiny_encoder", "tiny_lstm"])
def test_reference_kernels_give_the_same_results(name):
    """Accumulators are equal integers; float work around them is compiled in other loops and may move a code by one."""
    for f, r in zip(results(name, "xla")[0], results(name, "reference")[0], strict=True):
        step = float(jnp.ptp(r)) / 255
        np.testing.assert_allclose(f, r, atol=step)


@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_nnx", "tiny_lstm"])
def test_compiled_equals_not_compiled_up_to_codes_on_a_boundary(name):
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    plain = jax.tree.leaves(q8.quantize(fn, ALWAYS)(variables, *inputs))
    for p, f in zip(plain, results(name, "xla")[0], strict=True):
        assert sqnr_db(p, f) > BOUNDARY_DB


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_encoder"])
def test_mode_off_is_float(name):
    """Depthwise convolutions and the like may take a better float form; these models have none."""
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    np.testing.assert_array_equal(
        jax.jit(q8.quantize(fn, q8.Config(mode="off")))(variables, *inputs), jax.jit(fn)(variables, *inputs)
    )


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (lambda x: jax.nn.softmax(jnp.sin(x) * 3), normal(8, 8)),
        (lambda n: n * 2 + 1, jnp.arange(4)),
        (lambda z: z * 1j, jnp.ones(3)),
        (lambda b: ~b, jnp.array([True, False])),
        (lambda x: {"a": (x, None), "b": [x.sum()]}, normal(3)),
        (lambda x: x.astype(jnp.bfloat16) / 3, normal(5, 5)),
    ],
)
def test_nothing_to_quantize_is_bit_identical(fn, x):
    expected, found = fn(x), q8.quantize(fn)(x)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for e, f in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        assert e.dtype == f.dtype
        np.testing.assert_array_equal(e, f)


W, V = normal(32, 64), normal(64, 32)
X = normal(16, 32)


def dense(variables, x):
    return jnp.tanh(x @ variables["w"]) @ variables["v"]


PAIR = {"w": W / 6, "v": V / 8}


def test_static_arguments_steer_the_trace():
    def fn(variables, x, scale, activation: str, *, train: bool = False, shift=None):
        assert isinstance(scale, int)  # Python numbers stay Python numbers
        y = x @ variables["w"] * scale
        y = getattr(jnp, activation)(y)
        y = -y if train else y
        return y if shift is None else y + shift

    fast = q8.quantize(fn)
    assert sqnr_db(fn(PAIR, X, 2, "tanh"), fast(PAIR, X, 2, "tanh")) > SQNR_DB
    assert sqnr_db(fn(PAIR, X, 2, "sin", train=True), fast(PAIR, X, 2, "sin", train=True)) > SQNR_DB
    # An array among the keyword arguments is data.
    assert (
        sqnr_db(fn(PAIR, X, 2, "sin", shift=3 + X[:, :1]), fast(PAIR, X, 2, "sin", shift=3 + X[:, :1]))
        > SQNR_DB
    )


def test_positional_and_keyword_arguments_agree():
    fast = jax.jit(q8.quantize(dense))
    np.testing.assert_array_equal(fast(PAIR, X), fast(PAIR, x=X))


def test_name_and_documentation_are_those_of_the_function():
    assert q8.quantize(dense).__name__ == "dense"


def test_closed_over_weights_are_weights():
    closed = q8.quantize(lambda x: dense(PAIR, x), ALWAYS)
    site = next(s for s in q8.explain(lambda x: dense(PAIR, x), X, config=ALWAYS).sites if s.op == "dot")
    assert (site.name, site.weights) == ("constant/0:dot", "s8 symmetric, 64 scales")
    assert sqnr_db(jax.jit(q8.quantize(dense, ALWAYS))(PAIR, X), jax.jit(closed)(X)) > BOUNDARY_DB


def test_nnx_models_are_functions_of_their_inputs():
    model = NnxNet(nnx.Rngs(0))
    model.eval()
    x = normal(2, 8, 8, 3)
    assert sqnr_db(model(x), q8.quantize(model, ALWAYS)(x)) > SQNR_DB


def test_vmap_equals_a_loop():
    fast = q8.quantize(dense, ALWAYS)
    x = normal(3, 16, 32)
    mapped = jax.vmap(fast, (None, 0))(PAIR, x)
    assert sqnr_db(jnp.stack([fast(PAIR, one) for one in x]), mapped) > BOUNDARY_DB


def test_vmap_inside_is_quantized_too():
    def fn(v, x):
        return jax.vmap(dense, (None, 0))(v, x)

    assert q8.explain(fn, PAIR, normal(3, 16, 32), config=ALWAYS).eight_bit_share == 1.0


def loss(fn, variables, x):
    return (fn(variables, x) ** 2).sum()


def cosine(a, b) -> float:
    a, b = (jnp.concatenate([v.ravel() for v in jax.tree.leaves(t)]) for t in (a, b))
    return float(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))


@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_point_where_those_of_float_do(argument):
    exact, found = (jax.grad(loss, argument + 1)(f, PAIR, X) for f in (dense, q8.quantize(dense, ALWAYS)))
    assert cosine(exact, found) > 0.95  # a relu whose input rounds across zero passes another gradient


def test_rounding_has_derivative_one():
    """Straight through: of ``x @ w`` by x it is exactly the decoded w, where rounding's own derivative would be zero."""
    w = q8.quantize_weights(lambda v, x: x @ v["w"], PAIR, X, config=ALWAYS, correct=None)
    found = jax.grad(lambda x: q8.quantize(lambda v, x: x @ v["w"], ALWAYS)(w, x).sum())(X)
    expected = jnp.broadcast_to(w["w"].dequantize().sum(1), X.shape)
    # The extremes of each row lie on the edge of the range, where the derivative of the clip is one or a half.
    inner = (X.min(1, keepdims=True) < X) & (X.max(1, keepdims=True) > X)
    np.testing.assert_allclose(found[inner], expected[inner], rtol=1e-5, atol=1e-5)


def test_compiled_gradients_equal_plain_ones():
    grad = jax.grad(functools.partial(loss, q8.quantize(dense, ALWAYS)))
    assert cosine(grad(PAIR, X), jax.jit(grad)(PAIR, X)) > 0.999


LAYERS = {"w": normal(3, 32, 32) / 6}


def unrolled(v, x):
    for w in v["w"]:
        x = jnp.tanh(x @ w)
    return x


def scanned(v, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["w"])[0]


def while_loop(v, x):
    def body(state):
        i, h = state
        return i + 1, jnp.tanh(h @ v["w"][i])

    return jax.lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1]


def fori(v, x):
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ v["w"][i]), x)


def conditional(v, x):
    return jax.lax.cond(v["w"][0, 0, 0] < 1e9, unrolled, lambda v, x: x, v, x)


def rematerialised(v, x):
    return jax.checkpoint(unrolled)(v, x)


def compiled_inside(v, x):
    return jax.jit(unrolled)(v, x)


@jax.custom_jvp
def custom(v, x):
    return unrolled(v, x)


custom.defjvp(lambda primals, tangents: jax.jvp(unrolled, primals, tangents))


@pytest.mark.parametrize(
    "fn", [scanned, while_loop, fori, conditional, rematerialised, compiled_inside, custom], ids=lambda f: f.__name__
    if hasattr(f, "__name__")
    else "custom_jvp"
)  # fmt: skip
def test_bodies_are_quantized_like_unrolled_code(fn):
    straight = jax.jit(q8.quantize(unrolled, ALWAYS))(LAYERS, X)
    found = jax.jit(q8.quantize(fn, ALWAYS))(LAYERS, X)
    assert q8.explain(fn, LAYERS, X, config=ALWAYS).eight_bit_share == 1.0
    assert sqnr_db(straight, found) > BOUNDARY_DB
    assert sqnr_db(unrolled(LAYERS, X), found) < 80  # it is not the float function that ran


def test_bfloat16_models_stay_bfloat16():
    variables, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (PAIR, X))
    found = q8.quantize(dense, ALWAYS)(variables, x)
    assert found.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits of each number, about as many as the codes: the same bound against the float32 result.
    assert sqnr_db(dense(PAIR, X), found) > SQNR_DB


def test_static_ranges_are_used():
    site = "w:dot"
    exact, plain = dense(PAIR, X), q8.quantize(dense, ALWAYS)(PAIR, X)
    wide = q8.quantize(dense, ALWAYS, ranges=q8.Ranges({site: q8.Range(-400, 400)}))(PAIR, X)
    narrow = q8.quantize(dense, ALWAYS, ranges={site: q8.Range(-0.1, 0.1)})(PAIR, X)
    fit = q8.quantize(dense, ALWAYS, ranges={site: (float(X.min()), float(X.max()))})(PAIR, X)
    assert sqnr_db(exact, wide) < 15  # steps of 3 leave two or three codes
    assert sqnr_db(exact, narrow) < 5  # nearly all data are clipped
    assert sqnr_db(exact, fit) > SQNR_DB
    assert sqnr_db(plain, fit) < 80
    assert q8.explain(dense, PAIR, X, config=ALWAYS, ranges={site: (-4, 4)})[site].range == "given"


def test_a_range_for_an_unknown_site():
    with pytest.raises(q8.RangesError, match=r"'wv:dot' \(did you mean .*'[wv]:dot'"):
        q8.quantize(dense, ranges={"wv:dot": q8.Range(0, 1)})(PAIR, X)


def test_bytes_as_input_are_used_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 16)).astype(np.uint8)
    codes = q8.QTensor.from_uint8(image, 1 / 128, 127)
    module = nn.Conv(32, (3, 3))
    variables = module.init(jax.random.key(0), jnp.zeros(image.shape))
    plan = q8.explain(module.apply, variables, codes)
    assert plan["params/kernel:conv"].range == "codes of its producer"
    jaxpr = str(jax.make_jaxpr(q8.quantize(module.apply))(
        q8.quantize_weights(module.apply, variables, codes, correct=None), codes
    ))  # fmt: skip
    assert "reduce_min" not in jaxpr
    assert "reduce_max" not in jaxpr
    exact = module.apply(variables, (image.astype(np.float32) - 127) / 128)
    assert sqnr_db(exact, q8.quantize(module.apply)(variables, codes)) > 35  # only the weights are rounded


def test_a_quantized_function_composes_with_jit_of_shapes():
    """No value is looked at while tracing: `eval_shape` works, and one trace serves all values."""
    fast = q8.quantize(dense, ALWAYS)
    assert jax.eval_shape(fast, PAIR, X).shape == (16, 32)
    assert jax.eval_shape(jax.vmap(fast, (None, 0)), PAIR, normal(2, 16, 32)).shape == (2, 16, 32)
