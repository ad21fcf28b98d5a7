"""Native regions of decoders: caches that are updated in place, and tables that are looked up and multiplied."""

import dataclasses
import operator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from examples.models.decoder import Decoder, empty_caches
from jaxq8.analysis.traced_call import Call
from jaxq8.errors import TensorError
from jaxq8.evaluation.calls import evaluate_leaves
from jaxq8.evaluation.interpreter import Run
from jaxq8.native import calls
from jaxq8.numerics.packed_tensor import unpacked_codes
from jaxq8.plan import Recorder
from jaxq8.regions import in_jax
from jaxq8.regions import program as rp
from jaxq8.regions.batching import folded
from jaxq8.regions.builder import Builder
from jaxq8.regions.candidates import EVERY
from jaxq8.regions.collect import in_regions
from jaxq8.regions.native_call import call
from jaxq8.regions.steps import NONE, Copy, Reduce, Take, Update
from tests.test_native_regions import NATIVE, Case, arguments, needs_native, unpack
from tests.zoo import ZOO

LAYERS = 2
GATED = Decoder(vocabulary=48, width=32, layers=2, heads=4, hidden=80)


def of_the_zoo(seed=0):
    """The decoder of the zoo, which has one array for the keys of all layers, and inputs for two examples."""
    apply, variables, inputs = ZOO["tiny_decoder"].build(jax.random.key(seed), 2)
    return (lambda p, x: apply(p, *x)), variables, inputs


def gated(eight_bit):
    """The decoder of the examples, which has a cache for each layer, after a prompt of three tokens.

    The caches are given as their arrays, since a function that `quantize` makes reads encoded arguments as real numbers.
    """
    variables = GATED.init(jax.random.key(2), jnp.zeros((1, 2), jnp.int32))
    prompt = jax.random.randint(jax.random.key(3), (2, 3), 0, 48)
    _, caches = GATED.apply(variables, prompt, empty_caches(GATED, 2, 12, eight_bit))
    parts, tree = jax.tree.flatten(caches)

    def f(p, x):
        token, parts, position = x
        logits, caches = GATED.apply(p, token, jax.tree.unflatten(tree, parts), position)
        return logits, jax.tree.leaves(caches)

    return f, variables, (jnp.array([[5], [7]]), parts, jnp.int32(3))


NETS = {
    "of the zoo": of_the_zoo, "gated": lambda: gated(False), "gated, eight-bit cache": lambda: gated(True)
}  # fmt: skip
CASES = {}
KINDS = [(name, dynamic) for name in NETS for dynamic in (True, False)]


def case(name, dynamic=True):
    if (name, dynamic) not in CASES:
        f, p, x = NETS[name]()
        ranges = {} if dynamic else q8.calibrate(f, p, [(x,)], config=NATIVE, progress=False)
        codes = q8.quantize_weights(f, p, x, config=NATIVE)
        packed = q8.pack(f, codes, x, config=NATIVE, ranges=ranges)
        CASES[name, dynamic] = Case(f, p, x, ranges, codes, packed)
    return CASES[name, dynamic]


def program(c):
    """The one region of a step, and its arguments."""
    call, found = Call.trace(c.f, (c.packed, c.x), {}), []
    run = Run(NATIVE, q8.Ranges(c.ranges), call.analyse(NATIVE), Recorder())

    def whole(given):
        return evaluate_leaves(call, call.consts, given, run)

    in_regions(whole, call.arguments.given, found.append, EVERY)
    arrays = [leaf for leaf in jax.tree.leaves(call.arguments.given) if isinstance(leaf, jax.Array)]
    known = {**found[0].consts, **dict(zip(found[0].inputs, arrays, strict=True))}
    (region,) = arguments(dataclasses.replace(found[0], consts=known))
    return found[0], *region


