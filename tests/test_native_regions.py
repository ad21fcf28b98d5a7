"""Native regions: what one call into oneDNN computes of a function, held against XLA's forms and against pure JAX."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.analysis.traced_call import Call
from jaxq8.errors import TensorError
from jaxq8.evaluation.calls import evaluate_leaves
from jaxq8.evaluation.interpreter import Run
from jaxq8.native import calls
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.weight_moves import from_logical
from jaxq8.plan import Recorder
from jaxq8.regions import in_jax, steps
from jaxq8.regions import program as rp
from jaxq8.regions.batching import folded
from jaxq8.regions.candidates import EVERY
from jaxq8.regions.collect import arranged, traced

STATUS = q8.native_status()
needs_native = pytest.mark.skipif(not STATUS.available, reason=f"no native regions: {STATUS.reason}")
NATIVE = q8.Config(kernels="native")


def conv(x, w, stride=1, groups=1, padding="SAME", dilation=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, rhs_dilation=(dilation, dilation), feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def batch_norm(x, p):
    return (x - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-3) * p["scale"] + p["bias"]


def pooled(x, kind):
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    if kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "SAME")
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "VALID") / 9


def stem(p, x):
    """Borders whose code is not 0, batch norm, max pool, two convolutions."""
    y = jax.nn.relu(batch_norm(conv(x, p["a"], 2), p["norm"]))
    return jax.nn.relu(conv(pooled(y, "max"), p["b"]) + 0.1)


def residual(p, x):
    """Residual sums: of codes, and of two convolutions."""
    y = jax.nn.relu(conv(x, p["c"]))
    z = jax.nn.relu(y + conv(jax.nn.relu(conv(y, p["d"])), p["e"]))
    return jax.nn.relu(conv(z, p["f"]) + conv(z, p["g"]))


def depthwise(p, x):
    """An inverted bottleneck with relu6, and a linear one whose codes have a zero point."""
    y = jnp.clip(conv(x, p["c"]), 0, 6)
    y = jnp.clip(conv(y, p["dw"], groups=16), 0, 6)
    y = conv(y, p["e"])
    return conv(y, p["f"]) + y


def joined(p, x):
    """Branches joined, pooled by means, and read by a product over all pixels' means."""
    y = jax.nn.relu(conv(x, p["c"]))
    z = jnp.concatenate([jax.nn.relu(conv(y, p["d"])), jax.nn.relu(conv(y, p["e"])), pooled_same(y)], -1)
    z = pooled(jax.nn.relu(conv(z, p["wide"])), "mean")
    return jnp.mean(z, (1, 2)) @ p["dense"]


def pooled_same(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def smooth(p, x):
    """Activations that no library step has: a step of elementwise arithmetic."""
    y = jax.nn.swish(conv(x, p["c"]))
    return jax.nn.gelu(conv(y, p["d"], dilation=2), approximate=False) * 0.5 + jnp.tanh(conv(y, p["e"]))


def rows(p, x):
    """Products of rows, in the shape of tokens."""
    y = x.reshape(x.shape[0], -1, x.shape[-1])
    return jax.nn.relu(jax.nn.relu(y @ p["k1"]) @ p["k2"]) @ p["k3"]


NETS = {f.__name__: f for f in (stem, residual, depthwise, joined, smooth, rows)}
CHANNELS = {"stem": 3, "residual": 16, "depthwise": 16, "joined": 16, "smooth": 16, "rows": 16}


def weights():
    key = iter(jax.random.split(jax.random.key(0), 32))

    def kernel(*shape):
        return jax.random.normal(next(key), shape) / np.sqrt(np.prod(shape[:-1]))

    def vector(low, high):
        return jax.random.uniform(next(key), (16,), minval=low, maxval=high)

    norm = {"mean": vector(-0.5, 0.5), "var": vector(0.5, 2), "scale": vector(-1, 1), "bias": vector(-1, 1)}
    return {
        "a": kernel(7, 7, 3, 16), "b": kernel(3, 3, 16, 24), "c": kernel(1, 1, 16, 16), "d": kernel(3, 3, 16, 16),
        "e": kernel(1, 1, 16, 16), "f": kernel(3, 3, 16, 16), "g": kernel(1, 1, 16, 16), "dw": kernel(3, 3, 1, 16),
        "wide": kernel(1, 1, 48, 40), "dense": kernel(40, 10), "k1": kernel(16, 64), "k2": kernel(64, 64),
        "k3": kernel(64, 8), "norm": norm,
    }  # fmt: skip


def images(channels, batch=2, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, 12, 12, channels))


