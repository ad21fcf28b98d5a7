"""Stacks of updated slices become updates of the array that the slices came from: same bits, and no copy of the caches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxq8 as q8
from jaxq8._compat import open_jaxpr, primitives
from jaxq8.analysis import decoder_caches
from tests.small import ALWAYS, BOUNDARY_DB, assert_equal, normal, sqnr_db
from tests.zoo import ZOO

LAYERS, BATCH, LENGTH, HEADS, SIZE = 3, 2, 8, 2, 4
WIDTH = HEADS * SIZE
CACHE = normal(LAYERS, BATCH, LENGTH, HEADS, SIZE)
WEIGHTS = {"k": normal(WIDTH, WIDTH) / 3, "o": normal(WIDTH, WIDTH) / 3}
X = normal(BATCH, 1, WIDTH)


def layer(v, x, kept, position, axis=1):
    """One layer: its slice with a new token, and what attention reads of it."""
    new = (x @ v["k"]).reshape(BATCH, 1, HEADS, SIZE)
    kept = lax.dynamic_update_slice_in_dim(kept, new, position, axis=axis)
    seen = jnp.einsum("bqhd,bkhd->bhqk", x.reshape(new.shape), kept)
    x = jnp.tanh(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(seen), kept).reshape(x.shape) @ v["o"])
    return x, kept


def step(v, x, cache, position):
    kept = []
    for index in range(cache.shape[0]):
        x, one = layer(v, x, cache[index], position)
        kept.append(one)
    return x, jnp.stack(kept)


def written(position=2, start=0):
    """An update of one token: a slice (BATCH, LENGTH, HEADS, SIZE) to one like it."""

    def update(one):
        new = normal(BATCH, 1, HEADS, SIZE).astype(one.dtype)
        return lax.dynamic_update_slice(
            one, new, [jnp.asarray(i, jnp.result_type(position)) for i in (start, position, 0, 0)]
        )

    return update


def keeping_the_axis(c):
    slices = [lax.slice_in_dim(c, i, i + 1) for i in range(LAYERS)]
    new = normal(1, BATCH, 1, HEADS, SIZE)
    return jnp.concatenate([lax.dynamic_update_slice(s, new, (7, 0, 3, 0, 0)) for s in slices])


def updated_twice(c):
    again = lambda one: lax.dynamic_update_slice(one, normal(BATCH, 1, 1, 1), (0, 3, 1, 2))  # noqa: E731
    return jnp.stack([again(written()(one)) for one in c])


def along_axis(axis):
    def run(c):
        c = jnp.moveaxis(c, 0, axis) + 1
        parts = [lax.index_in_dim(c, i, axis, keepdims=False) for i in range(LAYERS)]
        return jnp.stack([written()(p) for p in parts], axis=axis)

    return run


MATCHED = {
    "stack": lambda c: jnp.stack([written()(c[i]) for i in range(LAYERS)]),
    "concatenate": lambda c: jnp.concatenate([written()(c[i])[None] for i in range(LAYERS)]),
    "reshape": lambda c: jnp.concatenate([written()(c[i]).reshape(1, *c.shape[1:]) for i in range(LAYERS)]),
    "unstack": lambda c: jnp.stack([written()(one) for one in jnp.unstack(c)]),
    "split": lambda c: jnp.stack([written()(one[0]) for one in jnp.split(c, LAYERS)]),
    "iteration": lambda c: jnp.stack([written()(one) for one in c]),
    "axis kept": keeping_the_axis,
    "updated twice": updated_twice,
    "one is not updated": lambda c: jnp.stack([written()(c[0]), c[1], written()(c[2])]),
    "clamped": lambda c: jnp.stack([written(99, 5)(c[0]), written(-1)(c[1]), written(LENGTH)(c[2])]),
    "indices of one byte": lambda c: jnp.stack([written(jnp.uint8(5), jnp.uint8(0))(one) for one in c]),
    "last axis": along_axis(4),
    "an axis between": along_axis(2),
    "int8": lambda c: jnp.stack([written()(one) for one in (c * 50).astype(jnp.int8)]),
    "slices read besides": lambda c: jnp.stack([written()(one) for one in c]) + c[1],
    "an update read besides": lambda c: (
        jnp.stack([(one := written()(c[0])), written()(c[1]), written()(c[2])]) * one.sum()
    ),
}
UNMATCHED = {
    "two sources": lambda c: jnp.stack([written()(c[0]), written()((c + 1)[1]), written()(c[2])]),
    "order": lambda c: jnp.stack([written()(c[i]) for i in (0, 2, 1)]),
    "one is missing": lambda c: jnp.stack([written()(c[i]) for i in (0, 1)]),
    "one comes twice": lambda c: jnp.stack([written()(c[i]) for i in (0, 1, 1)]),
    "another dtype": lambda c: jnp.stack([written()(c[i].astype(jnp.bfloat16)) for i in range(LAYERS)]),
    "another axis": lambda c: jnp.stack([written()(c[i]) for i in range(LAYERS)], axis=1),
    "strides": lambda c: jnp.stack([written()(c[i, :, ::2]) for i in range(LAYERS)]),
    "strides of all": lambda c: jnp.stack([written()(c[i]) for i in (0, 2)]),
    "part of a slice": lambda c: jnp.stack([written()(c[i, :, 1:]) for i in range(LAYERS)]),
    "arithmetic": lambda c: jnp.stack([written()(c[i] * 2) for i in range(LAYERS)]),
    "nothing is updated": lambda c: jnp.stack([c[i] for i in range(LAYERS)]),
    "most is updated": lambda c: jnp.stack(
        [lax.dynamic_update_slice(one, one[:, 1:], (0, 0, 0, 0)) for one in c]
    ),
    "axes turned": lambda c: jnp.stack(
        [written()(c[i].swapaxes(2, 3).reshape(c[i].shape)) for i in range(LAYERS)]
    ),
    "several rows": lambda c: jnp.concatenate([written()(c[i]) for i in range(LAYERS)]),
}


def with_site(pattern):
    """The pattern in a function that has something to quantize: others are not evaluated at all."""
    return lambda v, x, c: (pattern(c), x @ v["k"])


@pytest.fixture
def stacked(monkeypatch):
    """Calls a function with nothing rewritten."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(decoder_caches, "chains", lambda jaxpr: [])
            return function()

    return call


