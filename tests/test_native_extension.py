"""The native extension against NumPy: every step of region programs, and what is said of damaged ones."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from jaxq8.errors import NativeError
from jaxq8.native import calls, library
from tests import native_programs as programs
from tests.native_programs import Program, codes, run

pytestmark = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
INF = math.inf


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


def corner(program, dtype=np.uint8):
    return program.in_arena(dtype, (1, 1, 1, 1))


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
        (lambda p: p.step(11), "opcode is 11"),
        (lambda p: p.placed(programs.UPDATE, 0, 4, [-1] * 3), "not a start for each axis"),
        (lambda p: p.placed(programs.UPDATE, 0, 4, [-1] * 4), "the part is longer than the whole"),
        (lambda p: p.placed(programs.TAKE, 4, 0, [-1] * 4), "it writes to an argument"),
        (lambda p: p.placed(programs.UPDATE, 4, 4, [-1] * 4), "dst lies over src"),
        (lambda p: p.placed(programs.UPDATE, corner(p), 4, [2, -1, -1, -1]), "a start is not one int32"),
        (lambda p: p.placed(programs.UPDATE, corner(p), 4, [-2, -1, -1, -1]), "start is -2"),
        (lambda p: p.placed(programs.UPDATE, corner(p, np.int8), 4, [-1] * 4), "differ in dtype or rank"),
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


def test_aliases_are_checked():
    program = small()
    for aliases, message in (
        ([(0, 0)], "tensor 0: it lies in an argument that a result begins with"),
        ([(4, 0)], "an alias's argument is 4"),
        ([(0, 1)], "an alias's result is 1"),
        ([(0, 0), (1, 0)], "n_aliases is 2"),
    ):
        program.aliases = aliases
        with pytest.raises(NativeError, match=message):
            calls.implementations(program.words())
    twice = Program(
        *[np.zeros(4, np.uint8)] * 2, results=[np.zeros(4, np.uint8)] * 2, aliases=[(0, 0), (1, 1)]
    )
    assert calls.implementations(twice.words()) == []
    twice.aliases = [(0, 0), (0, 1)]
    with pytest.raises(NativeError, match="two aliases have the same argument or result"):
        calls.implementations(twice.words())
    unlike = Program(np.zeros(8, np.uint8), results=[np.zeros(8, np.int32)], aliases=[(0, 0)])
    with pytest.raises(Exception, match="argument 0 is unlike result 0, which begins with it"):
        calls.call(unlike.words(), unlike.args, [jax.ShapeDtypeStruct((8,), np.int32)])


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
