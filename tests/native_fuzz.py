"""Random and damaged region programs: `python -m tests.native_fuzz SECONDS` runs them until the time is over.

`make native-asan` does that with an extension that AddressSanitizer and UBSan watch.
"""

import os
import sys
import threading
import time

import jax
import numpy as np

from jaxq8.errors import NativeError
from jaxq8.native import calls, library
from tests import native_programs as programs
from tests.native_chains import Chain
from tests.native_meaning import interpreted
from tests.native_programs import Program


def run(words, args, results, aliases=()):
    shapes = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results]
    out = jax.jit(lambda *a: calls.call(words, a, shapes, dict(aliases)))(*args)
    return [np.asarray(o) for o in out]


def steps(rng):
    """A random chain of elementwise steps, reductions, copies, updates and taken parts."""
    program = Chain(rng).program
    expected = interpreted(program)

    def check(results):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_array_equal(got, want)

    return program, check


def product(rng):
    """A random product of data, of tensors whose axes lie in any order."""
    lead = [int(n) for n in rng.integers(1, 4, int(rng.integers(0, 4)))]
    m, k, n = (int(rng.choice([1, 2, 7, 16, 33, 64])) for _ in range(3))
    left, right = ([d if rng.random() < 0.8 else 1 for d in lead] for _ in range(2))
    real = rng.random() < 0.5
    a = rng.integers(0, 50, (*left, m, k)).astype("f4" if real else rng.choice(["u1", "i1"]))
    b = rng.integers(-50, 50, (*right, k, n)).astype("f4" if real else "i1")
    expected = a.astype(np.float64) @ b.astype(np.float64)
    stored, views = [], []
    for x in (a, b, expected.astype("f4" if real else "i4")):
        order = rng.permutation(x.ndim) if rng.random() < 0.5 else np.arange(x.ndim)
        stored.append(np.ascontiguousarray(x.transpose(order)))
        view = stored[-1].transpose(np.argsort(order))
        views.append([x.dtype, len(views), x.shape, 0, [s // x.itemsize for s in view.strides]])
    program = Program(*stored[:2], results=[np.zeros_like(stored[2])])
    program.step(programs.PRODUCT, *(program.tensor(*view) for view in views))
    return program, lambda results: np.testing.assert_array_equal(results[0], stored[2])


def convolution(rng):
    """A random convolution, and a function that compares its result."""
    ns = int(rng.choice([1, 2, 2, 3]))
    groups = int(rng.choice([1, 1, 2, 3]))
    c_in, c_out = (groups * int(rng.choice([1, 3, 5, 8, 16, 17])) for _ in range(2))
    if rng.random() < 0.3:
        groups = c_in
        c_out = c_in * int(rng.integers(1, 3))
    x = rng.integers(0, 256, (int(rng.integers(1, 3)), *rng.integers(3, 12, ns), c_in)).astype(np.uint8)
    if rng.random() < 0.3:
        x = x.view(np.int8)
    kernel = [int(k) for k in rng.integers(1, 4, ns)]
    geometry = {
        "strides": [int(s) for s in rng.integers(1, 3, ns)],
        "dilation": [1] * ns,
        "low": [int(rng.integers(0, k)) for k in kernel],
        "high": [int(rng.integers(0, k)) for k in kernel],
        "groups": groups,
    }
    w = rng.integers(-128, 128, (*kernel, c_in // groups, c_out)).astype(np.int8)
    acc = programs.accumulator(x, w, **geometry)
    mult = np.full(c_out, 100 / max(1, np.abs(acc).max()), np.float32)
    offset = rng.normal(50, 20, c_out).astype(np.float32)
    problem = programs.problem_of(x, kernel, c_out, **geometry)
    kind = int(rng.choice([0, 2]))
    weights = programs.packed(w, calls.layout(problem), groups) if kind == 2 else w
    residual = rng.integers(0, 100, acc.shape).astype(rng.choice(["u1", "i1", "f4"]))
    pad = int(rng.choice([0, 0, 16]))
    wide = np.zeros((*acc.shape[:-1], c_out + pad), np.uint8)
    program = Program(x, weights, mult, offset, residual, results=[wide])
    dst = program.tensor(np.uint8, 5, acc.shape, pad // 2, programs.dense(wide.shape))
    lo, hi = (0.0, np.inf) if rng.random() < 0.5 else (2.0, 90.0)
    program.contract(
        0, 1, dst, 2, 3, 4, -1, lo, hi, kind, kernel, problem=problem if kind == 2 else None, **geometry
    )

    def check(results):
        got = results[0][..., pad // 2 : pad // 2 + c_out]
        assert programs.differing(got, programs.epilogue(acc, mult, offset, residual, None, lo, hi)) == 0

    return program, check


def loops(rng):
    """A random largest of windows, copied through a slice of the arena, then doubled with saturation."""
    channels = int(rng.choice([1, 3, 16, 64, 130]))
    x = rng.integers(0, 256, (int(rng.integers(1, 3)), *rng.integers(3, 20, 2), channels)).astype(np.uint8)
    window, strides = [int(k) for k in rng.integers(1, 5, 2)], [int(s) for s in rng.integers(1, 3, 2)]
    low, high = ([int(p) for p in rng.integers(0, 4, 2)] for _ in range(2))
    low[0] = max(low[0], window[0])  # there is a place in any case
    low[1] = max(low[1], window[1])
    largest = np.max([p for _, p in programs.patches(x, window, strides, [1, 1], low, high, 3)], axis=0)
    program = Program(x, results=[np.zeros(largest.shape, np.uint8)])
    wide = [*largest.shape[:-1], channels + 32]
    part = program.in_arena(np.uint8, largest.shape, programs.dense(wide))
    program.step(programs.MAXPOOL, 0, part, 2, *window, *strides, 1, 1, *low, *high, 3)
    program.elementwise(largest.shape, [part], [1], [("load", 0, 0), ("add", 1, 0, 0), ("encode", 0, 1)])

    def check(results):
        np.testing.assert_array_equal(results[0], np.minimum(2 * largest.astype(np.int64), 255))

    return program, check


def repeated(rng):
    """A random product that is repeated: its codes are handed on, beside sums that are made in every step."""
    n, k = int(rng.choice([1, 3, 8])), int(rng.choice([16, 33, 64]))
    length, reverse = int(rng.integers(1, 6)), bool(rng.integers(2))
    x = rng.integers(0, 256, (n, k)).astype(np.uint8)
    w = rng.integers(-20, 20, (k, k)).astype(np.int8)
    added = rng.integers(0, 100, (length, n, k)).astype(np.float32)
    mult, zero = np.full(k, 2.0**-8, np.float32), np.zeros(k, np.float32)
    body = Program(x, w, added[0], mult, zero, results=[np.zeros_like(x), np.zeros((n, 1), np.int32)])
    body.contract(0, 1, 5, mult=3, offset=4, residual=2)
    body.reduce("sum", 0, 6)
    program = Program(x, w, added, mult, zero, results=[np.zeros_like(x), np.zeros((length, n, 1), np.int32)])
    given = [(0, 0, 0), (1, 0, -1), (2, 1, -1), (3, 0, -1), (4, 0, -1)]
    program.loop(body, length, given, [(5, program.in_arena(np.uint8, x.shape)), (6, -1)], reverse)
    codes, sums = x, np.zeros((length, n, 1), np.int32)
    for entry in range(length)[:: -1 if reverse else 1]:
        sums[entry] = codes.sum(-1, dtype=np.int32, keepdims=True)
        real = (codes.astype(np.float64) @ w) / 256 + added[entry]  # exact, as the factor is a power of two
        codes = np.clip(np.rint(real), 0, 255).astype(np.uint8)

    def check(results):
        np.testing.assert_array_equal(results[0], codes)
        np.testing.assert_array_equal(results[1], sums)

    return program, check


def encoded(rng):
    """Random codes of numbers or sums: a product, a sum, a largest and a smallest number, each of them or not."""
    shape = [
        int(rng.integers(1, 5)),
        int(rng.integers(1, 40)),
        int(rng.choice([1, 5, 16, 32, 48, 64, 100, 384, 500, 1500])),
    ]
    dtype = rng.choice(["u1", "i1", "i4", "f4"])
    x = (rng.integers(-500, 500, shape) if dtype in ("i4", "f4") else rng.integers(0, 100, shape)).astype(
        dtype
    )
    vectors = [shape[-1] if rng.random() < 0.6 else 1 for _ in range(2)]
    factor, offset = (rng.standard_normal((1, 1, n)).astype(np.float32) for n in vectors)
    numbers = rng.integers(-40, 200, (2, 1, 1, 1)).astype(np.float32)
    numbers[rng.random(2) < 0.05] = np.nan
    if dtype == "f4":
        x[rng.random(shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf])
    out = np.zeros(shape, rng.choice(["u1", "i1"]))
    wide = [*shape[:-1], shape[-1] + int(rng.choice([0, 0, 16]))]
    program = Program(
        x,
        factor,
        offset,
        numbers[:1].reshape(1, 1, 1),
        numbers[1:].reshape(1, 1, 1),
        results=[np.zeros(wide, out.dtype)],
    )
    result = program.tensor(out.dtype, 5, shape, 0, programs.dense(wide))
    code = [("load", 0, 0)]
    for number, (name, there) in enumerate(
        zip(("mul", "add", "max", "min"), rng.random(4) < 0.75, strict=True), 1
    ):
        code += [("load", 1, number), (name, 0, 0, 1)] if there else []
    program.elementwise(shape, [0, 1, 2, 3, 4], [result], [*code, ("encode", 0, 0)])
    (expected,) = interpreted(program)

    def check(results):
        got, want = (a[..., : shape[-1]] for a in (results[0], expected))
        np.testing.assert_array_equal(got, want)

    return program, check


def kind(rng):
    """A kind of programs."""
    chosen = rng.choice(6, p=[0.25, 0.1, 0.3, 0.15, 0.1, 0.1])
    return [convolution, loops, steps, product, repeated, encoded][chosen]


def one(rng):
    program, check = kind(rng)(rng)
    # XLA need not know which results begin with arguments.
    aliases = program.aliases if rng.random() < 0.7 else ()
    check(run(program.words(), program.args, program.results, aliases))


def random_programs(n, seed):
    """n programs against NumPy."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        one(rng)
    print(f"random: {n}")


def damaged(rng, program):
    """A program with words changed, dropped or repeated: an error, or a result."""
    words = program.words()
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(words)))
        how = rng.integers(5)
        if how == 0:
            words[at] = rng.integers(-(2**63), 2**63 - 1)
        elif how == 1:
            words[at] = rng.choice([-1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 2**46, 2**62])
        elif how == 2:
            words[at] += rng.integers(-3, 4)
        elif how == 3:
            words = np.delete(words, at)
        else:
            words = np.insert(words, at, words[int(rng.integers(len(words)))])
    try:
        calls.implementations(words)
    except NativeError:
        return
    # XLA knows the error by its own class, and every kind of error is one here; what must not come is a crash.
    try:
        run(words, program.args, program.results)
    except jax.errors.JaxRuntimeError:
        return


def damage(n, seed):
    """n damaged programs."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        damaged(rng, kind(rng)(rng)[0])
    print(f"damaged: {n}")


def fork():
    """The same compiled call in a parent, in its child, and again in the parent."""
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(0, 256, (1, 32, 32, 64)).astype(np.uint8),
        rng.integers(-9, 9, (3, 3, 64, 64)).astype(np.int8),
    )
    geometry = {"strides": [1, 1], "dilation": [1, 1], "low": [1, 1], "high": [1, 1]}
    program = Program(x, w, results=[np.zeros((1, 32, 32, 64), np.int32)])
    program.contract(0, 1, 2, kernel=[3, 3], **geometry)
    words, shape = program.words(), jax.ShapeDtypeStruct((1, 32, 32, 64), np.int32)
    compiled = jax.jit(lambda *a: calls.call(words, a, [shape])[0])
    expected = np.asarray(compiled(x, w))
    child = os.fork()
    if child == 0:
        # The child's way into XLA may wait for threads that are not there, so it goes by the extension's own region.
        print("child", "equal" if np.array_equal(compiled(x, w), expected) else "different", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("parent", "equal" if np.array_equal(compiled(x, w), expected) else "different")


def main(seconds):
    """Threads with random programs, and one with damaged programs beside them."""
    assert library.status().available, library.status().reason  # compiled before the time begins
    end = time.monotonic() + seconds
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}", flush=True)
    counts, failures = [0] * 3, []

    def work(i):
        rng = np.random.default_rng([seed, i])
        try:
            while time.monotonic() < end and not failures:
                if i == 0:
                    damaged(rng, kind(rng)(rng)[0])
                else:
                    one(rng)
                counts[i] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    print(f"{counts[0]} damaged programs, {sum(counts[1:])} random ones")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
