"""Native regions with reductions, products of data, activations and ranges that are found in the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.regions.steps import Contract, Product, Reduce
from tests.test_native_regions import (
    NATIVE,
    NETS,
    arguments,
    case,
    checked_steps,
    near_xlas_forms,
    needs_native,
    program_of,
)
from tests.test_native_regions import Case as StaticCase

HEADS, WIDTH, TOKENS = 4, 64, 12
LAYOUT = ("NHWC", "HWIO", "NHWC")


def layer_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(-1, keepdims=True) - mean**2, 0)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * p["scale"] + p["bias"]


def rms_norm(x, p):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def attention(p, x, mask=None):
    q, k, v = (jnp.einsum("btc,chd->bthd", x, p[name]) + 0.1 for name in ("q", "k", "v"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q / 4.0, k)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, -1e9)
    return jnp.einsum("bthd,hdc->btc", jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v), p["o"])


def before(p, x):
    """Norms before, gelu with erf, a mask."""
    mask = jnp.arange(TOKENS)[None] < jnp.array([[TOKENS - 3]])
    x = x + attention(p, layer_norm(x, p["norm"]), mask)
    h = jax.nn.gelu(layer_norm(x, p["norm"]) @ p["up"], approximate=False)
    return layer_norm(x + h @ p["down"], p["norm"])


def behind(p, x):
    """Norms behind, as in BERT, gelu with tanh."""
    x = layer_norm(x + attention(p, x), p["norm"])
    return layer_norm(x + jax.nn.gelu(x @ p["up"]) @ p["down"], p["norm"])


def gated(p, x):
    """Root-mean-square norms and a gate, as in Llama."""
    x = x + attention(p, rms_norm(x, p["norm"]))
    h = rms_norm(x, p["norm"])
    return x + (jax.nn.silu(h @ p["up"]) * (h @ p["gate"])) @ p["down"]


STEP_BY_STEP = {("gated", False), ("before", True)}  # every step is compiled by itself, which takes its time
TRANSFORMERS = {"before": before, "behind": behind, "gated": gated}


def parameters():
    keys = iter(jax.random.split(jax.random.key(3), 16))

    def kernel(fan_in, *shape):
        return jax.random.normal(next(keys), shape) / np.sqrt(fan_in)

    heads = (WIDTH, HEADS, WIDTH // HEADS)
    return {
        "q": kernel(WIDTH, *heads), "k": kernel(WIDTH, *heads), "v": kernel(WIDTH, *heads),
        "o": kernel(WIDTH, HEADS, WIDTH // HEADS, WIDTH), "up": kernel(WIDTH, WIDTH, 128),
        "gate": kernel(WIDTH, WIDTH, 128), "down": kernel(128, 128, WIDTH),
        "norm": {"scale": jax.random.uniform(next(keys), (WIDTH,), minval=0.5), "bias": kernel(4, WIDTH)},
    }  # fmt: skip


def tokens(seed=0, batch=2):
    return jax.random.normal(jax.random.key(seed), (batch, TOKENS, WIDTH))


CASES = {}


def transformer(name, dynamic):
    if (name, dynamic) not in CASES:
        f, p, x = TRANSFORMERS[name], parameters(), tokens()
        ranges = (
            {}
            if dynamic
            else q8.calibrate(f, p, [(tokens(s),) for s in (0, 1)], config=NATIVE, progress=False)
        )
        codes = q8.quantize_weights(f, p, x, config=NATIVE, correct=None)
        packed = q8.pack(f, codes, x, config=NATIVE, ranges=ranges)
        CASES[name, dynamic] = StaticCase(f, p, x, ranges, codes, packed)
    return CASES[name, dynamic]


def dynamic(name):
    """A net of `NETS` whose ranges are found in the run."""
    if ("net", name) not in CASES:
        c = case(name)
        packed = q8.pack(c.f, c.codes, c.x, config=NATIVE)
        CASES["net", name] = StaticCase(c.f, c.p, c.x, {}, c.codes, packed)
    return CASES["net", name]


def both(dynamic):
    return "found in the run" if dynamic else "static"


@needs_native
@pytest.mark.parametrize("dynamic", [False, True], ids=both)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_is_one_region(name, dynamic):
    c = transformer(name, dynamic)
    plan = q8.explain(c.f, c.packed, c.x, config=NATIVE, ranges=c.ranges)
    (region,) = plan.native
    assert region.contractions == (7 if name == "gated" else 6)
    if (name, dynamic) in STEP_BY_STEP:
        kinds, _ = checked_steps(program_of(c))
        assert kinds.count(Product) == 2
        assert Reduce in kinds


@needs_native
@pytest.mark.parametrize("dynamic", [False, True], ids=both)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_compute_what_xlas_forms_do(name, dynamic):
    _, error, exact = near_xlas_forms(transformer(name, dynamic))
    assert 1e-6 < error < 0.1 * float(jnp.linalg.norm(exact))


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_ranges_found_in_the_run(name):
    c = dynamic(name)
    if name in ("stem", "smooth"):
        checked_steps(program_of(c))
    near_xlas_forms(c)
    plan = q8.explain(c.f, c.packed, c.x, config=NATIVE)
    # Means over windows are float, and XLA computes them between two regions.
    assert len(plan.native) == (2 if name == "joined" else 1)


@needs_native
def test_a_row_that_is_nan_stays_alone():
    c = dynamic("rows")
    x = c.x.at[1, 3, 2].set(jnp.nan)
    own, other = jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(c.codes, x)
    np.testing.assert_array_equal(jnp.isnan(own), jnp.isnan(other))
    assert bool(jnp.isnan(own).any())
    assert not bool(jnp.isnan(own[0]).any())


@needs_native
@pytest.mark.parametrize("is_dynamic", [False, True], ids=both)
def test_a_token_that_is_nan_makes_what_xlas_forms_make_of_it(is_dynamic):
    c = transformer("behind", is_dynamic)
    x = c.x.at[1, 3].set(jnp.nan)
    own, other = jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(c.codes, x)
    np.testing.assert_array_equal(jnp.isnan(own), jnp.isnan(other))
    assert bool(jnp.isnan(own[1]).all())  # attention mixes the rows of an example


@needs_native
@pytest.mark.parametrize("name", ["residual", "joined"])
def test_nan_and_infinity_in_an_image_are_seen(name):
    c = dynamic(name)
    for bad in (jnp.nan, jnp.inf):
        own = jax.jit(c.quantized())(c.packed, c.x.at[0, 2, 2, 1].set(bad))
        assert bool(jnp.isnan(own).any())


@needs_native
@pytest.mark.parametrize("name", ["behind", "gated"])
def test_vmap_is_a_loop(name):
    c = transformer(name, True)
    run = c.quantized()
    x = jnp.stack([c.x, tokens(5)])
    own = jax.jit(jax.vmap(lambda a: run(c.packed, a)))(x)
    loop = jnp.stack([jax.jit(run)(c.packed, a) for a in x])
    np.testing.assert_allclose(own, loop, rtol=1e-4, atol=1e-4 * float(jnp.abs(loop).max()))


def hard_swish(x):
    return x * jnp.clip(x + 3, 0, 6) / 6


FUNCTIONS = {
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_erf, by hand": lambda x: 0.5 * x * (1 + jax.lax.erf(x / np.sqrt(2))),
    "gelu_tanh": jax.nn.gelu,
    "swish": jax.nn.silu,
    "swish, by hand": lambda x: x / (1 + jnp.exp(-x)),
    "swish, of a multiple": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "hard_swish": hard_swish,
}


def activated(function):
    """A function between two products, its plan's steps, and the results of both ways."""
    p, x = {"a": parameters()["up"], "b": parameters()["down"]}, tokens()

    def f(p, x):
        return function(x @ p["a"] + 0.05) @ p["b"]

    ranges = q8.calibrate(f, p, [(x,)], config=NATIVE, progress=False)
    codes = q8.quantize_weights(f, p, x, config=NATIVE, correct=None)
    c = StaticCase(f, p, x, ranges, codes, q8.pack(f, codes, x, config=NATIVE, ranges=ranges))
    ((program, _),) = arguments(program_of(c))
    names = [step.function for step in program.steps if isinstance(step, Contract)]
    return names, jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(codes, x)


