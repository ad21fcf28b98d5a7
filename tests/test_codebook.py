"""Code books: chosen as well as the best of all, never worse than an even grid, computed with everywhere, stored packed."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxq8 as q8
from jaxq8.files.container import CHECKSUM_KEY, DOCUMENT_KEY, checksum
from tests.small import PAIR, X, dense, grad, normal, sqnr_db

BOOK = q8.Spec(bits=3, granularity="channel", levels="kmeans")
CONFIG = q8.Config(kernels="xla", weights=BOOK)
GOLDEN = Path(__file__).parent / "golden"


def least_error(values: np.ndarray, count: int) -> float:
    """The best that any `count` values can do for sorted numbers: the least over all ways to cut them into runs."""
    cuts = itertools.combinations(range(1, len(values)), count - 1)
    return min(sum(((part - part.mean()) ** 2).sum() for part in np.split(values, cut)) for cut in cuts)


def test_the_error_is_close_to_the_least_of_all() -> None:
    """Twelve numbers, four values: all 165 ways to cut them are tried."""
    x = np.asarray(normal(12, 20), np.float64)
    q = q8.CodeBook.from_float(
        jnp.asarray(x, jnp.float32), q8.Spec(bits=2, granularity="channel", levels="kmeans")
    )
    assert (q.shape, q.book.shape, q.scale.shape) == ((12, 20), (1, 20, 4), (1, 20))
    found = ((np.asarray(q.dequantize()) - x) ** 2).sum(0)
    best = np.array([least_error(np.sort(column), 4) for column in x.T])
    assert (found >= best * (1 - 1e-5)).all()  # nothing is better than the best, but for float32
    assert (
        np.abs(found - best) <= 0.02 * best
    ).mean() >= 0.5  # Lloyd's local optimum is the global one for most columns
    assert found.sum() <= 1.3 * best.sum()


@pytest.mark.parametrize(
    ("granularity", "books"), [pytest.param("tensor", 1, marks=pytest.mark.slow), ("channel", 64)]
)
def test_no_even_grid_of_as_many_values_is_better(granularity: str, books: int) -> None:
    w = jnp.sign(normal(96, 64)) * normal(96, 64) ** 2  # long tails, where even steps are wasted
    q = q8.CodeBook.from_float(w, q8.Spec(bits=3, granularity=granularity, levels="kmeans"))
    even = q8.QTensor.from_float(w, q8.Spec(bits=3, granularity=granularity))
    assert q.scale.size == books
    shared = None if granularity == "tensor" else 0
    off, even_off = (np.sqrt(((r.dequantize() - w) ** 2).mean(shared)) for r in (q, even))
    # k-means starts from the even values too; its own are then rounded, by half a step of the book at most.
    assert (off <= even_off + np.asarray(q.scale).reshape(off.shape) / 2).all()
    assert sqnr_db(w, q.dequantize()) > sqnr_db(w, even.dequantize()) + 1
    assert set(np.unique(q.indices)) <= set(range(8))
    # Every element has the value of its book that is nearest to it.
    values = np.asarray(q.book, np.float32) * np.asarray(q.scale)[..., None]
    nearest = np.abs(np.asarray(w)[..., None] - values).min(-1)
    np.testing.assert_allclose(np.abs(np.asarray(w - q.dequantize())), nearest, atol=1e-6)


def test_numbers_of_few_values_are_kept() -> None:
    """Multiples of the book's own step: nothing is left to round."""
    values = np.float32([-127, -60, 3, 99]) / 64
    w = jnp.asarray(values[np.random.default_rng(0).integers(0, 4, (40, 8))])
    q = q8.CodeBook.from_float(w, q8.Spec(bits=2, granularity="tensor", levels="kmeans"))
    np.testing.assert_allclose(q.dequantize(), w, rtol=1e-6)
    zeros = q8.CodeBook.from_float(jnp.zeros((4, 4)), q8.Spec(bits=2, granularity="tensor", levels="kmeans"))
    np.testing.assert_array_equal(zeros.dequantize(), np.zeros((4, 4)))


@pytest.mark.parametrize(
    "mode",
    [
        "eightbit",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("weights", "weights_rounded", "simulate")),
    ],
)
def test_every_mode_computes_with_the_values(mode: str) -> None:
    config = q8.Config(mode=mode, kernels="xla", weights=BOOK)
    q_vars = q8.quantize_weights(dense, PAIR, X, config=config)
    assert isinstance(q_vars["w"], q8.CodeBook) == (mode in ("eightbit", "weights"))
    fast = jax.jit(q8.quantize(dense, config))
    found, again = fast(q_vars, X), fast(PAIR, X)
    books = q8.quantize_weights(dense, PAIR, X, config=CONFIG)
    decoded = {name: b.dequantize() for name, b in books.items()}
    # In float only the order of sums differs; activations of eight bits have 38 dB a layer.
    assert sqnr_db(dense(decoded, X), found) > (90 if mode.startswith("weights") else 32)
    assert sqnr_db(found, again) > 60
    if mode == "eightbit":  # the integers are those of the QTensor that the book stands for
        codes = {name: b.codes() for name, b in books.items()}
        np.testing.assert_array_equal(found, fast(codes, X))


@pytest.mark.slow
def test_derivatives_pass_straight_through() -> None:
    slope = grad(lambda v: q8.quantize(dense, CONFIG.simulated())(v, X).sum())(PAIR)
    exact = grad(lambda v: dense(v, X).sum())(PAIR)
    assert sqnr_db(exact, slope) > 6  # three bits: some 14 dB a layer, in two layers


def test_encoding_twice_changes_nothing() -> None:
    once = q8.quantize_weights(dense, PAIR, X, config=CONFIG)
    twice = q8.quantize_weights(dense, once, X, config=CONFIG)
    assert twice["w"] is once["w"]
    assert "CodeBook(32x64, 3 bits, 64 books, stands for float32)" in repr(once)


