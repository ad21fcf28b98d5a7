"""Every fast form equals the reference kernel bit for bit, compiled, at the shapes of real models and at random ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxq8 as q8
from jaxq8.kernels import processor
from jaxq8.kernels.forms import MAXIMUM_TERMS, ConvForm, DotForm, Form
from jaxq8.kernels.registry import KERNELS, Operand, run_with_sums
from jaxq8.kernels.select import candidate, select
from jaxq8.machine.selfcheck import codes as random_codes

pytestmark = pytest.mark.compiled


def conv(batch, size, c_in, kernel, c_out, stride=1, padding=None, groups=1, holes=1, dilation=1) -> ConvForm:
    rank = len(kernel)
    edges = padding or tuple(
        ((k - 1) * dilation // 2, (k - 1) * dilation - (k - 1) * dilation // 2) for k in kernel
    )
    sizes = (size,) * rank if isinstance(size, int) else size
    return ConvForm(
        batch,
        sizes,
        c_in,
        kernel,
        c_out,
        (stride,) * rank,
        edges,
        (holes,) * rank,
        (dilation,) * rank,
        groups,
    )


REAL_SHAPES = {
    "1x1": conv(1, 56, 64, (1, 1), 256),
    "1x1 stride 2": conv(1, 56, 256, (1, 1), 512, stride=2),
    "3x3": conv(1, 28, 128, (3, 3), 128),
    "3x3 batch 8": conv(8, 28, 64, (3, 3), 64),
    "3x3 batch 8 (blocks)": conv(8, 64, 128, (3, 3), 16),
    "3x3 (rows)": conv(1, 128, 256, (3, 3), 8),
    "stem 7x7": conv(1, 224, 3, (7, 7), 64, stride=2),
    "stem 7x7 batch 8": conv(8, 112, 3, (7, 7), 64, stride=2),
    "stem 3x3 asymmetric": conv(1, 224, 3, (3, 3), 32, stride=2, padding=((0, 1), (0, 1))),
    "1x7": conv(1, 17, 128, (1, 7), 192),
    "depthwise 3x3": conv(1, 56, 96, (3, 3), 96, groups=96),
    "depthwise 5x5 stride 2": conv(1, 28, 240, (5, 5), 240, stride=2, groups=240),
    "depthwise multiplier": conv(1, 14, 32, (3, 3), 64, groups=32),
    "grouped": conv(1, 28, 64, (3, 3), 128, groups=4),
    "grouped 1-D": conv(2, 40, 32, (5,), 64, groups=2),
    "dilated": conv(1, 28, 32, (3, 3), 64, dilation=2),
    "transposed": conv(1, 14, 64, (4, 4), 32, padding=((2, 2), (2, 2)), holes=2),
    "1-D": conv(2, 100, 16, (9,), 32),
    "3-D": conv(1, 10, 8, (3, 3, 3), 16),
    "dot": DotForm(0, 128, 384, 1536),
    "dot of one row": DotForm(0, 1, 1024, 1024),
    "dot of odd sides": DotForm(0, 49, 147, 63),
    "batched": DotForm(12, 64, 32, 64, weight=False),
}


def operands(form: Form, dtype: str, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    numbers = np.random.default_rng(seed)
    if isinstance(form, DotForm):
        lead = (form.batch,) if form.batch else ()
        shapes = (*lead, form.m, form.k), (*lead, form.k, form.n)
    else:
        shapes = (form.batch, *form.spatial, form.c_in), (*form.kernel, form.c_in // form.groups, form.c_out)
    info = np.iinfo(dtype)
    x = numbers.integers(info.min, info.max + 1, shapes[0]).astype(dtype)
    return jnp.asarray(x), jnp.asarray(numbers.integers(-127, 128, shapes[1]), jnp.int8)


def assert_exact(form: Form, dtype: str, border: int, seed: int = 0) -> None:
    x, w = operands(form, dtype, seed)
    zero = jnp.asarray(border, jnp.int32)
    results = [
        jax.jit(lambda x, w, z, k=k: KERNELS[k].run(form, Operand(x, z), Operand(w)))(x, w, zero)
        for k in ("xla", "reference")
    ]
    assert results[0].dtype == jnp.int32
    np.testing.assert_array_equal(*results)


@pytest.fixture(params=["avx512_vnni", "avx2"])
def capability(request, monkeypatch):
    """Both signs of activations, whatever this machine prefers: neither may depend on the processor to be right."""
    monkeypatch.setenv(processor.VARIABLE, request.param)
    processor.capability.cache_clear()
    yield request.param
    monkeypatch.undo()
    processor.capability.cache_clear()


@pytest.mark.parametrize("name", REAL_SHAPES)
def test_fast_forms_equal_the_reference_at_real_shapes(name, capability):
    assert_exact(REAL_SHAPES[name], "uint8", 77)


@pytest.mark.parametrize("name", ["3x3", "depthwise 3x3", "grouped", "dot", "dot of one row"])
def test_signed_activations_are_exact_too(name, capability):
    assert_exact(REAL_SHAPES[name], "int8", -5)


def test_every_form_of_the_table_is_covered():
    chosen = {candidate(form)[0].name for form in REAL_SHAPES.values()}
    assert chosen == {"dot", "pointwise", "multiply-adds", "native", "patches", "blocks", "rows"}


@st.composite
def conv_forms(draw):
    rank = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation = each(1, 3), each(1, 2)
    spatial = tuple((k - 1) * d + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilation, strict=True))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(rank))
    c_in, c_out = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 6))
    batch = draw(st.integers(1, 3))
    return ConvForm(batch, spatial, c_in, kernel, c_out, each(1, 2), padding, each(1, 2), dilation, groups)


@settings(max_examples=10, deadline=None)
@given(conv_forms(), st.integers(0, 255), st.integers(0, 1000))
def test_random_convolutions_are_exact(form, border, seed):
    assert_exact(form, "uint8", border, seed)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3), st.integers(1, 20), st.integers(1, 70), st.integers(1, 40), st.integers(0, 1000))
def test_random_dots_are_exact(batch, m, k, n, seed):
    assert_exact(DotForm(batch, m, k, n), "uint8", 0, seed)


def test_the_longest_sum_is_exact_and_a_longer_one_is_refused():
    form = DotForm(0, 8, MAXIMUM_TERMS, 8)
    x = jnp.full((form.m, form.k), 255, jnp.uint8)
    w = jnp.full((form.k, form.n), -127, jnp.int8)
    assert int(KERNELS["xla"].run(form, Operand(x), Operand(w))[0, 0]) == -255 * 127 * MAXIMUM_TERMS
    longer = DotForm(0, 8, MAXIMUM_TERMS + 1, 8)
    assert select(longer, "xla").kernel == "float"
    assert "can overflow" in select(longer, "xla").reason


def test_the_simulation_equals_the_reference_while_float_is_exact():
    form = REAL_SHAPES["3x3"]
    x, w = operands(form, "uint8")
    exact = KERNELS["reference"].run(form, Operand(x, np.int32(3)), Operand(w))
    simulated = KERNELS["simulate"].run(
        form, Operand(x.astype(jnp.float32), np.int32(3), signed=False), Operand(w.astype(jnp.float32))
    )
    np.testing.assert_array_equal(exact, simulated.astype(jnp.int32))


@pytest.mark.skipif(
    processor.capability() != "avx512_vnni", reason="the library call was read on AVX-512 VNNI"
)
@pytest.mark.parametrize("name", ["3x3", "1x1", "dot", "batched"])
def test_contractions_reach_the_integer_kernels(name):
    form = REAL_SHAPES[name]
    x, w = operands(form, "uint8")
    text = (
        jax.jit(lambda x, w: KERNELS["xla"].run(form, Operand(x, jnp.int32(3)), Operand(w)))
        .lower(x, w)
        .compile()
        .as_text()
    )
    fused = [line for line in text.splitlines() if "ynn_fusion" in line and "= s32[" in line]
    assert fused
    assert not [line for line in text.splitlines() if " convolution(" in line and "= s32[" in line]


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(
    "form",
    [
        DotForm(0, 1, 64, 40), DotForm(0, 1, 768, 1024, transposed=True), DotForm(0, 9, 96, 63, transposed=True),
        DotForm(0, 128, 384, 256), DotForm(0, 49, 63, 17), DotForm(3, 5, 32, 16),
        conv(1, 14, 96, (1, 1), 64), conv(2, 14, 32, (1, 1), 24, stride=2), conv(1, 9, 8, (3, 3), 16),
    ],
)  # fmt: skip
def test_sums_of_weights_that_ride_along_are_exact(form, dtype, mixed, monkeypatch):
    """The row of ones, on processors with mixed dots and without, compiled; forms without it take the sums by themselves."""
    monkeypatch.setattr("jaxq8.kernels.dot.mixed_dots_are_fast", lambda: mixed)
    x, w = random_codes(form, dtype)
    found, sums = jax.jit(lambda x, w: run_with_sums("xla", form, Operand(x, jnp.int32(3)), Operand(w)))(x, w)
    np.testing.assert_array_equal(found, KERNELS["reference"].run(form, Operand(x, jnp.int32(3)), Operand(w)))
    wide = np.asarray(w, np.int64)
    axes = (-1 if form.transposed else -2) if isinstance(form, DotForm) else tuple(range(wide.ndim - 1))
    np.testing.assert_array_equal(np.ravel(sums), np.ravel(wide.sum(axes)))


@pytest.mark.parametrize("rows", [1, 2, 128])
@pytest.mark.parametrize("attend", [lambda x, w: x @ w.T, lambda x, w: jnp.einsum("bd,nd->bn", x, w)])
def test_tied_weights_are_read_as_they_lie(attend, rows):
    """No transposition reaches XLA, which would widen the weights to int32 for it."""
    fn = lambda w, x: (attend(x, w), w[jnp.arange(3)])  # noqa: E731
    key = jax.random.key(0)
    w, x = jax.random.normal(key, (1024, 256)), jax.random.normal(key, (rows, 256))
    encoded = q8.quantize_weights(fn, w, x, correct=None)
    fast = jax.jit(q8.quantize(fn))
    text = fast.lower(encoded, x).compile().as_text()
    assert "s32[1024,256]" not in text
    assert "s32[256,1024]" not in text
    reference = q8.quantize(fn, q8.Config(kernels="reference"))
    np.testing.assert_allclose(fast(encoded, x)[0], jax.jit(reference)(encoded, x)[0], rtol=1e-5, atol=1e-5)
