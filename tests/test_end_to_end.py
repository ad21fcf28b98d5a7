"""The main job: whole models in eight bits, what the Plan says of them, and what bad input does."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.kernels import processor
from tests.fidelity import LITE0, SAME_ANSWERS, SQUEEZENET
from tests.xla_programs import products
from tests.zoo import TINY, ZOO


def sqnr_db(exact, found) -> float:
    exact, found = (np.asarray(v, np.float64) for v in (exact, found))
    noise = np.sum((exact - found) ** 2)
    return float(10 * np.log10(np.sum(exact**2) / noise)) if noise else float("inf")


def built(name):
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    return fn, variables, tuple(inputs)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name):
    """Float and encoded variables give the same result, near that of the float model.

    Eight bits alone give about 35 dB a layer; noise adds up over layers, and 15 dB is what ten of them at 25 dB leave.
    """
    fn, variables, inputs = built(name)
    config = q8.Config(kernels="xla")
    expected = fn(variables, *inputs)
    fast = jax.jit(q8.quantize(fn, config))
    encoded = q8.quantize_weights(fn, variables, *inputs, config=config, correct=None)
    found, again = fast(variables, *inputs), fast(encoded, *inputs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for e, f, a in zip(*map(jax.tree.leaves, (expected, found, again)), strict=True):
        assert (f.shape, f.dtype) == (e.shape, e.dtype)
        assert sqnr_db(f, a) > 40  # equal codes; the float code around them is compiled twice
    assert sqnr_db(jax.tree.leaves(expected)[0], jax.tree.leaves(found)[0]) > 15
    assert q8.explain(fn, encoded, *inputs, config=config).eight_bit_share > 0.8


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_mlp"])
def test_reference_and_fast_kernels_agree(name):
    """Accumulators are equal; a code on a rounding boundary may differ, so results agree within a step in a hundred."""
    fn, variables, inputs = built(name)
    results = [
        jax.jit(q8.quantize(fn, q8.Config(kernels=k)))(variables, *inputs) for k in ("xla", "reference")
    ]
    assert sqnr_db(*results) > 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [("resnet50", 0.99), ("mobilenet_v2", 0.99), ("inception_v3", 0.99), ("bert_base", 0.95)],
)
def test_share_of_multiply_adds(name, share):
    fn, variables, inputs = built(name)
    plan = q8.explain(fn, variables, *inputs)
    assert plan.eight_bit_share >= share
    floats = {site.reason for site in plan.sites if site.macs and not site.eight_bit}
    assert floats <= {q8.Reason.ATTENTION, q8.Reason.NOT_FASTER}


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "bars", "corrected_db"), [("efficientnet_lite", LITE0, 23), ("squeezenet", SQUEEZENET, 37)]
)
def test_photos(name, bars, corrected_db):
    """Real weights, real photos: the same first answers; and weights corrected without data (measured 24.7 and 39.1 dB)."""
    import importlib

    from examples import photos

    source = importlib.import_module(f"examples.models.{name}")
    module, variables = source.load()
    images = jnp.asarray(np.stack([source.preprocess(p.image) for p in photos.labelled()]))
    weights = q8.quantize_weights(module.apply, variables, images[:1])
    plain, fast = jax.jit(module.apply), jax.jit(q8.quantize(module.apply))
    expected = np.concatenate([plain(variables, images[i : i + 1]) for i in range(20)])
    found = np.concatenate([fast(weights, images[i : i + 1]) for i in range(20)])
    assert np.sum(expected.argmax(1) == found.argmax(1)) >= SAME_ANSWERS
    assert sqnr_db(expected, found) >= bars.dynamic
    corrected = q8.quantize_weights(
        module.apply, variables, jax.ShapeDtypeStruct(images[:1].shape, images.dtype), correct="statistics"
    )
    found = np.concatenate([fast(corrected, images[i : i + 1]) for i in range(20)])
    assert np.sum(expected.argmax(1) == found.argmax(1)) >= SAME_ANSWERS
    assert sqnr_db(expected, found) >= corrected_db
    plan = q8.explain(module.apply, weights, images[:1])
    assert plan.eight_bit_share >= 0.99
    if processor.capability() == "avx512_vnni":
        text = fast.lower(weights, images[:1]).compile().as_text()
        made, by_kernels = products(text)
        dots = sum(
            site.eight_bit and site.macs > 0 and "multiply-adds" not in site.kernel for site in plan.sites
        )
        assert by_kernels == made
        assert made >= dots


class Small(nn.Module):
    """conv, batch norm, relu, dense; `train` must stay static."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(32, (3, 3))(x)))
        return nn.Dense(64)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def small():
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 8))
    model = Small()
    return model, model.init(jax.random.key(1), x), x


def test_keyword_arguments_stay_static(small):
    model, variables, x = small
    assert sqnr_db(model.apply(variables, x), q8.quantize(model.apply)(variables, x, train=False)) > 25


def test_gradients_are_those_of_float_within_noise(small):
    model, variables, x = small

    def gradient(f):
        def loss(params):
            return (f({**variables, "params": params}, x) ** 2).sum()

        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.grad(loss)(variables["params"]))])

    exact, found = gradient(model.apply), gradient(q8.quantize(model.apply))
    cosine = jnp.vdot(exact, found) / jnp.linalg.norm(exact) / jnp.linalg.norm(found)
    assert cosine > 0.98