@dataclasses.dataclass
class Case:
    f: object
    p: object
    x: object
    ranges: object
    codes: object
    packed: object

    def quantized(self, kernels="native"):
        return q8.quantize(self.f, q8.Config(kernels=kernels), ranges=self.ranges)


CASES: dict[str, Case] = {}


def case(name):
    if name not in CASES:
        f, p, x = NETS[name], weights(), images(CHANNELS[name])
        batches = [(images(CHANNELS[name], seed=s),) for s in (1, 2)]
        ranges = q8.calibrate(f, p, batches, config=NATIVE, progress=False)
        codes = q8.quantize_weights(f, p, x, config=NATIVE, correct=None)
        packed = q8.pack(f, codes, x, config=NATIVE, ranges=ranges)
        CASES[name] = Case(f, p, x, ranges, codes, packed)
    return CASES[name]


def program_of(c, x=None):
    """The collected program of a case, and its regions' arguments for these inputs."""
    call = Call.trace(c.f, (c.packed, c.x if x is None else x), {})
    run = Run(NATIVE, q8.Ranges(c.ranges), call.analyse(NATIVE), Recorder())

    def whole():
        return evaluate_leaves(call, call.consts, call.arguments.given, run)

    return arranged(*traced(whole), EVERY)


def arguments(collected):
    """Each region of a program with the values of its arguments."""
    values = dict(collected.consts)

    def read(atom):
        return values[atom] if not hasattr(atom, "val") else atom.val

    for unit in collected.units:
        if hasattr(unit, "program"):
            given = [jnp.asarray(r.compute(read)) for r in unit.recipes]
            yield unit.program, given
            for variables, array in zip(unit.outputs, in_jax.run(unit.program, given, unpack), strict=True):
                values.update(dict.fromkeys(variables, array))
        else:
            values.update(zip(unit.outvars, unit.run([read(v) for v in unit.invars]), strict=True))


def unpack(step, packed):
    layout = PackedLayout.from_words(calls.layout(step.problem))
    return from_logical(layout.unpack(packed), len(step.kernel))


def alone(program, step):
    """A step as a program of its own, whose arguments are what it reads, dense."""
    numbers = {t: i for i, t in enumerate(dict.fromkeys((*step.reads, *step.writes)))}
    tensors, buffers = [], []
    for place, t in enumerate(numbers):
        old = program.tensors[t]
        tensors.append(rp.Tensor(old.dtype, old.shape, place, 0, rp.dense(old.shape)))
        buffers.append((old.shape, old.dtype))
    reads = len(dict.fromkeys(step.reads))
    moved = {}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if field.name in (
            "src",
            "weights",
            "dst",
            "mult",
            "offset",
            "residual",
            "rescale",
            "shift",
            "a",
            "b",
            "value",
            "border",
        ):
            moved[field.name] = numbers.get(value, value)
        if field.name in ("inputs", "outputs"):
            moved[field.name] = tuple(numbers[t] for t in value)
        if field.name == "spares":
            moved[field.name] = tuple(numbers.get(t, t) for t in value)
    new = dataclasses.replace(step, **moved)
    return rp.Program(tuple(buffers[:reads]), tuple(buffers[reads:]), tuple(tensors), (new,), 0)


def _compare(step, own, want):
    if isinstance(step, steps.Loop):  # where one code differs, so does what comes later
        assert np.linalg.norm(own - want) <= 5e-3 * np.linalg.norm(want)
    elif want.dtype == np.float32:
        np.testing.assert_allclose(own, want, rtol=3e-6, atol=1e-5 * np.abs(want).max())
    elif want.dtype == np.int32 or not isinstance(step, steps.Contract | steps.Elementwise):
        np.testing.assert_array_equal(own, want)
    else:
        off = own.astype(int) - want.astype(int)
        assert np.abs(off).max(initial=0) <= 1
        assert np.count_nonzero(off) <= 2 + 1e-3 * off.size


