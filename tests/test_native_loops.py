"""Native regions with loops: scans whose steps run inside of one call, and scans whose bodies have regions of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.errors import TensorError
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.regions import program as rp
from jaxq8.regions.steps import NONE, Copy, Elementwise, Loop
from tests.test_native_regions import (
    NATIVE,
    Case,
    arguments,
    checked_steps,
    near_xlas_forms,
    needs_native,
    program_of,
)
from tests.test_native_transformers import both

WIDTH, STEPS, BATCH = 64, 5, 2


def gates(p, h):
    """The gates' kernels joined, as Flax's OptimizedLSTMCell does it."""
    return h @ jnp.concatenate([p[name] for name in ("i", "f", "g", "o")], -1)


def lstm(p, x):
    def step(state, entry):
        c, h = state
        i, f, g, o = jnp.split(gates(p["h"], h) + gates(p["x"], entry) + p["bias"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    zero = jnp.zeros((BATCH, WIDTH))
    (_, last), seen = jax.lax.scan(step, (zero, zero), x)
    return last @ p["out"], seen


def gru(p, x):
    """Three kernels, read one by one; from the last entry to the first; the position is carried, too."""

    def step(state, entry):
        h, position = state
        r = jax.nn.sigmoid(entry @ p["x"]["i"] + h @ p["h"]["i"])
        z = jax.nn.sigmoid(entry @ p["x"]["f"] + h @ p["h"]["f"])
        n = jnp.tanh(entry @ p["x"]["g"] + r * (h @ p["h"]["g"]))
        return ((1 - z) * n + z * h, position + 1), (h, position)

    start = (jnp.full((BATCH, WIDTH), 0.5), jnp.int32(3))
    (h, position), (seen, places) = jax.lax.scan(step, start, x, reverse=True)
    return h, position, seen, places


def refined(p, x):
    """A loop in a loop, and a result that is the same as what is carried."""

    def inner(h, _):
        return h + 0.3 * jnp.tanh(h @ p["h"]["i"]), None

    def step(h, entry):
        h, _ = jax.lax.scan(inner, h + entry @ p["x"]["f"], None, length=2)
        return h, h

    return jax.lax.scan(step, jnp.zeros((BATCH, WIDTH)), x)


def sorted_between(p, x):
    """A body that no region can hold as a whole, because it sorts."""

    def step(h, entry):
        h = jnp.tanh(jax.nn.relu(h @ p["h"]["i"]) @ p["h"]["f"] + entry)
        return jnp.sort(h, -1), h.sum(-1)

    return jax.lax.scan(step, jnp.zeros((BATCH, WIDTH)), x)


CELLS = {f.__name__: f for f in (lstm, gru, refined)}
SITES = {"lstm": 3, "gru": 6, "refined": 2}


def parameters():
    keys = iter(jax.random.split(jax.random.key(7), 32))

    def kernel(out=WIDTH):
        return jax.random.normal(next(keys), (WIDTH, out)) / 8

    parts = {part: {name: kernel() for name in "ifgo"} for part in ("x", "h")}
    return {**parts, "bias": kernel(4 * WIDTH)[0], "out": kernel()}


def entries(seed=0):
    return jax.random.normal(jax.random.key(seed), (STEPS, BATCH, WIDTH))


@functools.cache
def cell(f, dynamic, config=NATIVE):
    p, x = parameters(), entries()
    ranges = {}
    if not dynamic:
        ranges = q8.calibrate(f, p, [(entries(s),) for s in (0, 1)], config=config, progress=False)
    codes = q8.quantize_weights(f, p, x, config=config)
    return Case(f, p, x, ranges, codes, q8.pack(f, codes, x, config=config, ranges=ranges))


def flat(case):
    """The case with its results as one vector."""
    f = case.f
    return Case(
        lambda p, x: jnp.concatenate([jnp.ravel(a).astype(jnp.float32) for a in jax.tree.leaves(f(p, x))]),
        case.p, case.x, case.ranges, case.codes, case.packed,
    )  # fmt: skip


@needs_native
@pytest.mark.parametrize("dynamic", [False, True], ids=both)
@pytest.mark.parametrize("name", CELLS)
def test_a_scan_is_one_step_of_one_region(name, dynamic):
    c = cell(CELLS[name], dynamic)
    (region,) = q8.explain(c.f, c.packed, c.x, config=NATIVE, ranges=c.ranges).native
    assert region.contractions == SITES[name]
    collected = program_of(c)
    assert not any(unit.primitive.name == "scan" for unit in collected.units if hasattr(unit, "primitive"))
    kinds, _ = checked_steps(collected)
    assert kinds.count(Loop) == 1


@needs_native
@pytest.mark.parametrize("dynamic", [False, True], ids=both)
@pytest.mark.parametrize("name", CELLS)
def test_scans_compute_what_xlas_forms_do(name, dynamic):
    _, error, exact = near_xlas_forms(flat(cell(CELLS[name], dynamic)))
    assert 1e-6 < error < 0.1 * float(jnp.linalg.norm(exact))


@needs_native
def test_every_kernel_that_is_joined_is_packed_as_it_is():
    c = cell(lstm, True)
    packed = jax.tree.leaves(c.packed, is_leaf=lambda leaf: isinstance(leaf, PackedTensor))
    assert sum(isinstance(leaf, PackedTensor) for leaf in packed) == 9
    for name, leaf in c.packed["h"].items():
        np.testing.assert_array_equal(leaf.unpack().values, c.codes["h"][name].values)


@needs_native
def test_kernels_whose_bytes_cannot_be_joined_are_not_packed():
    def f(p, x):
        return jax.nn.relu(x @ jnp.concatenate([p["a"], p["b"]], -1)) @ p["c"]

    p = {"a": jnp.ones((64, 40)), "b": jnp.ones((64, 24)), "c": jnp.ones((64, 64))}
    x = jnp.ones((2, 64))
    packed = q8.pack(f, q8.quantize_weights(f, p, x, config=NATIVE), x, config=NATIVE)
    assert [type(packed[name]).__name__ for name in "abc"] == ["QTensor", "QTensor", "PackedTensor"]
    np.testing.assert_allclose(jax.jit(q8.quantize(f, NATIVE))(packed, x), f(p, x), rtol=1e-2)


@needs_native
@pytest.mark.parametrize("dynamic", [False, True], ids=both)
def test_a_body_that_sorts_has_regions_of_its_own_with_packed_weights(dynamic):
    c = cell(sorted_between, dynamic)
    assert isinstance(c.packed["h"]["i"], PackedTensor)
    (region,) = q8.explain(c.f, c.packed, c.x, config=NATIVE, ranges=c.ranges).native
    assert region.contractions == 2
    near_xlas_forms(flat(c))
    text = str(jax.make_jaxpr(c.quantized())(c.packed, c.x))
    assert "custom_vmap_call" in text.partition("scan[")[2]  # the call is in the body
    assert "i8[64,64]" not in text  # and nothing unpacks a weight


@needs_native
def test_nan_in_one_entry_is_nan_from_there_on():
    c = cell(lstm, False)
    x = c.x.at[2, 1, 5].set(jnp.nan)
    _, own = jax.jit(c.quantized())(c.packed, x)
    _, other = jax.jit(c.quantized("xla"))(c.codes, x)
    np.testing.assert_array_equal(jnp.isnan(own), jnp.isnan(other))
    assert not bool(jnp.isnan(own[:2]).any())
    assert bool(jnp.isnan(own[2:, 1]).all())


@needs_native
def test_vmap_and_derivatives():
    c = cell(gru, True)
    x = jnp.stack([entries(s) for s in range(3)])
    mapped = jax.jit(jax.vmap(c.quantized(), (None, 0)))(c.packed, x)
    single = jax.jit(c.quantized())
    for i in range(3):
        for a, b in zip(mapped, single(c.packed, x[i]), strict=True):
            np.testing.assert_array_equal(a[i], b)

    def loss(kernels, packed):
        return lambda x: c.quantized(kernels)(packed, x)[0].sum()

    own = jax.jit(jax.grad(loss("native", c.packed)))(c.x)
    other = jax.jit(jax.grad(loss("xla", c.codes)))(c.x)
    np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-3 * float(jnp.abs(other).max()))


@needs_native
def test_one_packed_tree_for_any_number_of_steps():
    c = cell(refined, True)
    for steps in (1, 9):
        x = jnp.tile(c.x, (2, 1, 1))[:steps]
        own = jax.jit(c.quantized())(c.packed, x)[1]
        other = jax.jit(c.quantized("xla"))(c.codes, x)[1]
        np.testing.assert_allclose(own, other, rtol=0.02, atol=0.02)


def doubled(length=4, spare=3, **changes):
    """A program that doubles a carried vector: argument 0 and result 1 have an entry for each time, result 2 is handed on."""
    vector, whole = ((3,), "float32"), ((length, 3), "float32")
    body = rp.Program(
        (vector, vector), (vector, vector), tuple(rp.Tensor("float32", (3,), i, 0, (1,)) for i in range(4)),
        (Elementwise((3,), (0, 1), (2,), ((0, 0, 0, 0, 0), (0, 1, 1, 0, 0), (2, 0, 0, 1, 0), (16, 0, 0, 0, 0))), Copy(1, 3)), 0,
    )  # fmt: skip
    fields = {
        "body": body, "length": length, "reverse": False, "inputs": (0, 1), "sliced": (True, False), "handed": (NONE, 0),
        "outputs": (2, 4), "spares": (spare, NONE),
    }  # fmt: skip
    tensors = (
        rp.Tensor("float32", (length, 3), 0, 0, (3, 1)), rp.Tensor("float32", (3,), 1, 0, (1,)),
        rp.Tensor("float32", (3,), 2, 0, (1,)), rp.Tensor("float32", (3,), rp.ARENA, 0, (1,), 0),
        rp.Tensor("float32", (length, 3), 3, 0, (3, 1)),
    )  # fmt: skip
    return rp.Program(
        (whole, vector), (vector, whole), tensors, (Loop(**{**fields, **changes}),), 64, ((0, 64),)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "other tensors than its program"),
        ({"inputs": (0,)}, "other tensors than its program"),
        ({"handed": (0, NONE)}, "other tensors than its program"),
        ({"handed": (NONE, 1)}, "other tensors than its program"),
        ({"sliced": (False, False)}, "for 1 of float32"),
        ({"outputs": (2, 3)}, "for 4 of float32"),
        ({"spares": (2, NONE)}, "writes over what it reads or writes"),
        ({"spares": (4, NONE)}, "hands float32"),
    ],
)
def test_a_loop_that_does_not_fit_its_program_is_refused(changes, message):
    with pytest.raises(TensorError, match=message):
        doubled(**changes)


def test_a_loop_is_printed_with_its_program():
    text = str(doubled())
    assert "loop(t0:float32[4,3], t1:float32[3])  # 4 times" in text
    assert text.count("elementwise") == 1


@needs_native
def test_the_arguments_of_a_loop_are_found_again():
    ((program, given), *_) = arguments(program_of(cell(lstm, True)))
    (loop,) = [step for step in program.steps if isinstance(step, Loop)]
    assert len(given) == len(program.args)
    assert loop.length == STEPS
    assert sum(loop.sliced) == 1  # the projection of the entries, which is one product of all steps
    assert len(program.contractions) == SITES["lstm"]
