"""Rows with scales of their own: right numbers whatever follows the product, and no array of scales as large as the result."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.evaluation.values import is_outer
from jaxq8.kernels import float_forms, processor
from tests.small import ALWAYS, SQNR_DB, normal, sqnr_db

X, W, V = normal(6, 32), normal(32, 24) / 6, normal(24, 16) / 5
BIAS, PER_ROW, HEADS = normal(24), normal(6, 1), normal(4, 6)

FOLLOWED_BY = {
    "a bias": lambda y: y + BIAS,
    "a bias taken away": lambda y: BIAS - y,
    "a number a row": lambda y: y + PER_ROW,
    "a number a row, then a bias": lambda y: (y + PER_ROW) + BIAS,
    "a factor a row": lambda y: y * PER_ROW,
    "a division by rows": lambda y: y / (2 + jnp.abs(PER_ROW)),
    "a factor a channel, then a bias": lambda y: y * BIAS - 1,
    "a constant": lambda y: 3 * (y + BIAS) / 7,
    "relu": lambda y: jax.nn.relu(y + BIAS),
    "relu6": lambda y: jax.nn.relu6(-y),
    "gelu": lambda y: jax.nn.gelu(y + BIAS),
    "heads": lambda y: (y + BIAS).reshape(6, 4, 6) * HEADS,
    "heads, transposed": lambda y: ((y + BIAS).reshape(6, 4, 6) + HEADS).transpose(1, 0, 2),
    "rows cut apart": lambda y: (y + BIAS).reshape(2, 3, 24)[:, 1:],
    "reversed": lambda y: (y + BIAS)[::-1],
    "a residual": lambda y: y + X[:, :24],
}


@pytest.mark.parametrize("name", FOLLOWED_BY)
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_what_follows_a_product_of_rows(name, shift):
    """A shift gives rows zero points that are far from the middle of the codes."""

    def fn(x):
        return FOLLOWED_BY[name]((x + shift) @ W)

    assert sqnr_db(fn(X), jax.jit(q8.quantize(fn, ALWAYS))(X)) > SQNR_DB


@pytest.mark.parametrize("name", ["relu", "gelu", "a constant", "a factor a row", "a bias"])
def test_another_product_reads_the_rows(name):
    def fn(x):
        return FOLLOWED_BY[name](x @ W) @ V

    for config in (ALWAYS, q8.Config(kernels="simulate"), q8.Config(kernels="reference")):
        assert sqnr_db(fn(X), jax.jit(q8.quantize(fn, config))(X)) > SQNR_DB - 5


def test_rows_are_encoded_with_one_range_where_one_is_given():
    def fn(x):
        return jax.nn.relu(x @ W + BIAS) @ V

    *_, second = [site.name for site in q8.explain(fn, X, config=ALWAYS).sites if site.op == "dot"]
    ranges = q8.Ranges({second: q8.Range(0, float(jnp.max(X @ W + BIAS)))})
    assert sqnr_db(fn(X), jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(X)) > SQNR_DB


def test_a_row_of_large_numbers_leaves_the_others_alone():
    x = X.at[2].multiply(1e4)
    found = jax.jit(q8.quantize(lambda x: x @ W + BIAS, ALWAYS))(x)
    for row in range(6):
        assert sqnr_db(x[row] @ W + BIAS, found[row]) > SQNR_DB


def test_scales_of_rows_and_channels_are_never_multiplied_out():
    """Memory of a dense layer and its gelu: int32 sums, their float form, codes; and nothing else of that size."""
    rows, width = 512, 1024
    w, v = normal(256, width) / 16, normal(width, 64) / 32

    def fn(x, w, v):
        return jax.nn.gelu(x @ w + 1, approximate=False) @ v

    x = normal(rows, 256)
    program = jax.jit(q8.quantize(fn, ALWAYS)).lower(x, w, v).compile()
    in_place = sum(a.nbytes for a in (x, w, v)) * 2
    assert program.memory_analysis().temp_size_in_bytes < 2.5 * 4 * rows * width + in_place


@pytest.mark.parametrize(
    ("first", "second", "outer"),
    [((8, 1), (1, 4), True), ((8, 1), (8, 1), False), ((8, 4), (1, 4), False), ((), (8, 4), False),
     ((4,), (8, 1), True), ((1, 1), (1, 4), False)],
)  # fmt: skip
def test_what_varies_along_different_axes(first, second, outer):
    assert is_outer(np.ones(first), np.ones(second)) is is_outer(np.ones(second), np.ones(first)) is outer


def test_large_batched_products_are_the_same_numbers():
    """Halving and doubling is exact: attention's weights times values, in the form that is fast, and below its size."""
    scores, values = jax.nn.softmax(normal(3, 11, 128, 128)), normal(3, 11, 128, 32)
    numbers = (((3,), (2,)), ((0, 1), (0, 1)))
    params = {
        "dimension_numbers": numbers, "precision": None, "preferred_element_type": np.dtype("float32"),
        "out_sharding": None,
    }  # fmt: skip
    for p, v in ((scores, values), (values.swapaxes(2, 3), scores.swapaxes(2, 3))):
        exact = jax.jit(lambda p, v: jax.lax.dot_general(p, v, numbers))(p, v)
        assert float_forms.batched_pays(params, p, v, exact.shape)
        assert not float_forms.batched_pays(params, p[:1], v[:1], exact[:1].shape)
        assert not float_forms.batched_pays(params, p.astype(jnp.bfloat16), v, exact.shape)
        found = jax.jit(lambda p, v: float_forms.batched_dot(p, v, **params))(p, v)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)  # another order of 128 terms at most


def test_attention_over_sentences_in_float():
    """The plan's float sites compute what the function computes."""
    q, k, v = (normal(4, 128, 8, 16) + i for i in range(3))
    fn = jax.nn.dot_product_attention
    off = jax.jit(q8.quantize(fn, q8.Config(mode="off")))
    np.testing.assert_allclose(fn(q, k, v), off(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "wide"), [("avx512_vnni", True), ("amx", True), ("avx2", False), ("arm", False)]
)
def test_compiler_options_follow_the_processor(name, wide, monkeypatch):
    monkeypatch.setenv(processor.VARIABLE, name)
    processor.capability.cache_clear()
    try:
        options = q8.compiler_options()
        assert bool(options) is wide
        if wide:  # which this compiler knows, whatever machine it runs on
            doubled = jax.jit(lambda x: 2 * x, compiler_options=options)
            np.testing.assert_array_equal(doubled(X), 2 * X)
    finally:
        monkeypatch.undo()
        processor.capability.cache_clear()


def test_an_exported_program_inside_other_transformations(tmp_path):
    """Compiler options belong to the outermost compilation, which is not the program's own there."""
    path = tmp_path / "net.q8x"
    q8.export(path, lambda v, x: jnp.tanh(x @ v), W, X, config=ALWAYS)
    model = q8.load_exported(path)
    expected = model(X)
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(X), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.lax.map(model, X[None]), expected[None], rtol=1e-6)
