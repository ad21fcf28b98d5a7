"""`quantize` on what Flax adds to functions: mutable collections, dropout, caches, lifted transformations, NNX modules."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxq8 as q8
from tests.small import ALWAYS, BOUNDARY_DB, SQNR_DB, X, assert_equal, grad, loss, normal, sqnr_db

KEY = jax.random.key(0)


def share(fn, *args, **kwargs) -> float:
    return q8.explain(fn, *args, config=ALWAYS, **kwargs).eight_bit_share


class Net(nn.Module):
    """Dense, batch norm, relu, dropout, dense."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x)))
        return nn.Dense(32)(nn.Dropout(0.5, deterministic=not train)(x))


NET = Net()
VARIABLES = NET.init(KEY, X)


def test_mutable_batch_stats_come_back_as_in_float():
    def train(variables, x, key):
        return NET.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})

    expected, found = (jax.jit(f)(VARIABLES, X, KEY) for f in (train, q8.quantize(train, ALWAYS)))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    assert sqnr_db(expected[0], found[0]) > SQNR_DB
    assert sqnr_db(expected[1], found[1]) > SQNR_DB
    assert share(train, VARIABLES, X, KEY) == 1.0


def test_keyword_arguments_of_apply_reach_it():
    output, state = q8.quantize(NET.apply, ALWAYS)(
        VARIABLES, X, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    assert output.shape == (16, 32)
    assert list(state) == ["batch_stats"]


def test_dropout_in_evaluation_needs_and_changes_nothing():
    fast = q8.quantize(NET.apply, ALWAYS)
    assert_equal(fast(VARIABLES, X), fast(VARIABLES, X, train=False, rngs={"dropout": KEY}))


def test_captured_intermediates_are_real_numbers():
    arguments = {"capture_intermediates": True, "mutable": ["intermediates"]}
    expected, found = (f(VARIABLES, X, **arguments) for f in (NET.apply, q8.quantize(NET.apply, ALWAYS)))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    assert sqnr_db(expected, found) > SQNR_DB


class Layer(nn.Module):
    """A residual layer in the form that `nn.scan` wants."""

    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(32)(x)) + x, None


class Scanned(nn.Module):
    """Three layers with stacked weights."""

    remat: bool = False

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(Layer) if self.remat else Layer
        return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)[
            0
        ]


class Unrolled(nn.Module):
    """The same three layers one after the other."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x, _ = Layer(name=str(i))(x, None)
        return x


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_equal_unrolled_ones(remat):
    module = Scanned(remat)
    variables = module.init(KEY, X)
    (stack,) = variables["params"].values()
    apart = {"params": {str(i): jax.tree.map(lambda w, i=i: w[i], stack) for i in range(3)}}
    fast = jax.jit(q8.quantize(module.apply, ALWAYS))
    found = fast(variables, X)
    assert sqnr_db(jax.jit(q8.quantize(Unrolled().apply, ALWAYS))(apart, X), found) > BOUNDARY_DB
    assert share(module.apply, variables, X) == 1.0
    encoded = q8.quantize_weights(module.apply, variables, X, config=ALWAYS)
    assert sqnr_db(found, fast(encoded, X)) > BOUNDARY_DB
    exact, rounded = (grad(loss(f))(variables, X) for f in (module.apply, q8.quantize(module.apply, ALWAYS)))
    assert sqnr_db(exact, rounded) > 25  # three layers of the forward pass and three of the backward one


@pytest.mark.parametrize(
    "cell", [nn.SimpleCell(48), nn.LSTMCell(48), nn.OptimizedLSTMCell(48), nn.GRUCell(48), nn.ConvLSTMCell(16, (3, 3))],
    ids=lambda c: type(c).__name__,
)  # fmt: skip
def test_recurrent_cells_equal_their_unrolled_form(cell):
    images = isinstance(cell, nn.ConvLSTMCell)
    x = normal(2, 4, 8, 8, 16) if images else normal(2, 4, 32)
    looped, straight = nn.RNN(cell), nn.RNN(cell, unroll=4)
    variables = looped.init(KEY, x)
    found = jax.jit(q8.quantize(looped.apply, ALWAYS))(variables, x)
    assert sqnr_db(looped.apply(variables, x), found) > SQNR_DB
    assert sqnr_db(jax.jit(q8.quantize(straight.apply, ALWAYS))(variables, x), found) > BOUNDARY_DB
    assert share(looped.apply, variables, x) == 1.0


def test_a_cache_goes_through_steps_of_decoding():
    module = nn.MultiHeadDotProductAttention(4, qkv_features=32, decode=True)
    x = normal(2, 6, 32)
    variables = module.init(KEY, x, x)

    def step(variables, token):
        return module.apply(variables, token, token, mutable=["cache"])

    def decoded(step):
        state, outputs = variables, []
        for t in range(6):
            y, changed = step(state, x[:, t : t + 1])
            state = {**state, **changed}
            outputs.append(y)
        return jnp.concatenate(outputs, 1), state["cache"]

    (expected, cache), (found, found_cache) = (decoded(jax.jit(f)) for f in (step, q8.quantize(step, ALWAYS)))
    assert sqnr_db(expected, found) > SQNR_DB
    assert sqnr_db(cache["cached_key"], found_cache["cached_key"]) > SQNR_DB
    assert int(found_cache["cache_index"]) == 6


def test_vmapped_modules_have_scales_for_each_copy():
    many = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0)(64)
    x = normal(3, 16, 32)
    variables = many.init(KEY, x)
    encoded = q8.quantize_weights(many.apply, variables, x, config=ALWAYS)
    assert encoded["params"]["kernel"].scale.shape == (3, 1, 64)
    assert sqnr_db(many.apply(variables, x), jax.jit(q8.quantize(many.apply, ALWAYS))(encoded, x)) > SQNR_DB


class NnxNet(nnx.Module):
    """Linear, batch norm, relu, dropout, linear."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.last = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(64, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