def checked_steps(collected):
    """Holds every step against pure JAX; returns the kinds of all steps, and how many were compared.

    Integers are equal; a code differs by one where the number before rounding lies on a boundary, as float32 tells.
    """
    kinds, checked = [], 0
    for program, given in arguments(collected):
        run = in_jax.Execution(program, given, unpack)
        for step in program.steps:
            reads = [run.read(t) for t in dict.fromkeys(step.reads)]
            run.step(step)
            kinds.append(type(step))
            if 0 in step.writes or set(step.reads) & set(step.writes):
                continue
            single = alone(program, step)
            shapes = [jax.ShapeDtypeStruct(s, d) for s, d in single.results]
            made = calls.call(single.words(), [jnp.asarray(r) for r in reads], shapes)
            for number, own in zip(step.writes, made, strict=True):
                if number in getattr(step, "spares", ()):
                    continue  # what lies there in the end is of no use
                _compare(step, np.asarray(own), np.asarray(run.read(number)))
            checked += 1
    return kinds, checked


def near_xlas_forms(c):
    """Holds a case against XLA's forms and against float; returns its results, the error of XLA's forms, and exact results."""
    own = jax.jit(c.quantized())(c.packed, c.x)
    other = jax.jit(c.quantized("xla"))(c.codes, c.x)
    exact = c.f(c.p, c.x)
    error = float(jnp.linalg.norm(other - exact))
    assert float(jnp.linalg.norm(own - other)) <= max(error, 1e-6)
    assert float(jnp.linalg.norm(own - exact)) <= 1.1 * error
    return own, error, exact


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_every_step_computes_what_pure_jax_does(name):
    _, checked = checked_steps(program_of(case(name)))
    assert checked > 3


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_the_whole_function_computes_what_xlas_forms_do(name):
    c = case(name)
    own, _, _ = near_xlas_forms(c)
    np.testing.assert_allclose(c.quantized()(c.packed, c.x), own, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_nan_in_the_data_is_nan_in_the_results(name):
    c = case(name)
    x = c.x.at[0, 1, 2, 0].set(jnp.nan)
    own, other = jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(c.codes, x)
    assert bool(jnp.isnan(other).any())
    np.testing.assert_array_equal(np.isnan(own), np.isnan(other))


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_a_plan_shows_regions_of_several_contractions(name):
    c = case(name)
    plan = q8.explain(c.f, c.packed, c.x, config=NATIVE, ranges=c.ranges)
    # A mean of float numbers, which "joined" has before its product, ends a region.
    assert len(plan.native) == (2 if name == "joined" else 1)
    assert sum(len(r.sites) for r in plan.native) == sum(s.eight_bit and s.macs > 0 for s in plan.sites)
    assert f"native: {len(plan.native)} region" in str(plan)


@needs_native
def test_vmap_folds_the_batch_into_one_call_and_keeps_nan_apart():
    c = case("residual")
    x = jnp.stack([images(16, seed=s) for s in range(3)])
    run, mapped = jax.jit(c.quantized()), jax.jit(jax.vmap(c.quantized(), (None, 0)))
    np.testing.assert_array_equal(mapped(c.packed, x), jnp.stack([run(c.packed, a) for a in x]))
    bad = x.at[1, 0, 0, 0, 0].set(jnp.nan)
    results = mapped(c.packed, bad)
    assert [bool(jnp.isnan(r).any()) for r in results] == [False, True, False]
    np.testing.assert_array_equal(results[0], run(c.packed, x[0]))


@needs_native
def test_a_folded_program_is_that_program_for_each_batch():
    ((program, given), *_) = arguments(program_of(case("joined")))
    data = [len(shape) == 4 and shape[0] == 2 for shape, _ in program.args]
    longer = folded(program, 3, data)
    assert longer is not None
    stacked = [
        jnp.concatenate([a, a * 2, a[::-1]]) if flag else a for flag, a in zip(data, given, strict=True)
    ]
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in longer.results]
    whole = calls.call(longer.words(), stacked, shapes)
    small = [jax.ShapeDtypeStruct(s, d) for s, d in program.results]
    for i in range(3):
        part = [jnp.split(a, 3)[i] if flag else a for flag, a in zip(data, stacked, strict=True)]
        for one, many in zip(calls.call(program.words(), part, small), whole, strict=True):
            if many.shape != one.shape:
                np.testing.assert_array_equal(one, jnp.split(many, 3)[i])


