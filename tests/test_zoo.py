"""The models that other tests and the benchmarks build on are alive: neither vanishing nor exploding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.zoo import FULL, TINY, ZOO
from tests.zoo.cnn import ResNet
from tests.zoo.inputs import images
from tests.zoo.weights import settled

KEY = jax.random.key(0)


def _floats(tree):
    return [np.asarray(x) for x in jax.tree_util.tree_leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize("name", TINY)
def test_tiny_model_runs_and_is_alive(name):
    apply, variables, inputs = ZOO[name].build(KEY)
    outputs = _floats(jax.jit(apply)(variables, *inputs))
    assert all(np.isfinite(y).all() for y in outputs)
    assert 0.05 < np.std(outputs[0]) < 20


@pytest.mark.parametrize("name", TINY)
def test_examples_of_a_batch_differ(name):
    apply, variables, inputs = ZOO[name].build(KEY, batch=3)
    output = _floats(jax.jit(apply)(variables, *inputs))[0]
    assert output.shape[0] == 3
    assert np.std(output, axis=0).mean() > 0.05 * np.std(output)


@pytest.mark.parametrize("name", TINY)
def test_same_key_gives_the_same_model(name):
    first, second = ZOO[name].build(KEY), ZOO[name].build(KEY)
    jax.tree.map(np.testing.assert_array_equal, first[1:], second[1:])


# Published counts of the trained networks: parameters without batch norm statistics.
PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "inception_v3": 23_817_352,
    "convnext_tiny": 28_589_128,
    "efficientnet_b0": 5_288_548,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_real_shapes_have_the_published_number_of_parameters(name):
    entry = ZOO[name]
    inputs = jax.eval_shape(lambda key: entry.inputs(key, 1), KEY)
    shapes = jax.eval_shape(entry.module.init, KEY, *inputs)["params"]
    # Inception's count here has the scale of batch norm, which Keras' leaves out.
    scales = sum(x.size for p, x in jax.tree_util.tree_leaves_with_path(shapes) if "scale" in str(p[-1]))
    count = sum(x.size for x in jax.tree_util.tree_leaves(shapes))
    assert count - (scales if name == "inception_v3" else 0) == PARAMETERS[name]


@pytest.mark.parametrize("name", FULL)
def test_full_model_traces(name):
    entry = ZOO[name]
    inputs = jax.eval_shape(lambda key: entry.inputs(key, 2), KEY)
    shapes = jax.eval_shape(entry.module.init, KEY, *inputs)
    output = jax.tree_util.tree_leaves(jax.eval_shape(entry.module.apply, shapes, *inputs))[0]
    assert (output.shape[0], output.dtype) == (2, jnp.float32)


def test_statistics_keep_a_deep_network_alive():
    module = ResNet(stages=(2, 6), width=8, classes=10)
    variables = settled(module, 0, images(32, 32))
    x = images(32, 32)(jax.random.key(7), 2)[0]
    _, state = module.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    blocks = {k: v for k, v in state["intermediates"].items() if k.startswith("stage")}
    deviations = [float(jnp.std(block["__call__"][0])) for block in blocks.values()]
    assert len(deviations) == 8
    assert min(deviations) > 0.1
    assert max(deviations) < 10