def found(function, *args):
    return decoder_caches.chains(open_jaxpr(jax.make_jaxpr(function)(*args))[0])


@pytest.mark.parametrize("name", MATCHED)
def test_a_match_is_equal_bit_for_bit(stacked, name):
    assert len(found(MATCHED[name], CACHE)) == 1
    fast = lambda: jax.jit(q8.quantize(with_site(MATCHED[name]), ALWAYS))(WEIGHTS, X, CACHE)  # noqa: E731
    assert_equal(stacked(fast), fast())
    np.testing.assert_array_equal(jax.jit(MATCHED[name])(CACHE), fast()[0])


@pytest.mark.parametrize("name", UNMATCHED)
def test_what_differs_is_left_as_it_stands(stacked, name):
    assert not found(UNMATCHED[name], CACHE)
    trace = lambda: str(jax.make_jaxpr(q8.quantize(with_site(UNMATCHED[name]), ALWAYS))(WEIGHTS, X, CACHE))  # noqa: E731
    assert trace() == stacked(trace)


def test_an_index_that_its_dtype_cannot_hold_is_no_match():
    many = normal(300, 1, LENGTH)
    at = jnp.uint8(3)
    run = lambda c: jnp.stack([lax.dynamic_update_slice(one, c[0, :, :1], (at - at, at)) for one in c])  # noqa: E731
    assert not found(run, many)
    assert len(found(run, many[:256])) == 1


def test_codes_as_source_are_left_as_they_stand(stacked):
    codes = q8.QTensor.from_float(CACHE)
    fast = lambda: jax.jit(q8.quantize(step, ALWAYS))(WEIGHTS, X, codes, 2)  # noqa: E731
    assert_equal(stacked(fast), fast())


def test_arrays_of_codes_are_a_cache_like_any_other(stacked):
    """A cache in eight bits: codes and scales are two arrays, each with its own chain."""

    def run(v, x, codes, scales, position):
        kept = []
        for one, scale in zip(codes, scales, strict=True):
            new = (x @ v["k"]).reshape(BATCH, 1, HEADS, SIZE)
            steps = jnp.abs(new).max(axis=-1, keepdims=True) / 127
            one = lax.dynamic_update_slice_in_dim(
                one, jnp.round(new / steps).astype(jnp.int8), position, axis=1
            )
            scale = lax.dynamic_update_slice_in_dim(scale, steps, position, axis=1)
            x = x + jnp.einsum("bqhd,bkhd->bqhd", new, one * scale).reshape(x.shape)
            kept.append((one, scale))
        return x, *(jnp.stack(parts) for parts in zip(*kept, strict=True))

    args = WEIGHTS, X, (CACHE * 40).astype(jnp.int8), jnp.abs(CACHE[..., :1]), jnp.int32(3)
    assert len(found(run, *args)) == 2
    fast = lambda: jax.jit(q8.quantize(run, ALWAYS))(*args)  # noqa: E731
    assert_equal(stacked(fast), fast())