def leaves(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def near(own, other, share=1e-4):
    for one, two in zip(leaves(own), leaves(other), strict=True):
        np.testing.assert_allclose(one, two, atol=share * max(1e-6, np.nanmax(np.abs(two))))


@needs_native
@pytest.mark.parametrize(("name", "dynamic"), KINDS)
def test_a_step_is_one_region_whose_caches_are_not_copied(name, dynamic):
    c = case(name, dynamic)
    _, region, _ = program(c)
    kinds = [type(step) for step in region.steps]
    parts = (
        2 if "eight-bit" in name else 1
    )  # codes and scales; the zero points are known, and XLA writes them
    assert kinds.count(Update) == 2 * LAYERS * parts
    sizes = [np.prod(region.tensors[step.dst].shape) for step in region.steps if isinstance(step, Copy)]
    assert max(sizes, default=0) < min(leaf.size for leaf in jax.tree.leaves(c.x[1]))
    assert len(region.aliases) == (2 if name == "of the zoo" else 2 * LAYERS * parts)
    assert len(q8.explain(c.f, c.packed, c.x, ranges=c.ranges).native) == 1  # "auto" takes it, too


@needs_native
@pytest.mark.parametrize(("name", "dynamic"), KINDS)
def test_a_step_computes_what_xlas_forms_do(name, dynamic):
    c = case(name, dynamic)
    own, other = jax.jit(c.quantized())(c.packed, c.x), jax.jit(c.quantized("xla"))(c.codes, c.x)
    exact = c.f(c.p, c.x)
    errors = [np.linalg.norm(a - b) for a, b in zip(leaves(other), leaves(exact), strict=True)]
    assert max(errors) > 1e-3
    for one, two, three, error in zip(leaves(own), leaves(other), leaves(exact), errors, strict=True):
        assert np.linalg.norm(one - two) <= max(error, 1e-5)
        assert np.linalg.norm(one - three) <= 1.1 * max(error, 1e-5)
    near(c.quantized()(c.packed, c.x), own)


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_the_program_means_the_same_in_jax(name):
    c = case(name)
    _, region, given = program(c)
    near(call(region, given), in_jax.run(region, given, unpack), 1e-3)


@needs_native
@pytest.mark.parametrize("position", [-(2**31), -40, -1, 0, 15, 16, 300, 2**31 - 1])
def test_positions_outside_of_the_cache_are_moved_into_it(position):
    c = case("of the zoo")
    ids, cache, _ = c.x
    x = (ids, cache, jnp.int32(position))
    own, other = jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(c.codes, x)
    near(own, other)
    changed = np.abs(np.asarray(own[1]["key"] - cache["key"])).max((0, 1, 3, 4)) > 0
    first = position + 16 if position < 0 else position  # as an index of Python, which JAX makes of it
    assert np.flatnonzero(changed).tolist() == [min(max(first, 0), 15)]


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_a_donated_cache_stays_where_it_is_and_others_are_not_touched(name):
    c = case(name)
    ids, cache, position = c.x
    before = leaves(cache)

    def step(p, cache):
        return c.f(p, (ids, cache, position))

    run = jax.jit(q8.quantize(step, NATIVE), donate_argnums=1)
    expected = jax.jit(c.quantized())(c.packed, c.x)
    given = jax.tree.map(jnp.array, cache)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(given)]
    own = run(c.packed, given)
    near(own, expected, 0)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(own[1])] == places
    for one, two in zip(leaves(cache), before, strict=True):
        np.testing.assert_array_equal(one, two)


@needs_native
def test_who_reads_the_old_cache_afterwards_finds_it():
    c = case("of the zoo")

    def both(p, x):
        logits, new = c.f(p, x)
        return logits, new, jax.tree.map(lambda a: 2 * a, x[1])

    logits, new, old = jax.jit(q8.quantize(both, NATIVE))(c.packed, c.x)
    near((logits, new), jax.jit(c.quantized())(c.packed, c.x), 0)
    near(old, jax.tree.map(lambda a: 2 * a, c.x[1]), 0)


@needs_native
def test_a_region_that_reads_an_array_before_and_after_its_update_copies_it():
    p = {
        "a": jax.random.normal(jax.random.key(0), (32, 32)),
        "b": jax.random.normal(jax.random.key(1), (32, 32)),
    }
    x = (jax.random.normal(jax.random.key(2), (4, 32)), jnp.ones((8, 32)), jnp.int32(3))

    def f(p, x):
        rows, old, at = x
        h = rows @ p["a"]
        new = jax.lax.dynamic_update_slice(old, h, (at, 0))
        return jnp.tanh(new + old * h.sum()) @ p["b"], new

    codes = q8.quantize_weights(f, p, x, config=NATIVE)
    c = Case(f, p, x, {}, codes, q8.pack(f, codes, x, config=NATIVE))
    _, region, _ = program(c)
    assert sum(isinstance(step, Copy) for step in region.steps) == 1
    assert not region.aliases
    near(jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(codes, x), 2e-2)


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_nan_is_where_xlas_forms_have_it(name):
    c = case(name)
    ids, cache, position = c.x
    bad = jax.tree.map(
        lambda a: a.at[(0, 1) if name == "of the zoo" else 1].set(jnp.nan) if a.dtype == jnp.float32 else a,
        cache,
    )
    own, other = (
        jax.jit(c.quantized(kind))(p, (ids, bad, position))
        for kind, p in (("native", c.packed), ("xla", c.codes))
    )
    for one, two in zip(leaves(own), leaves(other), strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(two))
    assert np.isnan(own[0][1]).all()