@needs_native
def test_a_vector_that_differs_between_batches_cannot_be_folded():
    ((program, _),) = arguments(program_of(case("stem")))
    vectors = [len(shape) == 4 and shape[0] == 1 for shape, _ in program.args]
    assert any(vectors)
    assert folded(program, 2, vectors) is None


@needs_native
@pytest.mark.parametrize("around", ["grad", "scan", "cond", "remat", "eval_shape", "donate", "symbolic"])
def test_native_functions_compose(around):
    c = case("residual")
    run, xla = c.quantized(), c.quantized("xla")
    want = jax.jit(run)(c.packed, c.x)
    if around == "grad":
        own = jax.jit(jax.grad(lambda x: (run(c.packed, x) ** 2).sum()))(c.x)
        np.testing.assert_array_equal(own, jax.jit(jax.grad(lambda x: (run(c.codes, x) ** 2).sum()))(c.x))
    elif around == "scan":
        own = jax.jit(lambda p, x: jax.lax.map(lambda a: run(p, a), x))(c.packed, c.x[None])
        np.testing.assert_array_equal(own[0], want)
    elif around == "cond":
        own = jax.jit(lambda p, x: jax.lax.cond(x.sum() < 1e9, lambda: run(p, x), lambda: -run(p, x)))
        np.testing.assert_array_equal(own(c.packed, c.x), want)
    elif around == "remat":
        np.testing.assert_array_equal(jax.jit(jax.checkpoint(run))(c.packed, c.x), want)
    elif around == "eval_shape":
        assert jax.eval_shape(run, c.packed, c.x).shape == want.shape
    elif around == "donate":
        f = jax.jit(lambda p, x: (run(p, x), x + 1), donate_argnums=1)
        np.testing.assert_array_equal(f(c.packed, c.x + 0)[0], want)
    else:
        (b,) = jax.export.symbolic_shape("b")
        x = jax.ShapeDtypeStruct((b, *c.x.shape[1:]), c.x.dtype)
        assert jax.eval_shape(run, c.packed, x).shape == jax.eval_shape(xla, c.codes, x).shape


@needs_native
def test_another_batch_size_than_packed_for():
    c = case("stem")
    for batch in (1, 5):
        x = images(3, batch)
        own, other = jax.jit(c.quantized())(c.packed, x), jax.jit(c.quantized("xla"))(c.codes, x)
        assert float(jnp.linalg.norm(own - other)) <= 0.05 * float(jnp.linalg.norm(other))


@needs_native
def test_files_give_packed_weights_back_and_exports_take_plain_codes(tmp_path):
    c = case("residual")
    q8.save(tmp_path / "net.q8", c.packed, ranges=c.ranges)
    loaded, ranges, _ = q8.load(tmp_path / "net.q8")
    kinds = [type(leaf) for leaf in jax.tree.leaves(loaded, is_leaf=is_encoded)]
    assert q8.PackedTensor in kinds
    np.testing.assert_array_equal(
        jax.jit(q8.quantize(c.f, NATIVE, ranges=ranges))(loaded, c.x), jax.jit(c.quantized())(c.packed, c.x)
    )
    q8.export(
        tmp_path / "net.q8x", c.f, c.packed, c.x, ranges=c.ranges, platforms=("cpu",), symbolic_batch=False
    )
    other = q8.load_exported(tmp_path / "net.q8x")(c.x)
    plain = jax.jit(q8.quantize(c.f, ranges=c.ranges))(c.codes, c.x)
    np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-4)


@needs_native
def test_ranges_are_found_inside_a_region():
    c = case("residual")
    packed = q8.pack(c.f, c.codes, c.x)
    plan = q8.explain(c.f, packed, c.x)
    (region,) = plan.native
    assert region.contractions == 5
    own, other = jax.jit(q8.quantize(c.f))(packed, c.x), jax.jit(q8.quantize(c.f))(c.codes, c.x)
    np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-3)


@needs_native
def test_packed_weights_without_regions_are_right():
    c = case("residual")
    for config in (q8.Config(kernels="xla"), q8.Config(kernels="reference")):
        run = jax.jit(q8.quantize(c.f, config, ranges=c.ranges))
        np.testing.assert_array_equal(run(c.packed, c.x), run(c.codes, c.x))