@pytest.mark.parametrize("position", [0, LENGTH - 1, LENGTH + 3, -2])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_a_step_is_equal_bit_for_bit(stacked, static, position):
    args = X, CACHE, jnp.int32(position)
    ranges = q8.calibrate(step, WEIGHTS, [args], config=ALWAYS, progress=False) if static else None
    fast = lambda: jax.jit(q8.quantize(step, ALWAYS, ranges=ranges))(WEIGHTS, *args)  # noqa: E731
    assert_equal(stacked(fast), fast())


CONFIGS = {
    "eight bits": ALWAYS,
    "off": q8.Config(mode="off"),
    "simulate": q8.Config(mode="simulate"),
    "attention": q8.Config(kernels="xla", attention=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_the_plan_and_the_ranges_do_not_depend_on_it(stacked, config):
    args = WEIGHTS, X, CACHE, jnp.int32(2)
    plan = lambda: q8.explain(step, *args, config=config)  # noqa: E731
    assert plan() == stacked(plan)
    fast = lambda: jax.jit(q8.quantize(step, config))(*args)  # noqa: E731
    assert sqnr_db(stacked(fast), fast()) > BOUNDARY_DB


def program(function, *args, donate=()):
    return jax.jit(q8.quantize(function, ALWAYS), donate_argnums=donate).lower(*args).compile()


def sized(layers, length):
    return WEIGHTS, X, jnp.zeros((layers, BATCH, length, HEADS, SIZE)), jnp.int32(5)


@pytest.mark.parametrize("donate", [(), (2,)], ids=["kept", "donated"])
def test_the_program_has_no_second_copy_of_the_caches(stacked, donate):
    args = sized(8, 1024)
    cache = args[2].nbytes
    after, before = (
        program(step, *args, donate=donate),
        stacked(lambda: program(step, *args, donate=donate)),
    )
    temporary = [p.memory_analysis().temp_size_in_bytes for p in (before, after)]
    assert temporary[0] > cache > 2 * temporary[1]
    assert "concatenate" in before.as_text()
    whole = f"f32[{','.join(map(str, args[2].shape))}]"
    assert not [line for line in after.as_text().splitlines() if whole in line and " concatenate(" in line]
    copies = [line for line in after.as_text().splitlines() if " copy(" in line and f"= {whole}" in line]
    assert len(copies) == (0 if donate else 1)


def apart(v, x, cache, position):
    """All updates first: nothing says that what reads one of them runs before the next."""
    new = (x @ v["k"]).reshape(BATCH, 1, HEADS, SIZE)
    kept = [lax.dynamic_update_slice_in_dim(one, new * i, position, axis=1) for i, one in enumerate(cache)]
    return [jnp.einsum("bqhd,bkhd->bhqk", new, one) for one in kept], jnp.stack(kept)


def test_readers_that_could_come_later_do_not_make_copies(stacked):
    args = sized(8, 1024)
    assert [chain.ordered for chain in found(apart, *args)] == [False]
    assert [chain.ordered for chain in found(step, *args)] == [True]
    run = lambda: program(apart, *args)  # noqa: E731
    memory = [p.memory_analysis().temp_size_in_bytes for p in (stacked(run), run())]
    assert memory[1] < memory[0]
    assert_equal(stacked(run)(*args), run()(*args))


def test_updates_that_are_returned_are_not_read_from_the_array(stacked):
    def run(v, x, cache, position):
        x, whole = step(v, x, cache, position)
        first = lax.dynamic_update_slice_in_dim(cache[0], normal(BATCH, 1, HEADS, SIZE), position, axis=1)
        second = lax.dynamic_update_slice_in_dim(cache[1], first[:, :1], position, axis=1)
        return x, whole, first, jnp.stack([first, second, cache[2]])

    args = WEIGHTS, X, CACHE, jnp.int32(2)
    assert [chain.ordered for chain in found(run, *args)] == [True, False]
    fast = lambda: jax.jit(q8.quantize(run, ALWAYS))(*args)  # noqa: E731
    assert_equal(stacked(fast), fast())


def test_two_stacks_of_the_same_updates_are_one_chain(stacked):
    def run(v, x, cache, position):
        kept = [layer(v, x, one, position)[1] for one in cache]
        return jnp.stack(kept), jnp.stack(kept) * 2

    args = WEIGHTS, X, CACHE, jnp.int32(2)
    assert len(found(run, *args)) == 1
    fast = lambda: jax.jit(q8.quantize(run, ALWAYS))(*args)  # noqa: E731
    assert_equal(stacked(fast), fast())


def generated(v, x, cache):
    """Steps in a loop that carries the cache."""

    def one(state, position):
        x, cache = jax.jit(step)(v, *state, position)
        return (x, cache), x

    return lax.scan(one, (x, cache), jnp.arange(LENGTH))


def test_inside_a_loop_and_a_compiled_call(stacked):
    fast = lambda: jax.jit(q8.quantize(generated, ALWAYS))(WEIGHTS, X, CACHE)  # noqa: E731
    assert_equal(stacked(fast), fast())
    args = WEIGHTS, X, jnp.zeros((8, BATCH, 1024, HEADS, SIZE))
    run = lambda: program(generated, *args)  # noqa: E731
    memory = [p.memory_analysis().temp_size_in_bytes for p in (stacked(run), run())]
    assert memory[1] < 0.6 * memory[0]


def test_in_a_branch(stacked):
    def run(v, x, cache, position):
        return lax.cond(position > 2, step, lambda v, x, cache, position: (x, cache), v, x, cache, position)

    for position in (1, 3):
        fast = lambda p=position: jax.jit(q8.quantize(run, ALWAYS))(WEIGHTS, X, CACHE, p)  # noqa: E731
        assert_equal(stacked(fast), fast())


def test_real_arrays_are_not_updated_one_by_one(monkeypatch):
    """Outside of a compiled function each update would be a copy of the whole array."""
    args = WEIGHTS, X, CACHE, jnp.int32(2)
    compiled = jax.jit(q8.quantize(step, ALWAYS))(*args)
    monkeypatch.setattr(
        decoder_caches.Caches, "result", lambda *a: pytest.fail("an update of the whole array")
    )
    assert sqnr_db(compiled, q8.quantize(step, ALWAYS)(*args)) > BOUNDARY_DB


def test_derivatives_pass(stacked):
    def loss(v, x, cache):
        x, cache = q8.quantize(step, ALWAYS)(v, x, cache, 2)
        return (x**2).sum() + (cache**3).sum()

    slopes = lambda: jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(WEIGHTS, X, CACHE)  # noqa: E731
    assert sqnr_db(stacked(slopes), slopes()) > 100
    forward = lambda: jax.jit(lambda *a: jax.jvp(loss, a, a))(WEIGHTS, X, CACHE)  # noqa: E731
    assert sqnr_db(stacked(forward), forward()) > 100


@pytest.mark.parametrize("positions", [None, 0], ids=["one position", "a position each"])
def test_examples_under_vmap(stacked, positions):
    fast = q8.quantize(step, ALWAYS)
    mapped = jax.vmap(lambda x, c, p: fast(WEIGHTS, x, c, p), in_axes=(0, 0, positions))
    inside = q8.quantize(lambda v, x, c, p: jax.vmap(lambda x, c: step(v, x, c, p))(x, c), ALWAYS)
    args = (
        jnp.stack([X, 2 * X]),
        jnp.stack([CACHE, -CACHE]),
        jnp.int32(2) if positions is None else jnp.array([2, 4]),
    )
    run = lambda: jax.jit(mapped)(*args)  # noqa: E731
    assert_equal(stacked(run), run())
    if positions is None:
        run = lambda: jax.jit(inside)(WEIGHTS, *args)  # noqa: E731
        assert_equal(stacked(run), run())


def test_an_exported_program_of_any_batch(tmp_path):
    def any_batch(v, x, cache, position):
        kept = []
        for one in cache.swapaxes(0, 1):
            new = (x @ v["k"]).reshape(-1, 1, HEADS, SIZE)
            one = lax.dynamic_update_slice_in_dim(one, new, position, axis=1)
            x = x + jnp.einsum("bqhd,bkhd->bqhd", new, one).reshape(x.shape)
            kept.append(one)
        return x, jnp.stack(kept, axis=1)

    args = X, CACHE.swapaxes(0, 1), jnp.int32(2)
    q8.export(tmp_path / "step.q8x", any_batch, WEIGHTS, *args, config=ALWAYS)
    expected = jax.jit(q8.quantize(any_batch, ALWAYS))(WEIGHTS, *args)
    assert sqnr_db(expected, q8.load_exported(tmp_path / "step.q8x")(*args)) > BOUNDARY_DB


def test_the_decoder_of_the_zoo_has_two_chains():
    apply, variables, inputs = ZOO["tiny_decoder"].build(jax.random.key(0), 2)
    jaxpr = open_jaxpr(jax.make_jaxpr(apply)(variables, *inputs))[0]
    assert [chain.ordered for chain in decoder_caches.chains(jaxpr)] == [True, True]
    updates = [e for e in jaxpr.eqns if e.primitive is primitives.dynamic_update_slice_p]
    assert sum(len(chain.updates) for chain in decoder_caches.chains(jaxpr)) == len(updates)