@needs_native
@pytest.mark.parametrize(
    ("name", "mapped"),
    [("of the zoo", "tokens"), ("gated, eight-bit cache", "tokens and caches"), ("gated", "positions")],
)
def test_vmap_is_a_loop(name, mapped):
    c = case(name)
    ids, cache, position = c.x
    tokens = jnp.stack([ids, ids[::-1], ids + 1])
    caches = jax.tree.map(lambda a: jnp.stack([a, a[:, ::-1], a]), cache)
    axes, x = {
        "tokens": ((0, None, None), (tokens, cache, position)),
        "tokens and caches": ((0, 0, None), (tokens, caches, position)),
        "positions": ((None, None, 0), (ids, cache, jnp.int32([2, 3, 99]))),
    }[mapped]
    run = c.quantized()
    own = jax.jit(jax.vmap(lambda x: run(c.packed, x), (axes,)))(x)
    one = jax.jit(lambda x: run(c.packed, x))
    for i in range(3):
        take = operator.itemgetter(i)
        each = tuple(
            jax.tree.map(take, part) if axis == 0 else part for part, axis in zip(x, axes, strict=True)
        )
        near(jax.tree.map(take, own), one(each), 1e-3)


@needs_native
def test_several_calls_at_once():
    c = case("of the zoo")
    ids, cache, _ = c.x
    run = jax.jit(c.quantized())
    inputs = [(ids, cache, jnp.int32(i % 16)) for i in range(24)]
    expected = [run(c.packed, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for own, other in zip(pool.map(lambda x: run(c.packed, x), inputs), expected, strict=True):
            near(own, other, 0)


@needs_native
def test_an_exported_step_has_xlas_forms(tmp_path):
    c = case("of the zoo")
    q8.export(tmp_path / "step.q8x", c.f, c.packed, c.x, platforms=("cpu",), symbolic_batch=False)
    near(q8.load_exported(tmp_path / "step.q8x")(c.x), jax.jit(c.quantized("xla"))(c.codes, c.x), 1e-3)


def looked_up(p, x):
    ids, mode = x[0], {"mode": "fill"} if len(x) > 1 else {}
    h = jnp.take(p["table"], ids, axis=0, **mode)
    return (jnp.tanh(h @ p["a"]) @ p["b"]) @ p["table"].T


@needs_native
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("shape", [(64, 32), (75, 33), (16, 20)])
def test_rows_are_read_from_packed_bytes(shape, fill):
    rows, width = shape
    keys = jax.random.split(jax.random.key(0), 3)
    p = {
        "table": jax.random.normal(keys[0], shape), "a": jax.random.normal(keys[1], (width, 40)),
        "b": jax.random.normal(keys[2], (40, width)),
    }  # fmt: skip
    ids = jnp.array([0, 3, rows - 1, -1, *([rows, -rows - 1] if fill else [])])
    x = (ids, jnp.zeros(())) if fill else (ids,)
    codes = q8.quantize_weights(looked_up, p, x, config=NATIVE)
    c = Case(looked_up, p, x, {}, codes, q8.pack(looked_up, codes, x, config=NATIVE))
    assert isinstance(c.packed["table"], q8.PackedTensor)
    made = [unit.eqn.primitive for unit in program(c)[0].units if not hasattr(unit, "program")]
    assert unpacked_codes.primitive not in made
    own, other = jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(codes, x)
    np.testing.assert_array_equal(np.isnan(own), np.isnan(other))
    assert bool(jnp.isnan(own[-1]).all()) == fill
    np.testing.assert_allclose(own, other, atol=0.03 * float(jnp.nanmax(jnp.abs(other))))
    table = c.packed["table"]
    where = [table.layout.places(axis) for axis in ((1, 0) if table.moves else (0, 1))]
    np.testing.assert_array_equal(table.packed[where[0][:, None] + where[1]], codes["table"].values)


def placed(seed):
    """A program that updates a tensor and takes a part of it, and its arguments."""
    rng = np.random.default_rng(seed)
    builder, rank = Builder(), int(rng.integers(1, 9))
    dtype = ["uint8", "int8", "int32", "float32"][seed % 4]
    whole = tuple(int(n) for n in rng.integers(1, 4 if rank > 4 else 9, rank))
    parts = [tuple(int(rng.integers(1, n + 1)) for n in whole) for _ in range(2)]
    given = []

    def argument(array):
        given.append(jnp.asarray(array))
        return builder.argument(array.shape, array.dtype, lambda read: array)

    old, new = (argument(rng.integers(0, 99, shape).astype(dtype)) for shape in (whole, parts[0]))
    far = [-(2**31), -3, *range(9), 2**31 - 1]
    starts = [
        [argument(np.array([rng.choice(far)], np.int32)) if rng.random() < 0.7 else NONE for _ in whole]
        for _ in range(2)
    ]
    changed, taken = builder.result(whole, dtype), builder.result(parts[1], dtype)
    builder.steps += [
        Copy(old, changed), Update(new, changed, tuple(starts[0])), Take(changed, taken, tuple(starts[1]))
    ]  # fmt: skip
    return builder.build(), given


@needs_native
@pytest.mark.parametrize("seed", range(12))
def test_updates_and_parts_of_every_kind(seed):
    moves, given = placed(seed)
    assert [type(step) for step in moves.steps] == [Update, Take]
    assert moves.aliases == ((0, 0),)
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in moves.results]
    for told in (dict(moves.aliases), {}):  # XLA need not know of it
        own = jax.jit(lambda *a, told=told: calls.call(moves.words(), a, shapes, told))(*given)
        for one, two in zip(own, in_jax.run(moves, given, unpack), strict=True):
            np.testing.assert_array_equal(one, two)


def test_copies_stay_where_somebody_reads_the_original():
    for reads_again in (False, True):
        builder = Builder()
        old, new = (builder.argument((4, 8), np.float32, lambda read: None) for _ in range(2))
        between, last = builder.temporary((4, 8), np.float32), builder.result((4, 8), np.float32)
        builder.steps += [Copy(old, between), Update(new, between, (NONE, NONE)), Copy(between, last)]
        if reads_again:
            builder.steps.append(Reduce(old, builder.result((4, 1), np.float32), "sum"))
        made = builder.build()
        assert [type(step) for step in made.steps].count(Copy) == reads_again
        assert made.aliases == (() if reads_again else ((0, 0),))


def test_aliases_are_checked_when_a_program_is_made():
    array, other = ((4,), "uint8"), ((5,), "uint8")
    rp.Program((array,), (array,), (), (), 0, (), ((0, 0),))
    for aliases, text in (
        (((0, 1),), "does not exist"),
        (((0, 0), (0, 1)), "one twice"),
        (((0, 0),), "unlike result 0"),
    ):
        results = (array, array) if "twice" in text else (other,) if "unlike" in text else (array,)
        with pytest.raises(TensorError, match=text):
            rp.Program((array,), results, (), (), 0, (), aliases)
    inside = rp.Tensor("uint8", (4,), 0, 0, (1,))
    with pytest.raises(TensorError, match="a result begins with"):
        rp.Program((array,), (array,), (inside,), (), 0, (), ((0, 0),))


@needs_native
def test_updates_that_stay_in_their_batch_are_folded():
    args = ((3, 4), "float32"), ((3, 1), "float32"), ((1,), "int32")
    views = (
        rp.Tensor("float32", (3, 4), 3, 0, (4, 1)),
        rp.Tensor("float32", (3, 1), 1, 0, (1, 1)),
        rp.Tensor("int32", (1,), 2, 0, (1,)),
    )
    for starts, stays in (((NONE, 2), True), ((2, NONE), False)):
        moves = rp.Program(args, args[:1], views, (Update(1, 0, starts),), 0, (), ((0, 0),))
        assert (folded(moves, 2, [True, True, False]) is not None) == stays
        assert folded(moves, 2, [False, True, False]) is None  # all batches would write into the one array
        assert folded(moves, 2, [True, False, False]) is None
        assert folded(moves, 2, [True, True, True]) is None
        given = [jnp.arange(24.0).reshape(2, 3, 4), -1 - jnp.arange(6.0).reshape(2, 3, 1), jnp.int32([1])]
        (many,) = jax.jit(jax.vmap(lambda *a, moves=moves: call(moves, a), (0, 0, None)))(*given)
        for i in range(2):
            (one,) = call(moves, [given[0][i], given[1][i], given[2]])
            np.testing.assert_array_equal(many[i], one)