WITHOUT = """
import jax.numpy as jnp
import jaxq8 as q8

p, x = {"w": jnp.ones((64, 64))}, jnp.ones((4, 64))
f = lambda p, x: x @ p["w"]
print(q8.native_status().available)
for call in (lambda: q8.pack(f, p, x), lambda: q8.quantize(f, q8.Config(kernels="native"))(p, x)):
    try:
        call()
    except q8.NativeError as error:
        print(error)
"""


def test_without_the_library_pack_says_why(run_python, monkeypatch):
    monkeypatch.setenv("JAXQ8_NATIVE", "off")
    out = run_python(WITHOUT)
    assert out.startswith("False\n")
    assert out.count("JAXQ8_NATIVE") == 2


@needs_native
def test_many_small_regions_are_left_to_xla():
    """Each sort ends a region of two products: "auto" packs for four regions, for five none; "native" packs for all."""
    weights = {f"w{i}": jax.random.normal(jax.random.key(i), (64, 64)) / 8 for i in range(10)}

    def chain(count):
        def f(p, x):
            for i in range(count):
                x = jax.nn.relu(jax.nn.relu(x @ p[f"w{2 * i}"]) @ p[f"w{2 * i + 1}"])
                x = jnp.sort(x, -1)
            return x

        return f

    x = jax.random.normal(jax.random.key(20), (32, 64))
    for count, kernels, expected in ((4, "auto", 4), (5, "auto", 0), (5, "native", 5)):
        f, config = chain(count), q8.Config(kernels=kernels)
        ranges = q8.calibrate(f, weights, [(x,)], config=config, progress=False)
        packed = q8.pack(
            f,
            q8.quantize_weights(f, weights, x, config=config, correct=None),
            x,
            config=config,
            ranges=ranges,
        )
        assert len(q8.explain(f, packed, x, config=config, ranges=ranges).native) == expected


@needs_native
def test_a_function_may_also_return_a_known_number():
    c = case("residual")
    run = jax.jit(q8.quantize(lambda p, x: (c.f(p, x), 2.5), NATIVE, ranges=c.ranges))
    result, number = run(c.packed, c.x)
    assert number == 2.5
    np.testing.assert_array_equal(result, jax.jit(c.quantized())(c.packed, c.x))


@needs_native
def test_shapes_are_enough_to_pack_for():
    c = case("residual")
    shaped = q8.pack(c.f, c.codes, jax.ShapeDtypeStruct(c.x.shape, c.x.dtype), config=NATIVE, ranges=c.ranges)
    assert jax.tree.structure(shaped) == jax.tree.structure(c.packed)


def test_a_program_is_checked_when_it_is_made():
    tensor = rp.Tensor("uint8", (4,), 0, 0, (1,))
    rp.Program((((4,), "uint8"),), (((4,), "uint8"),), (tensor,), (), 0)
    wrong = {
        "leaves its buffer": dataclasses.replace(tensor, offset=1),
        "has no buffer": dataclasses.replace(tensor, place=2),
        "buffer of uint8": dataclasses.replace(tensor, dtype="int8"),
    }
    for text, bad in wrong.items():
        with pytest.raises(TensorError, match=text):
            rp.Program((((4,), "uint8"),), (((4,), "uint8"),), (bad,), (), 0)
    with pytest.raises(TensorError, match="does not exist"):
        rp.Program((((4,), "uint8"),), (((4,), "uint8"),), (tensor,), (steps.Copy(0, 1),), 0)
    with pytest.raises(TensorError, match="into an argument"):
        rp.Program((((4,), "uint8"),), (((4,), "uint8"),), (tensor,), (steps.Copy(0, 0),), 0)


@needs_native
def test_a_weight_of_a_convolution_that_several_products_at_once_read_too():
    def f(p, x):
        y = jax.lax.conv_general_dilated(x, p, [1], "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jnp.einsum("bmk,bkn->bmn", y, p)

    p, x = jnp.eye(8)[None] + 0.1, jnp.arange(16.0).reshape(1, 2, 8)
    codes = q8.quantize_weights(f, p, x, config=NATIVE)
    own = jax.jit(q8.quantize(f, NATIVE))(q8.pack(f, codes, x, config=NATIVE), x)
    np.testing.assert_allclose(own, jax.jit(q8.quantize(f, NATIVE))(codes, x), rtol=1e-5)
