"""Elementwise steps of the native extension against NumPy: every instruction, and how tensors come and go."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxq8.native import library
from tests import native_programs as programs
from tests.native_programs import Program, codes, run

pytestmark = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
INF = math.inf

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


def test_quotients_by_one_number_are_exact():
    rng = np.random.default_rng(19)
    exponents = rng.uniform(-60, 60, 4000)
    x = np.concatenate([np.exp2(exponents) * rng.choice([-1, 1], 4000), SPECIAL]).astype(np.float32)
    for divisor in (3.0, -0.1, 1.0, 7e-5, 1e30, 254.99, 1e-39, 3e38, 0.0, INF, math.nan, *rng.normal(size=9)):
        y = np.array([divisor], np.float32)
        program = Program(x, y, results=[np.zeros_like(x)])
        code = [("load", 0, 0), ("load", 1, 1), ("div", 0, 0, 1), ("store", 0, 0)]
        program.elementwise(x.shape, [0, 1], [2], code)
        (got,) = run(program)
        with np.errstate(all="ignore"):
            expected = x / (np.float32(0) if abs(divisor) < 1e-37 else y)
        there = ~(np.abs(expected) < 1.2e-38)
        np.testing.assert_array_equal(got[there], expected[there])
        assert (np.abs(got[~there]) < 1.2e-38).all()


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
