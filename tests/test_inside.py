"""What users put inside functions, hand to them and get from them, beyond layers: right results, or a clear error."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.experimental import io_callback, sparse
from jax.experimental import pallas as pl

import jaxq8 as q8
from tests.small import ALWAYS, PAIR, SQNR_DB, X, assert_equal, dense, fast, normal, sqnr_db
from tests.sweep.data import LEFT, RIGHT

COMPILED = jax.jit(fast)(PAIR, X)


def doubled(x):
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] * 2

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def deeply(x, depth=50):
    return jnp.tanh(x) if depth == 0 else jax.jit(lambda x: deeply(x, depth - 1))(x)


INSIDE = {
    "pure_callback": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    "io_callback": lambda x: io_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, ordered=True),
    "pallas": doubled,
    "fft": lambda x: jnp.fft.ifft(jnp.fft.fft(x) * 2).real,
    "complex": lambda x: (x.astype(jnp.complex64) @ (jnp.eye(64) * 1j)).imag,
    "fifty nested jits": deeply,
    "sparse": lambda x: (sparse.BCOO.fromdense(jnp.eye(64), nse=64) @ x.T).T,
    "derivative": lambda x: jax.grad(lambda a: (jnp.tanh(a) ** 2).sum())(x),
}


@pytest.mark.parametrize("name", INSIDE)
def test_between_two_layers(name):
    def fn(variables, x):
        return INSIDE[name](x @ variables["w"]) @ variables["v"]

    assert sqnr_db(fn(PAIR, X), jax.jit(q8.quantize(fn, ALWAYS))(PAIR, X)) > SQNR_DB
    layers = [s for s in q8.explain(fn, PAIR, X, config=ALWAYS).sites if s.name in ("w:dot", "v:dot")]
    assert [s.eight_bit for s in layers] == [True, True]


def test_effects_happen_once_and_return_nothing(capfd):
    seen = []

    def fn(variables, x):
        h = x @ variables["w"]
        jax.debug.callback(lambda total: seen.append(float(total)), h.sum())
        jax.debug.print("sum {}", h.sum())
        return jnp.tanh(h) @ variables["v"]

    found = jax.jit(q8.quantize(fn, ALWAYS))(PAIR, X)
    jax.effects_barrier()
    assert_equal(COMPILED, found)
    assert len(seen) == 1
    assert capfd.readouterr().out.count("sum ") == 1


def test_python_side_effects_happen_once():
    calls = []
    fn = q8.quantize(lambda variables, x: calls.append(x.shape) or dense(variables, x), ALWAYS)
    fn(PAIR, X)
    assert calls == [(16, 32)]


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


KERNELS, IMAGES = {"a": normal(3, 3, 4, 8), "b": normal(3, 3, 4, 8)[::-1]}, normal(2, 6, 6, 4)


@pytest.mark.parametrize("static", [False, True])
def test_two_convolutions_of_one_argument(static):
    def fn(variables, x):
        return conv(x, variables["a"]) * conv(x, variables["b"])

    ranges = q8.calibrate(fn, KERNELS, [IMAGES], config=ALWAYS, progress=False) if static else None
    found = jax.jit(q8.quantize(fn, ALWAYS, ranges=ranges))(KERNELS, IMAGES)
    assert sqnr_db(fn(KERNELS, IMAGES), found) > SQNR_DB


def test_a_training_step_inside():
    def gradients(variables, x):
        return jax.grad(lambda v: (conv(x, v["a"]) ** 2).sum())(variables)

    assert (
        sqnr_db(gradients(KERNELS, IMAGES), jax.jit(q8.quantize(gradients, ALWAYS))(KERNELS, IMAGES))
        > SQNR_DB
    )


def test_a_padded_result_stays_exact_and_a_padded_input_has_the_range_of_its_reader():
    """Padding moves codes where a later site needs them, and costs nothing where none does."""
    padded = lambda x: jnp.pad(x @ RIGHT, 2)  # noqa: E731
    np.testing.assert_array_equal(padded(LEFT), jax.jit(q8.quantize(padded, ALWAYS))(LEFT))

    def fn(variables, x):
        bordered = jnp.pad(conv(x, variables["a"]), ((0, 0), (2, 2), (2, 2), (0, 0)))
        return conv(bordered, variables["c"])

    variables = {**KERNELS, "c": normal(3, 3, 8, 8)}
    ranges = q8.calibrate(fn, variables, [IMAGES], config=ALWAYS, progress=False)
    assert list(ranges) == ["a:conv", "c:conv"]
    narrow = q8.Ranges({**ranges, "c:conv": q8.Range(-1e-6, 1e-6)})
    found = jax.jit(q8.quantize(fn, ALWAYS, ranges=narrow))(variables, IMAGES)
    assert jnp.abs(found).max() < 1e-3  # the range given to the reader is that of its padded input


def test_windows_of_a_constant_signal_are_no_table():
    signal = normal(64)

    def fn(x):
        windows = signal[jnp.arange(7)[:, None] * 8 + jnp.arange(16)]
        return x.sum() * windows, jax.vmap(lambda i: lax.dynamic_slice(signal, (i,), (16,)))(jnp.arange(4))

    assert_equal(jax.jit(fn)(X), jax.jit(q8.quantize(fn, ALWAYS))(X))


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.int4, jnp.int8, jnp.bool_])
def test_narrow_inputs(dtype):
    x = jnp.clip(X * 3, -8, 7).astype(dtype)
    cast = lambda variables, x: dense(variables, x.astype(jnp.float32))  # noqa: E731
    assert sqnr_db(cast(PAIR, x), jax.jit(q8.quantize(cast, ALWAYS))(PAIR, x)) > SQNR_DB


def test_narrow_weights():
    narrow = jax.tree.map(lambda w: w.astype(jnp.float8_e4m3fn), PAIR)
    cast = lambda v, x: dense(jax.tree.map(lambda w: w.astype(jnp.float32), v), x)  # noqa: E731
    for variables in (narrow, q8.quantize_weights(cast, narrow, X, config=ALWAYS)):
        assert sqnr_db(cast(narrow, X), jax.jit(q8.quantize(cast, ALWAYS))(variables, X)) > SQNR_DB


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    w: jax.Array
    v: jax.Array
    kind: str = dataclasses.field(metadata={"static": True}, default="tanh")


def test_variables_in_a_dataclass():
    fn = lambda net, x: getattr(jnp, net.kind)(x @ net.w) @ net.v  # noqa: E731
    encoded = q8.quantize_weights(fn, Net(**PAIR), X, config=ALWAYS)
    assert isinstance(encoded.w, q8.QTensor)
    assert_equal(COMPILED, jax.jit(q8.quantize(fn, ALWAYS))(encoded, X))


def test_what_is_no_array_among_the_variables_stays_what_it_is():
    variables = {**PAIR, "name": "net", "none": None, "count": 3, "object": Net, "key": jax.random.key(0)}

    def fn(variables, x):
        assert variables["name"] == "net"
        return dense(variables, x) * variables["count"] + jax.random.uniform(variables["key"]) * 0

    encoded = q8.quantize_weights(fn, variables, X, config=ALWAYS)
    assert {k for k, leaf in encoded.items() if isinstance(leaf, q8.QTensor)} == {"w", "v"}
    for given in (variables, encoded):
        assert sqnr_db(3 * COMPILED, q8.quantize(fn, ALWAYS)(given, X)) > 60


class Model:
    """A class of a user's own, with all the ways to be a function."""

    def __call__(self, x):
        return dense(PAIR, x)

    def apply(self, variables, x):
        return dense(variables, x)

    @classmethod
    def of_class(cls, variables, x):
        return dense(variables, x)

    @functools.partial(q8.quantize, config=ALWAYS)
    def decorated(self, variables, x):
        return dense(variables, x)


