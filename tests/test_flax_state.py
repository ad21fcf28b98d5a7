"""`flax.serialization` and quantized variables: bit for bit there and back, and what a wrong target says."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.core import freeze
from flax.training.train_state import TrainState

import jaxq8 as q8
from tests.small import ALWAYS, PAIR, X, assert_equal, dense, normal

SPECS = {
    "eight bits": q8.Spec(symmetric=True, granularity="channel"),
    "unsigned": q8.Spec(granularity="tensor"),
    "four bits in groups": q8.Spec(bits=4, symmetric=True, granularity="group", group=8),
    "code book": q8.Spec(bits=3, levels="kmeans", granularity="channel"),
}


def encoded(spec: q8.Spec = SPECS["eight bits"], variables=PAIR):
    config = dataclasses.replace(ALWAYS, weights=spec)
    return q8.quantize_weights(dense, variables, X, config=config)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [*((spec, "float32") for spec in SPECS), ("eight bits", "bfloat16"), ("code book", "float16")],
)
def test_bytes_there_and_back(spec, dtype):
    variables = encoded(SPECS[spec], jax.tree.map(lambda x: x.astype(dtype), PAIR))
    assert all(isinstance(leaf, q8.QTensor | q8.CodeBook) for leaf in variables.values())
    target = jax.tree.map(jnp.zeros_like, variables)
    found = serialization.from_bytes(target, serialization.to_bytes(variables))
    assert_equal(variables, found)  # the structure has the static fields: bits, symmetric, dtype
    assert found["w"].dtype == np.dtype(dtype)
    leaves = zip(jax.tree.leaves(variables), jax.tree.leaves(found), strict=True)
    assert all(a.dtype == b.dtype for a, b in leaves)
    assert_equal(dense_in_eight_bits(variables), dense_in_eight_bits(found))


def dense_in_eight_bits(variables):
    return jax.jit(q8.quantize(dense, ALWAYS))(variables, X)


def test_a_state_names_every_field():
    state = serialization.to_state_dict(encoded())["w"]
    fields = {field.name for field in dataclasses.fields(q8.QTensor)}
    assert set(state) == fields
    assert (state["bits"], state["symmetric"], state["dtype"]) == (8, True, "float32")
    restored = serialization.msgpack_restore(serialization.msgpack_serialize(state))
    assert restored["values"].dtype == np.int8
    assert restored["dtype"] == "float32"


def test_shapes_serve_as_a_target():
    variables = encoded()
    target = jax.eval_shape(lambda: encoded())
    assert_equal(variables, serialization.from_bytes(target, serialization.to_bytes(variables)))


def test_states_of_training_with_encoded_variables():
    """As `flax.training.checkpoints` does it: a TrainState to bytes, frozen dicts and optimizer states in it."""
    frozen = freeze({"params": encoded()})
    head = {"head": normal(32, 4)}
    state = TrainState.create(apply_fn=dense, params={"base": frozen, "head": head}, tx=optax.sgd(0.1, 0.9))
    later = state.replace(step=7, params={"base": frozen, "head": {"head": 2 * head["head"]}})
    found = serialization.from_bytes(state, serialization.to_bytes(later))
    assert_equal(later.params, found.params)
    assert_equal(later.opt_state, found.opt_state)
    assert int(found.step) == 7


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(32)(nn.relu(nn.Dense(64)(x)))


def test_variables_of_a_linen_module():
    net = Net()
    variables = q8.quantize_weights(net.apply, net.init(jax.random.key(0), X), X, config=ALWAYS)
    found = serialization.from_state_dict(variables, serialization.to_state_dict(variables))
    assert_equal(variables, found)


def test_a_state_without_a_later_field_takes_the_targets():
    variables = encoded()
    state = serialization.to_state_dict(variables)
    del state["w"]["symmetric"]
    assert_equal(variables, serialization.from_state_dict(variables, state))


WRONG = {
    "another width": (
        lambda: encoded(dataclasses.replace(SPECS["eight bits"], bits=4)),
        "net/v: bits 8 in the state and 4 in the target; restore into variables of the same model",
    ),
    "another model": (
        lambda: encoded(variables={"w": PAIR["w"][:, :48], "v": PAIR["v"][:48]}),
        r"net/v: values int8\[64, 32\] in the state and int8\[48, 32\] in the target; restore",
    ),
    "another granularity": (
        lambda: encoded(dataclasses.replace(SPECS["eight bits"], granularity="tensor")),
        r"net/v: scale float32\[1, 32\] in the state and float32\[1, 1\] in the target",
    ),
    "code books": (
        lambda: encoded(SPECS["code book"]),
        "net/v: the state has values, scale, .* the target's CodeBook has indices, book, scale; restore into",
    ),
    "another dtype": (
        lambda: encoded(variables=jax.tree.map(lambda x: x.astype("bfloat16"), PAIR)),
        "net/v: dtype float32 in the state and bfloat16 in the target",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_target_is_named(wrong):
    target, message = WRONG[wrong]
    saved = serialization.to_bytes({"net": encoded()})
    with pytest.raises(q8.TensorError, match=rf"^flax\.serialization: {message}"):
        serialization.from_bytes({"net": target()}, saved)


def test_bytes_of_float_variables_are_named():
    with pytest.raises(
        q8.TensorError, match=r"v: the state holds float32\[64, 32\], the target a QTensor; restore float"
    ):
        serialization.from_bytes(encoded(), serialization.to_bytes(PAIR))


IMPORTS = """
import sys
{first}
{second}
import numpy as np
tensor = jaxq8.QTensor.from_float(np.float32([-1, 0, 2]))
from flax import serialization
found = serialization.from_bytes(tensor, serialization.to_bytes(tensor))
assert (found.values == np.asarray(tensor.values)).all() and found.bits == 8
"""


@pytest.mark.parametrize("order", [("import flax", "import jaxq8"), ("import jaxq8", "import flax")])
def test_either_may_be_imported_first(order, run_python):
    run_python(IMPORTS.format(first=order[0], second=order[1]))


def test_flax_is_imported_by_nobody_but_its_users(run_python):
    """Nor does asking whether Flax's module exists keep it from being entered later."""
    run_python(
        "import sys, importlib.util, jaxq8\n"
        "assert not any(name.split('.')[0] == 'flax' for name in sys.modules)\n"
        "import flax.core\n"
        + IMPORTS.format(first="import jaxq8", second="import inspect")
        + "assert 'def to_bytes' in inspect.getsource(serialization)\n"
    )
    run_python(
        "import sys, types, importlib.util, jaxq8\n"
        "package = types.ModuleType('flax')\n"
        "package.__path__ = [next(iter(importlib.util.find_spec('flax').submodule_search_locations))]\n"
        "sys.modules['flax'] = package\n"
        "assert importlib.util.find_spec('flax.serialization') is not None\n"
        "from flax import serialization\n"
        "assert serialization.is_serializable(jaxq8.QTensor)\n"
    )
