"""Reductions, products of data, and groups of steps that run row by row, in the native extension against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxq8.errors import NativeError
from jaxq8.native import calls, library
from tests import native_programs as programs
from tests.native_chains import Chain
from tests.native_meaning import interpreted
from tests.native_programs import Program, codes, run

pytestmark = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
INF = math.inf

# shape, shape of the result, and the order of axes in memory
REDUCTIONS = {
    "rows": ((37, 768), (37, 1), (0, 1)),
    "short rows": ((300, 7), (300, 1), (0, 1)),
    "one long row": ((1, 100003), (1, 1), (0, 1)),
    "columns": ((3001, 96), (1, 96), (0, 1)),
    "many columns": ((65, 3333), (1, 3333), (0, 1)),
    "few columns": ((4001, 3), (1, 3), (0, 1)),
    "image": ((2, 9, 11, 40), (2, 1, 1, 40), (0, 1, 2, 3)),
    "one image": ((1, 30, 31, 130), (1, 1, 1, 130), (0, 1, 2, 3)),
    "everything": ((6, 7, 8, 90), (1, 1, 1, 1), (0, 1, 2, 3)),
    "nothing": ((4, 5, 6), (4, 5, 6), (0, 1, 2)),
    "outer and inner": ((5, 6, 7, 33), (1, 6, 1, 1), (0, 1, 2, 3)),
    "turned": ((40, 50, 60), (40, 1, 60), (2, 0, 1)),
    "turned columns": ((40, 50, 60), (1, 50, 60), (1, 2, 0)),
    "one number": ((), (), ()),
    "all axes": ((2, 3, 1, 2, 3, 2, 2, 3), (1, 3, 1, 2, 1, 2, 1, 3), (0, 1, 2, 3, 4, 5, 6, 7)),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float32])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, dtype):
    shape, to, order = REDUCTIONS[name]
    rng = np.random.default_rng(11)
    stored = tuple(shape[i] for i in order)
    x = rng.normal(3, 9, stored).astype(dtype) if dtype == np.float32 else codes(rng, stored, dtype)
    view = x.transpose(np.argsort(order))
    for kind in programs.REDUCTIONS:
        out = np.int32 if kind == "sum" and dtype != np.float32 else dtype
        program = Program(x, results=[np.zeros(to, out)])
        src = program.tensor(dtype, 0, shape, 0, [s // x.itemsize for s in view.strides])
        program.reduce(kind, src, 1)
        (got,) = run(program)
        expected = programs.reduced(kind, view, to)
        if kind == "sum" and dtype == np.float32:
            most = programs.reduced("sum", np.abs(view), to)
            assert (np.abs(got - expected) <= 3e-7 * most).all()
        else:
            np.testing.assert_array_equal(got, expected)


def test_reductions_of_parts():
    """Sources and results with gaps, with gaps within rows, and broadcast along an axis."""
    rng = np.random.default_rng(12)
    x = codes(rng, (30, 40, 50), np.int8)
    for kind in programs.REDUCTIONS:
        out = np.int32 if kind == "sum" else np.int8
        results = [np.full((30, 3), 5, out), np.full((2, 20, 3), 5, out), np.full((1, 40, 1), 5, out)]
        program = Program(x, results=results)
        first = program.tensor(np.int8, 0, (30, 40, 25), 1, (2000, 50, 2))
        program.reduce(kind, first, program.tensor(out, 1, (30, 1, 1), results[0].itemsize, (3, 0, 0)))
        second = program.tensor(np.int8, 0, (15, 20, 50), 50, (4000, 100, 1))
        program.reduce(kind, second, program.tensor(out, 2, (1, 20, 1), 62 * results[0].itemsize, (0, 3, 0)))
        third = program.tensor(np.int8, 0, (30, 40, 9), 3, (2000, 50, 0))
        program.reduce(kind, third, 3)
        got = run(program)
        np.testing.assert_array_equal(
            got[0][:, 1:2], programs.reduced(kind, x[:, :, 1::2], (30, 1, 1))[..., 0]
        )
        expected = programs.reduced(kind, x[::2, 1::2], (1, 20, 1))[0]
        np.testing.assert_array_equal(got[1][1, :, 2:], expected)
        third = np.broadcast_to(x[:, :, 3:4], (30, 40, 9))
        np.testing.assert_array_equal(got[2], programs.reduced(kind, third, (1, 40, 1)))


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (70, 1), (1, 70), (5, 700), (700, 5)])
def test_extremes_of_special_numbers(shape):
    """NaN wherever there is one, and infinities."""
    rng = np.random.default_rng(13)
    for special in (math.nan, INF, -INF):
        for _ in range(8):
            x = rng.normal(size=shape).astype(np.float32)
            x[tuple(int(rng.integers(n)) for n in shape)] = special
            x[tuple(int(rng.integers(n)) for n in shape)] = rng.choice([math.nan, INF, -INF])
            for to in ((shape[0], 1), (1, shape[1]), (1, 1)):
                program = Program(x, results=[np.zeros(to, np.float32)] * 3)
                for i, kind in enumerate(programs.REDUCTIONS):
                    program.reduce(kind, 0, i + 1)
                with np.errstate(all="ignore"):
                    for kind, got in zip(programs.REDUCTIONS, run(program), strict=True):
                        np.testing.assert_allclose(got, programs.reduced(kind, x, to), rtol=1e-3, atol=1e-5)


def test_sums_do_not_drift():
    """The error of a long sum does not grow with its length, and integers wrap."""
    x = np.full((1 << 20, 3), 0.1, np.float32)
    program = Program(x, results=[np.zeros(s, np.float32) for s in ((1, 1), (1, 3))])
    program.reduce("sum", 0, 1)
    program.reduce("sum", 0, 2)
    for got in run(program):
        np.testing.assert_allclose(got, x.astype(np.float64).sum() / (3 if got.size > 1 else 1), rtol=1e-6)
    y = np.full((5, 7), 2**30, np.int32)
    program = Program(y, results=[np.zeros(s, np.int32) for s in ((5, 1), (1, 7), (1, 1))])
    for i in (1, 2, 3):
        program.reduce("sum", 0, i)
    for got in run(program):
        np.testing.assert_array_equal(got, programs.reduced("sum", y, got.shape))


def test_sums_of_nothing():
    program = Program(np.zeros((3, 0), np.uint8), results=[np.full((3, 1), 7, np.int32)])
    program.reduce("sum", 0, 1)
    assert (run(program)[0] == 0).all()
    program = Program(np.zeros((3, 0), np.uint8), results=[np.full((3, 1), 7, np.uint8)])
    program.reduce("max", 0, 1)
    with pytest.raises(NativeError, match="nothing has no extreme"):
        calls.implementations(program.words())


PRODUCTS = {
    "matrices": ((33, 17), (17, 65)),
    "one row": ((1, 64), (64, 100)),
    "one column": ((64, 100), (100, 1)),
    "one number": ((1, 1), (1, 1)),
    "batches": ((4, 3, 50, 64), (4, 3, 64, 48)),
    "one matrix for all": ((5, 6, 40, 24), (1, 1, 24, 32)),
    "one each": ((5, 1, 40, 24), (1, 6, 24, 32)),
    "rank 8": ((2, 1, 2, 1, 3, 2, 6, 9), (2, 1, 2, 2, 1, 2, 9, 7)),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_data(name, dtype):
    """Each of a and b as it is, with its matrix turned, or with its axes in another order in memory."""
    rng = np.random.default_rng(14)
    shapes, real = PRODUCTS[name], dtype == np.float32
    a, b = (
        rng.normal(size=s).astype(t) if real else codes(rng, s, t)
        for s, t in zip(shapes, (dtype, np.float32 if real else np.int8), strict=True)
    )
    expected = a.astype(np.float64) @ b.astype(np.float64)
    out, rank = np.float32 if real else np.int32, a.ndim

    def laid(x, order):
        """An array in memory, and the strides with which it is x."""
        stored = np.ascontiguousarray(x.transpose(order))
        return stored, [s // x.itemsize for s in stored.transpose(np.argsort(order)).strides]

    last = [*range(rank - 2), rank - 1, rank - 2]
    orders = [list(range(rank)), last, [rank - 2, *range(rank - 2), rank - 1], list(range(rank))[::-1]]
    for i, j, k in ((0, 0, 0), (0, 1, 0), (1, 0, 2), (2, 2, 2), (3, 3, 3), (2, 1, 0), (1, 2, 1)):
        (x, xs), (y, ys), (z, zs) = (
            laid(a, orders[i]),
            laid(b, orders[j]),
            laid(expected.astype(out), orders[k]),
        )
        program = Program(x, y, results=[np.zeros_like(z)])
        ids = [program.tensor(t.dtype, n, t.shape, 0, s) for n, (t, s) in enumerate(((a, xs), (b, ys)))]
        dst = program.tensor(out, 2, expected.shape, 0, zs)
        program.step(programs.PRODUCT, *ids, dst)
        (got,) = run(program)
        if real:
            np.testing.assert_allclose(got, z, rtol=1e-5, atol=1e-4)
        else:
            np.testing.assert_array_equal(got, z)
        assert ": ref" not in calls.implementations(program.words())[0]


def test_product_of_broadcast_views():
    """Matrices whose strides are 0, and slices of wider ones."""
    rng = np.random.default_rng(15)
    x, y = rng.normal(size=(6, 40, 64)).astype(np.float32), rng.normal(size=(48,)).astype(np.float32)
    program = Program(x, y, results=[np.zeros((6, 40, 30), np.float32)])
    a = program.tensor(np.float32, 0, (6, 40, 32), 64, (2560, 64, 1))
    b = program.tensor(np.float32, 1, (6, 32, 20), 0, (0, 0, 1))
    dst = program.tensor(np.float32, 2, (6, 40, 20), 20, (1200, 30, 1))
    program.step(programs.FILL, 2, -1, 3)
    program.step(programs.PRODUCT, a, b, dst)
    (got,) = run(program)
    expected = np.full(got.shape, 3, np.float32)
    expected[..., 5:25] = x[..., 16:48] @ np.broadcast_to(y[:20], (6, 32, 20))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def layer_norm(program, x, scale, shift, out):
    """The steps of a layer norm of the last axis; `out` is the result."""
    m, n = program.args[x].shape
    total, mean, square, inverse = (program.in_arena(np.float32, (m, 1)) for _ in range(4))
    centered, squares = (program.in_arena(np.float32, (m, n)) for _ in range(2))
    load = [("load", 0, 0), ("load", 1, 1)]
    program.reduce("sum", x, total)
    each = [("load", 0, 0), ("const", 1, programs.bits(n)), ("div", 0, 0, 1)]
    program.elementwise((m, 1), [total], [mean], [*each, ("store", 0, 0)])
    code = [*load, ("sub", 2, 0, 1), ("mul", 3, 2, 2), ("store", 0, 2), ("store", 1, 3)]
    program.elementwise((m, n), [x, mean], [centered, squares], code)
    program.reduce("sum", squares, square)
    code = [*each, ("const", 1, programs.bits(1e-6)), ("add", 0, 0, 1), ("rsqrt", 0, 0), ("store", 0, 0)]
    program.elementwise((m, 1), [square], [inverse], code)
    code = [*load, ("mul", 0, 0, 1), ("load", 1, 2), ("mul", 0, 0, 1), ("load", 1, 3), ("add", 0, 0, 1)]
    store = ("store" if program.results[0].dtype == np.float32 else "encode", 0, 0)
    program.elementwise((m, n), [centered, inverse, scale, shift], [out], [*code, store])


@pytest.mark.parametrize("dims", [(1, 768), (1000, 768), (300, 49), (37, 2500), (5000, 3), (4001, 96)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_layer_norms_run_row_by_row(dims, dtype):
    rng = np.random.default_rng(16)
    x, scale, shift = (rng.normal(3, 5, s).astype(np.float32) for s in (dims, (1, dims[1]), (1, dims[1])))
    program = Program(x, scale * 10, shift * 20, results=[np.zeros(dims, dtype)])
    layer_norm(program, 0, 1, 2, 3)
    lines = calls.implementations(program.words())
    assert lines[0] == "step 0 REDUCE: 6 steps row by row"
    assert lines[5] == "step 5 ELEMENTWISE: with step 0"
    (got,) = run(program)
    y = x.astype(np.float64)
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6) * scale * 10 + shift * 20
    if dtype == np.float32:
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-3)
    else:
        assert np.abs(got.astype(int) - programs.encoded(y, dtype)).max() <= 1


@pytest.mark.parametrize("dims", [(3, 5, 128), (2, 7, 49, 49), (1, 3000), (2000, 2), (12, 30, 700)])
def test_softmax_runs_row_by_row(dims):
    rng = np.random.default_rng(17)
    x, row = rng.normal(0, 9, dims).astype(np.float32), (*dims[:-1], 1)
    x[rng.random(dims) < 0.1] = -INF
    program = Program(x, results=[np.zeros(dims, np.float32)])
    most, total = (program.in_arena(np.float32, row) for _ in range(2))
    program.reduce("max", 0, most)
    load = [("load", 0, 0), ("load", 1, 1)]
    program.elementwise(dims, [0, most], [1], [*load, ("sub", 0, 0, 1), ("exp", 0, 0), ("store", 0, 0)])
    program.reduce("sum", 1, total)
    program.elementwise(dims, [1, total], [1], [*load, ("div", 0, 0, 1), ("store", 0, 0)])
    assert "4 steps row by row" in calls.implementations(program.words())[0]
    (got,) = run(program)
    with np.errstate(invalid="ignore"):  # rows of minus infinity alone
        e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(got, e / e.sum(-1, keepdims=True), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("seed", range(8))
def test_chains(seed):
    """Random chains of steps whose tensors lie over each other: to the last bit what NumPy does step by step."""
    for i in range(25):
        program = Chain(np.random.default_rng([seed, i])).program
        for got, expected in zip(run(program), interpreted(program), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_rows_that_others_read_later():
    """What a group writes and a later step reads, or a step reads in other rows, stays in memory that all see."""
    rng = np.random.default_rng(18)
    x = rng.integers(-9, 9, (64, 64)).astype(np.float32)
    program = Program(x, results=[np.zeros((64, 64), np.float32)])
    most, y = program.in_arena(np.float32, (64, 1)), program.in_arena(np.float32, (64, 64))
    across = program.tensor(np.float32, programs.ARENA, (1, 64), 0)  # the same numbers as a row
    turned = program.tensor(np.float32, programs.ARENA, (64, 64), 256, (1, 64))
    code = [("load", 0, 0), ("load", 1, 1), ("add", 0, 0, 1), ("store", 0, 0)]
    program.reduce("max", 0, most)
    program.elementwise((64, 64), [0, most], [y], code)
    program.elementwise((64, 64), [y, across], [y], code)
    program.elementwise((64, 64), [turned, 0], [1], code)
    lines = calls.implementations(program.words())
    assert "2 steps row by row" in lines[0]
    assert "row by row" not in lines[2]
    np.testing.assert_array_equal(run(program)[0], interpreted(program)[0])