def test_vmap_equals_a_loop(small):
    model, variables, x = small
    fast = q8.quantize(lambda v, one: model.apply(v, one[None])[0])
    mapped = jax.vmap(fast, (None, 0))(variables, x)
    looped = jnp.stack([fast(variables, one) for one in x])
    assert sqnr_db(looped, mapped) > 40


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("encoded", [False, True])
def test_layers_with_the_weight_on_the_left(rows, encoded):
    """``w @ x`` under vmap: XLA:CPU would fold the transposition of a product into it, and fail at the mixed operands."""
    shapes = ((256, 128), (256, 256), (256, 256), (64, 256))
    w = [(jax.random.normal(jax.random.key(i), s) / 16, jnp.ones(s[0])) for i, s in enumerate(shapes)]
    x = jax.random.normal(jax.random.key(9), (rows, 128))

    def fn(w, x):
        for matrix, bias in w[:-1]:
            x = jax.nn.relu(matrix @ x + bias)
        return w[-1][0] @ x + w[-1][1]

    mapped, always = jax.vmap(fn, (None, 0)), q8.Config(kernels="xla")
    given = q8.quantize_weights(mapped, w, x, config=always, correct=None) if encoded else w
    assert sqnr_db(mapped(w, x), jax.jit(q8.quantize(mapped, always))(given, x)) > 35


def test_scan_equals_unrolled():
    weights = jax.random.normal(jax.random.key(0), (3, 64, 64)) / 8
    x = jax.random.normal(jax.random.key(1), (16, 64))

    def looped(w, x):
        return jax.lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, w["w"])[0]

    def unrolled(w, x):
        for i in range(3):
            x = jnp.tanh(x @ w["w"][i])
        return x

    found = [jax.jit(q8.quantize(f))({"w": weights}, x) for f in (looped, unrolled)]
    assert sqnr_db(unrolled({"w": weights}, x), found[0]) > 30
    assert sqnr_db(*found) > 40


def test_nothing_to_quantize_is_bit_identical():
    def f(x):
        return jax.nn.softmax(jnp.sin(x) * 3)

    x = jax.random.normal(jax.random.key(0), (8, 8))
    np.testing.assert_array_equal(q8.quantize(f)(x), f(x))
    np.testing.assert_array_equal(q8.quantize(lambda n: n * 2 + 1)(jnp.arange(4)), jnp.arange(4) * 2 + 1)


def test_bytes_as_input_need_no_range(small):
    model, variables, _ = small
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 8)).astype(np.uint8)
    codes = q8.QTensor.from_uint8(image, 1 / 128, 127)
    plan = q8.explain(model.apply, variables, codes)
    assert plan["params/Conv_0/kernel:conv"].range == "codes of its producer"
    expected = model.apply(variables, (image.astype(np.float32) - 127) / 128)
    assert sqnr_db(expected, q8.quantize(model.apply)(variables, codes)) > 25


def test_static_ranges_and_overrides(small):
    model, variables, x = small
    site = "params/Conv_0/kernel:conv"
    plan = q8.explain(model.apply, variables, x, ranges={site: q8.Range(-5, 5)})
    assert plan[site].range == "given"
    with pytest.raises(q8.RangesError, match="did you mean 'params/Conv_0/kernel:conv'"):
        q8.quantize(model.apply, ranges={"params/Conv_1/kernel:conv": q8.Range(0, 1)})(variables, x)
    config = q8.Config(overrides=(("*/Conv_0/*", {"mode": "off"}), ("nothing*", {"mode": "off"})))
    plan = q8.explain(model.apply, variables, x, config=config)
    assert plan[site].reason is q8.Reason.OFF
    assert plan.unused_overrides == ("nothing*",)
    assert q8.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("static", [False, True])
def test_bad_numbers_never_become_good_ones(small, bad, static):
    model, variables, x = small
    ranges = {"params/Conv_0/kernel:conv": q8.Range(-5, 5)} if static else None
    found = q8.quantize(model.apply, ranges=ranges)(variables, x.at[0, 0, 0, 0].set(bad))
    assert not np.isfinite(found).any()
    saturated = q8.quantize(model.apply, q8.Config(nonfinite="saturate"))(
        variables, x.at[0, 0, 0, 0].set(bad)
    )
    assert np.isfinite(saturated).all()


def test_errors_name_the_place_and_the_remedy(small):
    model, variables, x = small
    broken = jax.tree.map(lambda a: a, variables)
    broken["params"]["Conv_0"]["kernel"] = broken["params"]["Conv_0"]["kernel"].at[0].set(jnp.nan)
    with pytest.raises(q8.TensorError, match="weight params/Conv_0/kernel holds NaN"):
        q8.quantize_weights(model.apply, broken, x)
    with pytest.raises(
        q8.ArgumentError, match=r"expects a function, got int; for a Flax model pass model\.apply"
    ):
        q8.quantize(3)
    with pytest.raises(q8.SpecError, match="known are eightbit"):
        q8.Config(mode="8bit")
    with pytest.raises(q8.SpecError, match="unknown rounding 'up'"):
        q8.Config(rounding="up")
    with pytest.raises(q8.ArgumentError, match="hold no arrays"):
        q8.quantize_weights(lambda v, x: x, {}, x)


def test_weights_are_found_with_their_channels():
    def model(p, x):
        h = jnp.einsum("bd,dhk->bhk", x, p["heads"])
        return h.reshape(h.shape[0], -1) @ p["out"].T.reshape(64, 32) + p["bias"]

    p = {"heads": jnp.ones((48, 4, 16)), "out": jnp.ones((32, 64)), "bias": jnp.ones(32)}
    q = q8.quantize_weights(model, p, jnp.ones((2, 48)))
    assert q["heads"].scale.shape == (1, 4, 16)
    assert q["out"].scale.shape == (32, 1)
    assert isinstance(q["bias"], jax.Array)