@needs_native
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_are_recognised_by_what_they_compute(name):
    names, own, other = activated(FUNCTIONS[name])
    assert names == [name.split(",", maxsplit=1)[0], ""]
    np.testing.assert_allclose(own, other, atol=0.02 * float(jnp.abs(other).max()))


NEARLY = {
    "swish of another place": lambda x: x * jax.nn.sigmoid(x + 0.3),
    "gelu_tanh with another constant": lambda x: 0.5 * x * (1 + jnp.tanh(0.7978846 * (x + 0.06 * x**3))),
}


@needs_native
@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_an_activation_is_computed_as_it_is(name):
    names, own, other = activated(NEARLY[name])
    assert names == ["", ""]
    np.testing.assert_allclose(own, other, atol=0.02 * float(jnp.abs(other).max()))


@needs_native
def test_a_large_batch_stays_in_one_region_instead_of_blocks():
    def f(p, x):
        y = jax.nn.relu(jax.lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=LAYOUT))
        return jax.lax.conv_general_dilated(y, p["b"], (1, 1), "SAME", dimension_numbers=LAYOUT)

    p = {"a": jnp.ones((3, 3, 64, 64)), "b": jnp.ones((3, 3, 64, 64))}
    x = jax.ShapeDtypeStruct((8, 160, 160, 64), jnp.float32)
    codes = q8.quantize_weights(f, p, x)
    assert q8.explain(f, codes, x).blocks > 1  # XLA's forms
    plan = q8.explain(f, q8.pack(f, codes, x), x)
    assert plan.blocks == 1
    assert [region.contractions for region in plan.native] == [2]