def test_files_and_programs(tmp_path) -> None:
    q_vars = q8.quantize_weights(dense, PAIR, X, config=CONFIG)
    q8.save(tmp_path / "m.q8", q_vars, config=CONFIG)
    loaded, _, config = q8.load(tmp_path / "m.q8")
    assert config == CONFIG
    for before, after in zip(jax.tree.leaves(q_vars), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(before, after)
    assert jax.tree.structure(loaded) == jax.tree.structure(q_vars)
    lazy = q8.load(tmp_path / "m.q8", lazy=True)[0]["w"]
    stored = {name: a.nbytes for name, a in load_file(tmp_path / "m.q8").items() if name.startswith("w")}
    assert lazy.nbytes == sum(stored.values()) == 32 * 64 * 3 // 8 + 64 * (8 + 4)
    q8.export(tmp_path / "m.q8x", dense, q_vars, X, config=CONFIG, platforms=("cpu",))
    found = q8.load_exported(tmp_path / "m.q8x")(X)
    np.testing.assert_allclose(found, jax.jit(q8.quantize(dense, CONFIG))(q_vars, X), atol=1e-5)


def test_files_get_smaller_with_the_bits_and_only_files_with_books_are_of_version_2(tmp_path) -> None:
    w = {"w": normal(256, 256)}
    sizes, versions = {}, {}
    for bits in (2, 4, 8):
        spec = q8.Spec(bits=bits, symmetric=True) if bits == 8 else q8.Spec(bits=bits, levels="kmeans")
        encoded = q8.quantize_weights(
            lambda v, x: x @ v["w"], w, normal(4, 256), config=q8.Config(weights=spec)
        )
        q8.save(tmp_path / "m.q8", encoded)
        sizes[bits] = (tmp_path / "m.q8").stat().st_size
        with safe_open(tmp_path / "m.q8", "np") as file:
            versions[bits] = json.loads(file.metadata()[DOCUMENT_KEY])["format_version"]
    assert abs(sizes[8] - 2 * sizes[4]) < 1000
    assert abs(sizes[4] - 2 * sizes[2]) < 1000
    assert versions == {2: 2, 4: 2, 8: 1}


def test_a_file_of_version_2_is_read() -> None:
    loaded = q8.load(GOLDEN / "version2.q8")[0]
    expected = json.loads((GOLDEN / "version2.json").read_text())
    book = loaded["w"]
    assert isinstance(book, q8.CodeBook)
    assert np.asarray(book.indices).tolist() == expected["indices"]
    np.testing.assert_allclose(book.dequantize(), expected["real"], rtol=1e-6)


@pytest.mark.slow
def test_the_reader_of_the_documentation_expands_books_and_groups(tmp_path) -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "FORMAT.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    group = q8.Spec(bits=4, granularity="group", group=32)
    tree = {
        "books": q8.CodeBook.from_float(normal(64, 8), BOOK),
        "one book": q8.CodeBook.from_float(normal(6, 8), q8.Spec(bits=2, levels="kmeans")),
        "groups": q8.QTensor.from_float(normal(64, 8), group, axis=1),
    }
    q8.save(tmp_path / "m.q8", tree)
    for name, found in names["read"](tmp_path / "m.q8").items():
        np.testing.assert_allclose(found, tree[name].dequantize(), rtol=1e-6)


def forged(path: Path, **changes) -> Path:
    with safe_open(path, "np") as file:
        document = json.loads(file.metadata()[DOCUMENT_KEY])
    document["tree"]["dict"][0][1].update(changes)
    text = json.dumps(document)
    save_file(load_file(path), path, metadata={DOCUMENT_KEY: text, CHECKSUM_KEY: checksum(text.encode())})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "8 bits of shape .* are no code book"),
        ({"bits": 2}, "its document says"),
        ({"scale_shape": [2, 8]}, "are no code book"),
        ({"dtype": "int8"}, "stand for int8"),
        ({"shape": [2**40, 2**40]}, "are no code book|its document says"),
    ],
)
def test_forged_files_are_refused(tmp_path, changes, message) -> None:
    q8.save(tmp_path / "m.q8", {"w": q8.CodeBook.from_float(normal(6, 8), BOOK)})
    with pytest.raises(q8.FileError, match=message):
        q8.load(forged(tmp_path / "m.q8", **changes))


def test_what_is_refused() -> None:
    with pytest.raises(
        q8.SpecError, match="a code book has 2 to 6 bits, and is that of a 'tensor' or a 'channel'"
    ):
        q8.Spec(bits=8, levels="kmeans")
    with pytest.raises(q8.SpecError, match="granularity='row', levels='kmeans'"):
        q8.Spec(bits=4, granularity="row", levels="kmeans")
    with pytest.raises(q8.SpecError, match=r"Spec\(levels='log'\): known are even, kmeans"):
        q8.Spec(levels="log")
    with pytest.raises(q8.SpecError, match="code books are for weights"):
        q8.Config(activations=q8.Spec(bits=4, levels="kmeans"))
    with pytest.raises(q8.TensorError, match=r"expected a float array with elements, got int32\[3\]"):
        q8.CodeBook.from_float(jnp.arange(3), BOOK)
    b = q8.CodeBook.from_float(normal(6, 8), BOOK)
    broken = q8.CodeBook(b.indices, b.book[..., :4], b.scale, 3)
    with pytest.raises(
        q8.TensorError, match=r"w: not a valid CodeBook: book \(1, 8, 4\) is not that of scale"
    ):
        q8.quantize(dense, CONFIG)({"w": broken, "v": normal(8, 8)}, normal(4, 6))
