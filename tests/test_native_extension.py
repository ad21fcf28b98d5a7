"""The native extension against NumPy: every step of region programs, and what is said of damaged ones."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from jaxq8.errors import NativeError
from jaxq8.native import calls, library
from tests import native_programs as programs
from tests.native_programs import Program

pytestmark = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
INF = math.inf


def run(program, args=None):
    """The results of a program in jax.jit."""
    words = program.words()
    shapes = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in program.results]
    out = jax.jit(lambda *a: calls.call(words, a, shapes))(*(program.args if args is None else args))
    return [np.asarray(o) for o in out]


def codes(rng, shape, dtype):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


# name: (image, kernel (*k, c_in / groups, c_out), strides, dilation, low, high, groups)
CONVOLUTIONS = {
    "1x1": ((1, 14, 14, 64), (1, 1, 64, 96), (1, 1), (1, 1), (0, 0), (0, 0), 1),
    "1x1 strided": ((2, 9, 9, 32), (1, 1, 32, 17), (2, 2), (1, 1), (0, 0), (0, 0), 1),
    "1x1 of one pixel": ((3, 1, 1, 40), (1, 1, 40, 10), (1, 1), (1, 1), (0, 0), (0, 0), 1),
    "3x3": ((1, 14, 14, 32), (3, 3, 32, 48), (1, 1), (1, 1), (1, 1), (1, 1), 1),
    "3x3 first": ((1, 33, 33, 3), (3, 3, 3, 32), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    "5x5 odd": ((1, 11, 13, 5), (5, 5, 5, 17), (1, 1), (1, 1), (2, 2), (2, 2), 1),
    "asymmetric": ((2, 8, 9, 16), (3, 2, 16, 24), (2, 1), (1, 1), (0, 1), (2, 0), 1),
    "dilated": ((1, 12, 12, 16), (3, 3, 16, 16), (1, 1), (2, 3), (2, 3), (2, 3), 1),
    "depthwise": ((1, 15, 15, 48), (3, 3, 1, 48), (1, 1), (1, 1), (1, 1), (1, 1), 48),
    "depthwise odd": ((2, 10, 10, 17), (5, 5, 1, 17), (2, 2), (1, 1), (2, 2), (2, 2), 17),
    "depthwise twice": ((1, 9, 9, 24), (3, 3, 1, 48), (1, 1), (1, 1), (1, 1), (1, 1), 24),
    "grouped": ((1, 9, 9, 32), (3, 3, 8, 32), (1, 1), (1, 1), (1, 1), (1, 1), 4),
    "grouped odd": ((1, 9, 9, 15), (3, 3, 5, 9), (1, 1), (1, 1), (1, 1), (1, 1), 3),
    "1 axis": ((2, 37, 24), (5, 24, 33), (2,), (1,), (3,), (1,), 1),
    "3 axes": ((1, 5, 6, 7, 8), (3, 3, 3, 8, 20), (1, 2, 1), (1, 1, 1), (1, 1, 0), (1, 1, 2), 1),
    "3 axes depthwise": ((1, 5, 6, 7, 8), (3, 3, 3, 1, 8), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), 8),
}


class Convolution:
    """A random case of one of the convolutions, with its exact sums."""

    def __init__(self, name, seed=0, src=np.uint8):
        self.rng = rng = np.random.default_rng(seed)
        image, kernel, strides, dilation, low, high, groups = CONVOLUTIONS[name]
        self.x, self.w = codes(rng, image, src), codes(rng, kernel, np.int8)
        self.kernel = kernel[:-2]
        self.geometry = {"strides": strides, "dilation": dilation, "low": low, "high": high, "groups": groups}
        self.acc = programs.accumulator(self.x, self.w, **self.geometry)
        self.c_out = kernel[-1]
        largest = np.abs(self.acc).max(axis=tuple(range(self.acc.ndim - 1)))
        self.mult = (160 / np.maximum(1, largest)).astype(np.float32)
        self.offset = (rng.normal(size=self.c_out) * 30 + 60).astype(np.float32)

    def weights(self, kind):
        if kind == 0:
            return self.w, None
        problem = programs.problem_of(self.x, self.kernel, self.c_out, **self.geometry)
        return programs.packed(self.w, calls.layout(problem), self.geometry["groups"]), problem

    def check(
        self, dtype=np.uint8, kind=2, residual=None, in_place=False, rescale=None, lo=-INF, hi=INF, strided=False
    ):  # fmt: skip
        weights, problem = self.weights(kind)
        dims = self.acc.shape
        wide = np.zeros((*dims[:-1], self.c_out + 24 * strided), dtype)
        args, absent = [self.x, weights, self.mult, self.offset], -1
        if residual is not None:
            residual = self.rng.integers(0, 100, dims).astype(residual)
            args.append(residual)
        if rescale is not None:
            args.append(np.array([rescale], np.float32))
        program = Program(*args, results=[wide])
        x, w, mult, offset, *rest, dst = program.ids
        if strided:
            dst = program.tensor(dtype, len(args), dims, 8 * wide.itemsize, programs.dense(wide.shape))
            program.step(programs.FILL, program.ids[-1], -1, 5)
        added = rest[0] if residual is not None else absent
        if in_place:
            program.step(programs.COPY, added, dst)
            added = dst
        mult, offset = (absent, absent) if dtype == np.int32 else (mult, offset)
        factor = rest[-1] if rescale is not None else absent
        program.contract(
            x,
            w,
            dst,
            mult,
            offset,
            added,
            factor,
            lo,
            hi,
            kind,
            self.kernel,
            problem=problem,
            **self.geometry,
        )
        (got,) = run(program)
        if strided:
            assert (got[..., :8] == 5).all()
            assert (got[..., 8 + self.c_out :] == 5).all()
            got = got[..., 8 : 8 + self.c_out]
        if dtype == np.int32:
            np.testing.assert_array_equal(got, self.acc)
            return program
        t = programs.epilogue(self.acc, self.mult, self.offset, residual, rescale, lo, hi)
        if dtype == np.float32:
            np.testing.assert_allclose(got, t, rtol=1e-5, atol=1e-4)
        else:
            assert programs.differing(got, t) == 0
        return program


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    case = Convolution(name)
    for line in calls.implementations(case.check().words()):
        assert "ref" not in line
    case.check(kind=0)
    case.check(np.int32)
    Convolution(name, 1, np.int8).check()


@pytest.mark.parametrize("name", ["1x1", "3x3", "depthwise", "grouped odd", "1 axis"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
def test_epilogues(name, dtype):
    case = Convolution(name, 2)
    case.check(dtype, residual=dtype)
    case.check(dtype, residual=dtype, in_place=True, lo=0.0)
    case.check(dtype, residual=np.float32, rescale=0.73)
    case.check(dtype, residual=np.uint8, rescale=1.9, lo=3.0, hi=77.0)
    case.check(dtype, residual=dtype, strided=True, in_place=True, rescale=0.5)
    case.check(dtype, lo=-5.0, hi=60.0, kind=0, strided=True)


def test_no_zero_times_infinity():
    """A clip on one side only meets numbers of the other side."""
    case = Convolution("1x1")
    case.check(np.float32, hi=10.0)
    case.check(np.float32, lo=10.0)


@pytest.mark.parametrize("m", [1, 2, 7, 64])
def test_matrix_products(m):
    rng = np.random.default_rng(m)
    for k, n in ((64, 48), (33, 17), (300, 5)):
        for src, dst in ((np.uint8, np.uint8), (np.int8, np.int32), (np.uint8, np.float32)):
            x, w = codes(rng, (m, k), src), codes(rng, (k, n), np.int8)
            acc = programs.accumulator(x, w)
            mult = (150 / np.maximum(1, np.abs(acc).max(0))).astype(np.float32)
            offset = np.linspace(0, 90, n).astype(np.float32)
            problem = [0, m, k, n, 1]
            packed = programs.packed(w, calls.layout(problem), matrix=True)
            for kind, weights in ((0, w), (1, np.ascontiguousarray(w.T)), (2, packed)):
                program = Program(x, weights, mult, offset, results=[np.zeros((m, n), dst)])
                a, b, c, d, out = program.ids
                c, d = (-1, -1) if dst == np.int32 else (c, d)
                program.contract(a, b, out, c, d, kind=kind, problem=problem if kind == 2 else None)
                (got,) = run(program)
                t = programs.epilogue(acc, mult, offset)
                if dst == np.int32:
                    np.testing.assert_array_equal(got, acc)
                elif dst == np.float32:
                    np.testing.assert_allclose(got, t, rtol=1e-5, atol=1e-4)
                else:
                    assert programs.differing(got, t) == 0


def test_strided_source():
    """A slice of channels of a larger image is read where it lies."""
    rng = np.random.default_rng(3)
    image, w = codes(rng, (2, 7, 7, 64), np.uint8), codes(rng, (3, 3, 32, 24), np.int8)
    program = Program(image, w, results=[np.zeros((2, 7, 7, 24), np.int32)])
    src = program.tensor(np.uint8, 0, (2, 7, 7, 32), 16, programs.dense(image.shape))
    geometry = {"strides": (1, 1), "dilation": (1, 1), "low": (1, 1), "high": (1, 1)}
    program.contract(src, program.ids[1], program.ids[2], kernel=(3, 3), **geometry)
    (got,) = run(program)
    np.testing.assert_array_equal(got, programs.accumulator(image[..., 16:48], w, **geometry))


SPECIAL = [
    0.0,
    -0.0,
    INF,
    -INF,
    math.nan,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    2.0**31,
    -(2.0**31),
    2.0**31 - 128,
    1e-30,
    3e38,
]


def unary(name, x):
    """An instruction of one float32 operand over a vector."""
    program = Program(x, results=[np.zeros(x.shape, np.int32 if name == "to_int" else np.float32)])
    store = "store_int" if name == "to_int" else "store"
    program.elementwise(x.shape, [0], [1], [("load", 0, 0), (name, 1, 0), (store, 0, 1)])
    return run(program)[0]


def floats():
    """Numbers over the whole range of floats."""
    exponents = np.linspace(-126, 127.9, 4001)
    positive = np.concatenate([np.exp2(exponents), np.linspace(0.001, 110, 20001)])
    return np.concatenate([SPECIAL, positive, -positive]).astype(np.float32)


@pytest.mark.parametrize(
    "name", ["neg", "abs", "exp", "logistic", "tanh", "erf", "sqrt", "rsqrt", "log", "log1p", "expm1"]
)
def test_functions(name):
    """Over the whole range of floats, each function is the real one but for a few units of the last place."""
    x = floats()
    got = unary(name, x)
    with np.errstate(all="ignore"):
        expected = programs.MEANINGS[name](x.astype(np.float64)).astype(np.float32)
    # What lies below the smallest normal float may be 0, as it is in XLA.
    near = 3e-38 if name in ("sqrt", "rsqrt", "log", "log1p", "expm1") else 1e-7
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=near)


@pytest.mark.parametrize("name", ["round", "floor", "ceil", "sign", "is_finite", "not", "to_int"])
def test_exact_functions(name):
    x = np.concatenate([floats(), np.arange(-40, 40, dtype=np.float32) / 4])
    with np.errstate(all="ignore"):
        expected = programs.MEANINGS[name](x)
    got = unary(name, x)
    np.testing.assert_array_equal(got, expected)
    if name in ("round", "floor", "ceil", "sign"):
        there = ~np.isnan(x)
        np.testing.assert_array_equal(np.signbit(got)[there], np.signbit(expected)[there])


@pytest.mark.parametrize(
    "name", ["add", "max", "min", "nan_if", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "pow"]
)
def test_pairs_of_floats(name):
    some = np.array(
        [*SPECIAL, 3.0, -3.0, -2.0, 0.1, -0.1, 7.3, -1e-3, 16777215.0, 33.7, -40.0, 1.0001], np.float32
    )
    x, y = (np.ascontiguousarray(a) for a in np.meshgrid(some, some))
    if name == "pow":
        rng = np.random.default_rng(8)
        more = np.exp(rng.normal(0, 20, (60, x.shape[1]))).astype(np.float32)
        x, y = np.concatenate([x, more]), np.concatenate([y, rng.normal(0, 3, more.shape).astype(np.float32)])
    program = Program(x, y, results=[np.zeros(x.shape, np.float32)])
    program.elementwise(
        x.shape, [0, 1], [2], [("load", 0, 0), ("load", 1, 1), (name, 2, 0, 1), ("store", 0, 2)]
    )
    (got,) = run(program)
    with np.errstate(all="ignore"):
        expected = programs.MEANINGS[name](x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=2e-38)
    if name == "pow":
        there = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got)[there], np.signbit(expected)[there])


@pytest.mark.parametrize("name", ["int_add", "int_sub", "int_mul", "int_max", "int_min"])
def test_pairs_of_integers(name):
    rng = np.random.default_rng(9)
    x, y = (rng.integers(-(2**31), 2**31, (7, 331)).astype(np.int32) for _ in range(2))
    program = Program(x, y, results=[np.zeros(x.shape, np.int32)])
    load = [("load_int", 0, 0), ("load_int", 1, 1)]
    program.elementwise(x.shape, [0, 1], [2], [*load, (name, 2, 0, 1), ("store_int", 0, 2)])
    np.testing.assert_array_equal(run(program)[0], programs.MEANINGS[name](x, y))


def test_integers_and_choices():
    """Registers of integers: loads of every dtype, constants, choices, and outputs of two dtypes at once."""
    rng = np.random.default_rng(10)
    dims = (5, 1300)
    a, b = codes(rng, dims, np.uint8), codes(rng, (5, 1), np.int8)
    c = rng.integers(-(2**31), 2**31, (1, 1300)).astype(np.int32)
    results = [np.zeros(dims, np.int32), np.zeros(dims, np.float32), np.zeros(dims, np.int8)]
    program = Program(a, b, c, results=results)
    code = [
        ("load_int", 0, 0), ("load_int", 1, 1), ("load_int", 2, 2), ("const_int", 3, -7), ("int_mul", 4, 0, 3),
        ("int_add", 4, 4, 2), ("to_float", 5, 4), ("load", 6, 0), ("const", 7, programs.bits(100)), ("lt", 8, 6, 7),
        ("select", 9, 8, 4, 1), ("select", 10, 8, 5, 6), ("store_int", 0, 9), ("store", 1, 10), ("encode", 2, 5),
    ]  # fmt: skip
    program.elementwise(dims, program.ids[:3], program.ids[3:], code)
    whole, real, code = run(program)
    sums = (a.astype(np.int64) * -7 + c).astype(np.int32)
    np.testing.assert_array_equal(whole, np.where(a < 100, sums, b))
    np.testing.assert_array_equal(real, np.where(a < 100, sums.astype(np.float32), a))
    np.testing.assert_array_equal(code, programs.encoded(sums.astype(np.float64), np.int8))


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


def test_arithmetic_and_broadcasting():
    rng = np.random.default_rng(4)
    dims = (3, 5, 70)
    a, b = codes(rng, dims, np.uint8), codes(rng, (3, 1, 70), np.int8)
    c, d = (
        rng.integers(-1000, 1000, (1, 5, 1)).astype(np.int32),
        rng.normal(size=(1, 1, 70)).astype(np.float32),
    )
    results = [np.zeros(dims, np.uint8), np.zeros(dims, np.int8), np.zeros(dims, np.float32)]
    program = Program(a, b, c, d, results=results)
    code = [
        ("load", 0, 0), ("load", 1, 1), ("load", 2, 2), ("load", 3, 3), ("const", 15, programs.bits(0.5)),
        ("add", 4, 0, 1), ("sub", 5, 4, 2), ("mul", 6, 5, 15), ("div", 7, 6, 15), ("max", 8, 7, 3), ("min", 9, 8, 0),
        ("add", 10, 9, 3), ("encode", 0, 10), ("encode", 1, 10), ("store", 2, 10),
    ]  # fmt: skip
    program.elementwise(dims, program.ids[:4], program.ids[4:], code)
    unsigned, signed, real = run(program)
    half = (a.astype(np.float32) + b - c) * np.float32(0.5)
    expected = np.minimum(np.maximum(half / np.float32(0.5), d), a) + d
    np.testing.assert_allclose(real, expected, rtol=1e-6)
    assert programs.differing(unsigned, expected) == 0
    assert programs.differing(signed, expected) == 0


def test_encoding_rounds_half_to_even_and_saturates():
    x = np.array([-0.5, 0.5, 1.5, 2.5, 254.5, 255.5, 1e30, -1e30, np.inf, -np.inf, -127.5, 126.5], np.float32)
    program = Program(x, results=[np.zeros(x.shape, np.uint8), np.zeros(x.shape, np.int8)])
    program.elementwise(x.shape, [0], [1, 2], [("load", 0, 0), ("encode", 0, 0), ("encode", 1, 0)])
    unsigned, signed = run(program)
    np.testing.assert_array_equal(unsigned, programs.encoded(x, np.uint8))
    np.testing.assert_array_equal(signed, programs.encoded(x, np.int8))
    (first, second) = run(program, [np.full_like(x, np.nan)])  # any code, but no crash
    assert first.shape == second.shape == x.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("image", "window", "strides", "dilation", "low", "high"),
    [
        ((1, 28, 28, 64), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
        ((2, 9, 8, 200), (3, 2), (1, 2), (2, 1), (0, 1), (3, 0)),
        ((1, 7, 7, 1280), (7, 7), (1, 1), (1, 1), (0, 0), (0, 0)),
        ((2, 11, 3), (4,), (3,), (1,), (5,), (6,)),
        ((1, 4, 5, 6, 17), (2, 3, 2), (1, 2, 3), (1, 1, 2), (1, 0, 1), (0, 2, 1)),
    ],
)
def test_pools(image, window, strides, dilation, low, high, dtype):
    x = codes(np.random.default_rng(5), image, dtype)
    ns, lowest, border = len(window), int(np.iinfo(dtype).min) + 3, np.array(7, np.int32)
    geometry = [ns, *window, *strides, *dilation, *low, *high]
    parts = [list(programs.patches(x, window, strides, dilation, low, high, code)) for code in (lowest, 7, 0)]
    largest = np.max([part for _, part in parts[0]], axis=0)
    sums = [np.sum([part.astype(np.int64) for _, part in p], axis=0) for p in parts[1:]]
    results = [np.zeros(largest.shape, dtype), *(np.zeros(largest.shape, np.int32),) * 2]
    program = Program(x, border, results=results)
    program.step(programs.MAXPOOL, 0, 2, *geometry, lowest)
    program.step(programs.SUMPOOL, 0, 3, *geometry, 1)
    program.step(programs.SUMPOOL, 0, 4, *geometry, -1)
    for got, expected in zip(run(program), [largest, *sums], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_copies_and_fills_of_views():
    rng = np.random.default_rng(6)
    x, code = codes(rng, (4, 6, 10), np.uint8), np.array([9], np.int8)
    program = Program(x, code, results=[np.zeros((4, 8, 30), np.uint8), np.zeros((6, 4), np.float32)])
    whole = program.ids[2]
    inside = program.tensor(np.uint8, 2, x.shape, 30 + 5, (240, 30, 1))
    turned = program.tensor(np.uint8, 0, (10, 4, 6), 0, (1, 60, 10))
    back = program.in_arena(np.uint8, (10, 4, 6))
    other = program.tensor(np.uint8, 2, (10, 4, 6), 30 + 19, (1, 240, 30))
    program.step(programs.FILL, whole, program.ids[1], 0)
    program.step(programs.COPY, program.ids[0], inside)
    program.step(programs.COPY, turned, back)
    program.step(programs.COPY, back, other)
    program.step(programs.FILL, program.ids[3], -1, -4)
    filled, numbers = run(program)
    expected = np.full((4, 8, 30), 9, np.uint8)
    expected[:, 1:7, 5:15] = expected[:, 1:7, 19:29] = x
    np.testing.assert_array_equal(filled, expected)
    assert (numbers == -4).all()


def small():
    """A program with every kind of step, for damage."""
    rng = np.random.default_rng(7)
    x, w = codes(rng, (1, 6, 6, 8), np.uint8), codes(rng, (3, 3, 8, 16), np.int8)
    scale, border = np.full(16, 1e-3, np.float32), np.array(2, np.int32)
    problem = programs.problem_of(x, (3, 3), 16, (1, 1), (1, 1), (1, 1), (1, 1))
    w = programs.packed(w, calls.layout(problem))
    program = Program(x, w, scale, border, results=[np.zeros((1, 3, 3, 16), np.uint8)])
    y, z = (program.in_arena(np.uint8, (1, 6, 6, 16)) for _ in range(2))
    sums = program.in_arena(np.int32, (1, 3, 3, 16))
    geometry = {"strides": (1, 1), "dilation": (1, 1), "low": (1, 1), "high": (1, 1)}
    program.step(programs.FILL, y, 3, 0)
    program.contract(0, 1, y, 2, 2, y, kind=2, kernel=(3, 3), problem=problem, **geometry)
    program.step(programs.COPY, y, z)
    program.step(programs.SUMPOOL, z, sums, 2, 2, 2, 2, 2, 1, 1, 0, 0, 0, 0, 3)
    program.step(programs.MAXPOOL, z, 4, 2, 2, 2, 2, 2, 1, 1, 0, 0, 0, 0, 0)
    code = [
        ("load", 0, 0),
        ("load", 1, 1),
        ("const", 2, programs.bits(0.1)),
        ("mul", 0, 0, 2),
        ("max", 0, 0, 1),
    ]
    program.elementwise((1, 3, 3, 16), [sums, 4], [4], [*code, ("encode", 0, 0)])
    most, products = program.in_arena(np.int32, (1, 1, 1, 16)), program.in_arena(np.int32, (1, 3, 3, 16))
    program.reduce("max", sums, most)
    program.step(
        programs.PRODUCT,
        0,
        program.tensor(np.int8, 1, (1, 6, 8, 6), 0),
        program.in_arena(np.int32, (1, 6, 6, 6)),
    )
    code = [("load_int", 0, 0), ("load_int", 1, 1), ("int_add", 0, 0, 1), ("to_float", 2, 0), ("log1p", 2, 2)]
    code = [
        *code,
        ("const", 3, programs.bits(2)),
        ("lt", 4, 2, 3),
        ("select", 5, 4, 0, 1),
        ("store_int", 0, 5),
    ]
    program.elementwise((1, 3, 3, 16), [sums, most], [products], code)
    return program


def product(program, a, b, dst, dtype=np.int8):
    ids = [program.in_arena(t, s) for t, s in ((np.uint8, a), (dtype, b), (np.int32, dst))]
    program.step(programs.PRODUCT, *ids)


def code(program, *instructions):
    program.elementwise((1, 3, 3, 16), [], [4], instructions)


def test_truncated_programs_are_errors():
    words = small().words()
    assert calls.implementations(words)
    for n in range(len(words)):
        with pytest.raises(NativeError, match="region program"):
            calls.implementations(words[:n])
    with pytest.raises(NativeError, match="words too many"):
        calls.implementations(np.append(words, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.step(programs.COPY, 4, 0), "step 9: it writes to an argument"),
        (lambda p: p.step(programs.COPY, 0, 4), "differ in dtype or dimensions"),
        (lambda p: p.step(programs.FILL, 4, -1, 256), "does not fit"),
        (lambda p: p.tensor(np.uint8, 0, (9,), 300), None),
        (
            lambda p: p.tensor(np.int32, -1, (2,), 6),
            "tensor 12: its offset is not a multiple of its item size",
        ),
        (lambda p: p.tensor(np.uint8, -1, (65,), p.arena - 64), "tensor 12: it reaches beyond the arena"),
        (lambda p: p.tensor(np.uint8, -1, (2**31, 2**31), 0, (0, 0)), "tensor 12: it has too many elements"),
        (lambda p: p.tensor(np.int32, 0, (2,), 0), "dtype differs"),
        (lambda p: p.step(9), "opcode is 9"),
        (lambda p: p.step(programs.REDUCE, 4, 5, 4), "kind is 4"),
        (lambda p: p.reduce("sum", 4, 5), "neither size 1 nor src's size"),
        (lambda p: p.reduce("sum", 4, p.in_arena(np.uint8, (1, 3, 1, 16))), "sums of integers are not int32"),
        (lambda p: p.reduce("max", 4, p.in_arena(np.int32, (1, 3, 1, 16))), "src and dst differ in dtype"),
        (lambda p: p.reduce("max", 4, p.in_arena(np.uint8, (3, 16))), "src and dst differ in rank"),
        (lambda p: p.reduce("max", 5, p.tensor(np.uint8, -1, (1, 6, 1, 16), 64)), "dst lies over src"),
        (lambda p: p.step(programs.PRODUCT, 0, 0, 4), "do not fit"),
        (lambda p: product(p, (3,), (3,), (3,)), "the same rank of 2 or more"),
        (lambda p: product(p, (2, 3), (3, 4), (2, 4), np.uint8), "signed codes and int32"),
        (lambda p: product(p, (2, 2, 3), (3, 3, 4), (3, 2, 4)), "the first axes"),
        (lambda p: product(p, (2, 0), (0, 4), (2, 4)), "is empty"),
        (lambda p: code(p, ("add", 0, 0, 1)), "instruction 0 reads a register that nothing has written"),
        (
            lambda p: code(p, ("const", 0, 0), ("int_add", 1, 0, 0)),
            "instruction 1 reads a register of the other type",
        ),
        (lambda p: code(p, ("const", 0, 0), ("const_int", 1, 0), ("select", 2, 0, 0, 1)), "of two types"),
        (lambda p: code(p, ("const_int", 0, 2**31)), "constant is 2147483648"),
        (
            lambda p: code(p, ("const_int", 0, 3), ("store_int", 0, 0)),
            "STORE_INT to an output that is not int32",
        ),
        (lambda p: code(p, ("const", 0, 3), ("store", 0, 0)), "STORE to an output that is not float32"),
        (
            lambda p: p.elementwise((16,), [2], [p.in_arena(np.int32, (16,))], [("load_int", 0, 0)]),
            "is float32",
        ),
    ],
)
def test_what_is_wrong_is_said(change, message):
    program = small()
    change(program)
    if message is None:  # only the buffer itself tells that the view reaches beyond it
        with pytest.raises(Exception, match="argument 0 has 288 bytes, the program needs 309"):
            run(program)
        return
    with pytest.raises(NativeError, match=message):
        calls.implementations(program.words())
    with pytest.raises(Exception, match="INVALID_ARGUMENT: region program"):
        run(program)


def test_other_buffers_than_the_program_s():
    program = small()
    args = [*program.args]
    with pytest.raises(Exception, match="called with 3 arguments and 1 results, it has 4 and 1"):
        run(program, args[:3])
    with pytest.raises(Exception, match="argument 0 has another dtype"):
        run(program, [args[0].astype(np.int8), *args[1:]])
    with pytest.raises(Exception, match="argument 2 has 60 bytes, the program needs 64"):
        run(program, [*args[:2], args[2][:15], args[3]])


def test_vmap_runs_each_example():
    x = np.arange(24, dtype=np.uint8).reshape(3, 8)
    program = Program(x[0], results=[np.zeros(8, np.uint8)])
    program.step(programs.COPY, 0, 1)
    words, shape = program.words(), jax.ShapeDtypeStruct((8,), np.uint8)
    np.testing.assert_array_equal(jax.vmap(lambda a: calls.call(words, [a], [shape])[0])(x), x)
