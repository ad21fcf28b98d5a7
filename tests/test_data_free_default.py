"""What `quantize_weights` corrects by default and what it leaves alone: norms, signs, scales, numbers that are not known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.analysis.flat_function import Chains
from jaxq8.data_free.batch_norms import batch_norms
from jaxq8.data_free.expected_inputs import expected_inputs
from jaxq8.data_free.fitted_scales import fitted
from jaxq8.data_free.normalized import normalized_values
from jaxq8.data_free.signs import never_negative
from tests.small import sqnr_db

RNG = np.random.default_rng(0)
LAYERS = [RNG.normal(size=(64, 64)).astype(np.float32) / 8 for _ in range(3)]
X = np.abs(RNG.normal(size=(32, 64))).astype(np.float32)
ALWAYS = q8.Config(kernels="xla")


def positive(v, x):
    for w in v:
        x = jax.nn.relu(x @ w)
    return x


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def encoded(fn=positive, v=LAYERS, config=ALWAYS, **settings):
    return q8.quantize_weights(fn, v, X, config=config, **settings)


def test_weights_are_corrected_unless_it_is_declined():
    plain, default = encoded(correct=None), encoded()
    assert same(default, encoded(correct="statistics"))
    assert not same(default, plain)
    fast = jax.jit(q8.quantize(positive, ALWAYS))
    assert same(fast(plain, X), fast(LAYERS, X))  # what is encoded in the call is rounded to the nearest code
    exact = positive(LAYERS, X)
    assert sqnr_db(exact, fast(default, X)) > sqnr_db(exact, fast(plain, X))


@pytest.mark.parametrize("rounding", ["floor", "stochastic", lambda x: jnp.round(x)])
def test_another_rounding_is_kept(rounding):
    config = q8.Config(kernels="xla", rounding=rounding)
    assert same(encoded(config=config), encoded(config=config, correct=None))
    assert not same(encoded(config=config), encoded(config=config, correct="statistics"))


def test_traced_variables_are_rounded_to_the_nearest():
    inside = jax.jit(lambda v: encoded(v=v))(LAYERS)
    assert same(inside, encoded(correct=None))


def test_known_variables_are_corrected_while_another_function_is_traced():
    found = []
    jax.jit(lambda x: (found.append(encoded()), x)[1])(X)
    assert same(found[0], encoded())


def test_only_the_shape_of_the_data_counts():
    found = [
        q8.quantize_weights(positive, LAYERS, x) for x in (X, -3 * X, jax.ShapeDtypeStruct(X.shape, X.dtype))
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def chains_of(fn, v, x):
    return Chains.trace(fn, (v, x), {}, q8.Config())


W = RNG.normal(size=(64, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda w, x: jax.nn.relu(x) @ w, True),
        (lambda w, x: jax.nn.relu6(x) @ w, True),
        (lambda w, x: jax.nn.softmax(x) @ w, True),
        (lambda w, x: (jax.nn.sigmoid(x) * jnp.square(x)) @ w, True),
        (lambda w, x: (jnp.concatenate([jax.nn.relu(x[:, :32]), jnp.abs(x[:, 32:])], 1) / 2).T.T @ w, True),
        (lambda w, x: x @ w, False),
        (lambda w, x: jax.nn.tanh(x) @ w, False),
        (lambda w, x: (jax.nn.relu(x) - 1) @ w, False),
        (lambda w, x: jnp.minimum(jax.nn.relu(x), x) @ w, False),
        (lambda w, x: jax.nn.silu(x) @ w, False),
    ],
)  # fmt: skip
def test_codes_are_balanced_where_inputs_have_one_sign(fn, expected):
    chains = chains_of(lambda v, x: fn(v["w"], x), {"w": W}, X)
    ((node, _),) = chains.contractions()
    assert (node.inputs[0] in never_negative(chains)) == expected
    read = fn(np.eye(64, dtype=np.float32), X - X.mean())
    assert (np.asarray(read) >= 0).all() == expected
    changed = not same(encoded(fn, W), encoded(fn, W, correct=None))
    assert changed == expected


def test_a_table_that_is_only_looked_up_stays_as_it_is():
    ids = np.arange(20).reshape(2, 10)

    def fn(v, i):
        return v["table"][i] @ v["w"]

    v = {"table": W, "w": W}
    plain, better = (q8.quantize_weights(fn, v, ids, config=ALWAYS, correct=c) for c in (None, "auto"))
    assert same(plain["table"], better["table"])


NORMS = {
    "layer": nn.LayerNorm(),
    "layer, two passes": nn.LayerNorm(use_fast_variance=False),
    "rms": nn.RMSNorm(),
    "group": nn.GroupNorm(4),
}
FREE = [*NORMS][:3]


class Block(nn.Module):
    """A norm of what nothing is known of, and a layer behind it with a bias."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = x + jnp.sin(nn.Dense(x.shape[-1], name="before")(x))
        return nn.Dense(48, name="after")(self.norm(x))