@pytest.fixture
def net():
    model = NnxNet(nnx.Rngs(0))
    model.eval()
    return model


def test_nnx_jit_around(net):
    expected = net(X)
    assert sqnr_db(expected, nnx.jit(q8.quantize(lambda model, x: model(x), ALWAYS))(net, X)) > SQNR_DB

    @nnx.jit
    def run(model, x):
        graph, state = nnx.split(model)
        return q8.quantize(lambda state, x: nnx.merge(graph, state)(x), ALWAYS)(state, x)

    assert sqnr_db(expected, run(net, X)) > SQNR_DB


def test_nnx_jit_inside(net):
    graph, state = nnx.split(net)

    def fn(state, x):
        return nnx.jit(lambda model, x: model(x))(nnx.merge(graph, state), x)

    assert share(fn, state, X) == 1.0
    assert sqnr_db(net(X), jax.jit(q8.quantize(fn, ALWAYS))(state, X)) > SQNR_DB


def test_nnx_state_that_changes_is_a_result():
    graph, state = nnx.split(NnxNet(nnx.Rngs(0)))

    def train(state, x):
        model = nnx.merge(graph, state)
        return model(x), nnx.state(model)

    expected, found = (jax.jit(f)(state, X) for f in (train, q8.quantize(train, ALWAYS)))
    assert sqnr_db(expected[0], found[0]) > SQNR_DB
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    assert sqnr_db(expected[1].norm.mean[...], found[1].norm.mean[...]) > SQNR_DB


class NnxStack(nnx.Module):
    """Three layers with stacked weights, run by `nnx.scan` or by a loop."""

    def __init__(self, rngs: nnx.Rngs):
        make = nnx.vmap(lambda rngs: nnx.Linear(32, 32, rngs=rngs), in_axes=(0,), out_axes=0)
        self.layers = make(rngs.split(3))

    def __call__(self, x):
        step = nnx.scan(lambda layer, x: jnp.tanh(layer(x)) + x, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return step(self.layers, x)


def test_nnx_scan_equals_unrolled_layers():
    model = NnxStack(nnx.Rngs(0))
    graph, state = nnx.split(model)

    def looped(state, x):
        return nnx.merge(graph, state)(x)

    def straight(state, x):
        for kernel, bias in zip(state.layers.kernel[...], state.layers.bias[...], strict=True):
            x = jnp.tanh(x @ kernel + bias) + x
        return x

    expected, found = (jax.jit(q8.quantize(f, ALWAYS))(state, X) for f in (straight, looped))
    assert sqnr_db(expected, found) > BOUNDARY_DB
    assert sqnr_db(model(X), found) > SQNR_DB
    encoded = q8.quantize_weights(looped, state, X, config=ALWAYS)
    assert sqnr_db(found, jax.jit(q8.quantize(looped, ALWAYS))(encoded, X)) > BOUNDARY_DB