def test_methods_partials_and_callable_objects_are_functions():
    whole = [
        q8.quantize(f, ALWAYS)(X) for f in (Model(), functools.partial(dense, PAIR), lambda x: dense(PAIR, x))
    ]
    parts = [q8.quantize(f, ALWAYS)(PAIR, X) for f in (Model().apply, Model.of_class)]
    for found in (*whole, *parts, Model().decorated(PAIR, X)):
        assert sqnr_db(COMPILED, found) > 60


def test_nnx_modules_are_functions_and_variables():
    model = nnx.Linear(32, 64, rngs=nnx.Rngs(0))
    call = lambda model, x: model(x)  # noqa: E731
    expected = q8.quantize(model, ALWAYS)(X)
    assert sqnr_db(model(X), expected) > SQNR_DB
    encoded = q8.quantize_weights(call, model, X, config=ALWAYS)
    for given in (model, encoded):
        assert sqnr_db(expected, jax.jit(q8.quantize(call, ALWAYS))(given, X)) > 60


def test_results_of_every_structure():
    fn = q8.quantize(lambda v, x: {"a": dense(v, x), "none": None, "n": (3, [2.5])}, ALWAYS)
    found = fn(PAIR, X)
    assert found["none"] is None
    assert (int(found["n"][0]), float(found["n"][1][0])) == (3, 2.5)
    assert q8.quantize(lambda v, x: [dense(v, x), None][1], ALWAYS)(PAIR, X) is None


@pytest.mark.parametrize("function", [dense, lambda v, x: x])
def test_results_that_are_no_arrays_are_an_error(function):
    fn = q8.quantize(lambda v, x: {"logits": function(v, x), "label": "cat"}, ALWAYS)
    with pytest.raises(q8.ArgumentError, match="returned a str at label: results are arrays and numbers"):
        fn(PAIR, X)


def test_ensembles_with_encoded_weights():
    many = jax.tree.map(lambda w: jnp.stack([w, 2 * w, w[::-1]]), PAIR)
    ensemble = jax.vmap(dense, (0, None))
    encoded = q8.quantize_weights(ensemble, many, X, config=ALWAYS)
    assert encoded["w"].scale.shape == (3, 1, 64)
    for f in (q8.quantize(ensemble, ALWAYS), jax.vmap(fast, (0, None))):
        assert sqnr_db(ensemble(many, X), jax.jit(f)(encoded, X)) > SQNR_DB


def test_keys_go_through_loops():
    def fn(variables, x, keys):
        step = lambda h, key: (h + jax.random.normal(key, h.shape) * dense(variables, h), key)  # noqa: E731
        return lax.scan(step, x, keys)

    keys = jax.random.split(jax.random.key(0), 3)
    expected, found = (jax.jit(f)(PAIR, X, keys) for f in (fn, q8.quantize(fn, ALWAYS)))
    assert sqnr_db(expected[0], found[0]) > 25  # three steps, each fed with the rounded result of the last
    assert_equal(jax.random.key_data(expected[1]), jax.random.key_data(found[1]))