def with_parameters(norm):
    """A block whose norm has a scale and a shift (RMS norm has no shift)."""
    block, x = Block(norm), jnp.asarray(RNG.normal(size=(4, 16, 32)), jnp.float32)
    variables = jax.tree.map(np.asarray, block.init(jax.random.key(0), x))
    for name, value in variables["params"]["norm"].items():
        variables["params"]["norm"][name] = RNG.normal(size=value.shape).astype(np.float32) + 1
    return block.apply, variables, x


@pytest.mark.parametrize("name", NORMS)
def test_what_is_normalized_is_found(name):
    fn, v, x = with_parameters(NORMS[name])
    found = normalized_values(chains_of(fn, v, x))
    assert len(found) == 1
    assert np.prod(next(iter(found))[1].aval.shape) == x.size


@pytest.mark.parametrize("name", FREE)
def test_behind_a_norm_the_mean_input_is_its_shift(name):
    fn, v, x = with_parameters(NORMS[name])
    chains, leaves = chains_of(fn, v, x), dict(enumerate(jax.tree.leaves(v)))
    known = {site.name: found for node, site in chains.contractions()
             if (found := expected_inputs(chains, leaves, batch_norms(chains, leaves)).get(node))}  # fmt: skip
    (moments,) = known.values()  # what the layer before the norm reads is unknown
    norm = v["params"]["norm"]
    scale, shift = np.abs(norm["scale"]), norm.get("bias", np.zeros(32))
    assert (np.abs(moments.mean - shift) < 0.15 * scale + 1e-6).all()
    assert np.mean(moments.variance / scale**2) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", FREE[:2])
def test_the_shift_of_a_norm_lowers_the_error(name):
    fn, v, x = with_parameters(NORMS[name])
    config = q8.Config(kernels="xla", weights=q8.Spec(bits=5, symmetric=True, granularity="channel"),
                       overrides=(("*/before/*", {"mode": "off"}),))  # fmt: skip
    exact = fn(v, x)

    def error(correct):
        q = q8.quantize_weights(fn, v, x, config=config, correct=correct)
        decoded = jax.tree.map(lambda a: a.dequantize() if isinstance(a, q8.QTensor) else a, q,
                               is_leaf=lambda a: isinstance(a, q8.QTensor))  # fmt: skip
        return sqnr_db(exact, fn(decoded, x))

    assert error("auto") > error(None) + 1


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_fitted_scales_lower_the_weighted_error(bits):
    weight = RNG.standard_t(4, size=(256, 24)).astype(np.float32)
    variance = RNG.uniform(0.1, 4, (256, 1)).astype(np.float32)
    codes = q8.QTensor.from_float(weight, q8.Spec(bits=bits, symmetric=True), axis=1)
    better = fitted(weight, codes, variance)
    errors = [np.sum(variance * np.square(np.asarray(q.dequantize()) - weight), 0) for q in (codes, better)]
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert errors[1].sum() < 0.8 * errors[0].sum()
    assert (np.asarray(better.scale) <= np.asarray(codes.scale) * (1 + 1e-6)).all()
    assert np.abs(better.values).max() <= 2 ** (bits - 1) - 1


def test_each_group_gets_a_scale_of_its_own():
    weight = RNG.standard_t(4, size=(128, 8)).astype(np.float32)
    spec = q8.Spec(bits=4, symmetric=True, granularity="group", group=32)
    codes = q8.QTensor.from_float(weight, spec, axis=(1,))
    better = fitted(weight, codes)
    assert better.scale.shape == codes.scale.shape
    for start in range(0, 128, 32):
        rows = slice(start, start + 32)
        alone = q8.QTensor.from_float(weight[rows], q8.Spec(bits=4, symmetric=True), axis=1)
        expected = fitted(weight[rows], alone)
        np.testing.assert_array_equal(np.asarray(better.values)[rows], expected.values)
