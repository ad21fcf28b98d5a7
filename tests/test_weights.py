"""Which leaves become codes, with which scales, and what they cost in memory."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.numerics.qtensor import is_qtensor
from tests.zoo import ZOO


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32))


def encoded(fn, variables, *inputs, **settings):
    """``path -> leaf`` of the encoded variables."""
    tree = q8.quantize_weights(fn, variables, *inputs, config=q8.Config(**settings), correct=None)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_qtensor)
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in flat}


def scale_shapes(leaves) -> dict[str, tuple[int, ...]]:
    return {path: leaf.scale.shape for path, leaf in leaves.items() if isinstance(leaf, q8.QTensor)}


def linen(module: nn.Module, x: jax.Array):
    return module.apply, module.init(jax.random.key(0), x), x


LAYERS = {
    "Dense": (nn.Dense(32), (2, 24), {"params/kernel": (1, 32)}),
    "Conv HWIO": (nn.Conv(16, (3, 3)), (1, 8, 8, 8), {"params/kernel": (1, 1, 1, 16)}),
    "Conv 1-D": (nn.Conv(16, (5,)), (1, 9, 8), {"params/kernel": (1, 1, 16)}),
    "depthwise": (
        nn.Conv(32, (3, 3), feature_group_count=32),
        (1, 8, 8, 32),
        {"params/kernel": (1, 1, 1, 32)},
    ),
    "ConvTranspose": (nn.ConvTranspose(16, (3, 3)), (1, 8, 8, 8), {"params/kernel": (1, 1, 1, 16)}),
    "DenseGeneral": (nn.DenseGeneral((4, 8)), (2, 24), {"params/kernel": (1, 4, 8)}),
    "DenseGeneral of two axes": (
        nn.DenseGeneral(24, axis=(-2, -1)),
        (2, 4, 8),
        {"params/kernel": (1, 1, 24)},
    ),
    "attention": (
        nn.MultiHeadDotProductAttention(4),
        (2, 5, 32),
        {
            **{f"params/{part}/kernel": (1, 4, 8) for part in ("query", "key", "value")},
            "params/out/kernel": (1, 1, 32),
        },
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_keep_a_scale_for_each_output_and_floating_point_biases(layer):
    module, shape, expected = LAYERS[layer]
    fn, variables, x = linen(module, normal(*shape))
    leaves = encoded(fn, variables, x, kernels="xla")
    assert scale_shapes(leaves) == expected
    assert all(leaf.dtype == jnp.float32 for path, leaf in leaves.items() if path.endswith("bias"))
    assert any(path.endswith("bias") for path in leaves)


def test_codes_are_symmetric_and_within_half_a_step():
    w = normal(48, 40)
    leaf = encoded(lambda v, x: x @ v["w"], {"w": w}, normal(3, 48))["w"]
    assert (leaf.values.dtype, leaf.symmetric, leaf.bits) == (jnp.int8, True, 8)
    assert int(jnp.max(jnp.abs(leaf.values))) == 127
    np.testing.assert_allclose(leaf.scale[0], np.max(np.abs(w), axis=0) / 127, rtol=1e-6)
    assert np.all(
        np.abs(leaf.dequantize() - w) <= 0.5001 * leaf.scale
    )  # 1e-4: rounding of the division itself


def test_embedding_keeps_a_scale_for_each_row():
    fn, variables, ids = nn.Embed(50, 16).apply, {"params": {"embedding": normal(50, 16)}}, jnp.arange(6)
    assert scale_shapes(encoded(fn, variables, ids)) == {"params/embedding": (50, 1)}


def test_tied_embedding_has_scales_that_suit_look_up_and_logits():
    """Rows are what the look-up picks and what the logits do not sum over."""
    fn, variables, inputs = ZOO["tiny_tied"].build(jax.random.key(0))
    shapes = scale_shapes(encoded(fn, variables, *inputs, kernels="xla"))
    assert shapes["params/Embed_0/embedding"] == (96, 1)


LAYOUTS = {
    "transposed": ((32, 24), lambda w: w.T, (32, 1)),
    "reshaped, outputs split": ((24, 4, 8), lambda w: w.reshape(24, 32), (1, 4, 8)),
    "reshaped, inputs split": ((4, 6, 32), lambda w: w.reshape(24, 32), (1, 1, 32)),
    "reshaped and transposed": ((4, 8, 24), lambda w: w.reshape(32, 24).T, (4, 8, 1)),
    "sliced": ((30, 32), lambda w: w[3:27], (1, 32)),
    "one of a stack": ((3, 24, 32), lambda w: w[1], (3, 1, 32)),
    "with an axis of one": ((24, 1, 32), lambda w: w[:, 0], (1, 1, 32)),
    "another float type and back": ((24, 32), lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), (1, 32)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_follow_a_weight_through_layout(layout):
    shape, arrange, expected = LAYOUTS[layout]
    w, x = normal(*shape), normal(2, 24)

    def fn(v, x):
        return x @ arrange(v["w"])

    assert scale_shapes(encoded(fn, {"w": w}, x, kernels="xla")) == {"w": expected}
    exact, found = fn({"w": w}, x), q8.quantize(fn, q8.Config(kernels="xla"))({"w": w}, x)
    # Two operands of 24 terms with errors of half a step: at most 24 * (half a step of x * |w| + of w * |x|).
    half_steps = float(jnp.ptp(x)) / 510 * 4 + float(jnp.max(jnp.abs(w))) / 254 * 4
    np.testing.assert_allclose(found, exact, atol=24 * half_steps)


def test_a_concatenation_of_weights_makes_weights_of_all():
    parts = {name: normal(24, 32) for name in ("query", "key")}
    leaves = encoded(lambda v, x: x @ jnp.concatenate([v["query"], v["key"]], 1), parts, normal(2, 24))
    assert scale_shapes(leaves) == {"key": (1, 32), "query": (1, 32)}


def test_scanned_weights_keep_scales_for_each_layer():
    def fn(v, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["layers"])[0]

    leaves = encoded(fn, {"layers": normal(5, 32, 32)}, normal(8, 32))
    assert scale_shapes(leaves) == {"layers": (5, 1, 32)}


def test_what_is_not_multiplied_stays_as_it_is():
    variables = {"w": normal(32, 32), "shift": normal(32, 32), "table": jnp.arange(1024).reshape(32, 32)}
    leaves = encoded(lambda v, x: x @ v["w"] + v["shift"] + v["table"], variables, normal(32, 32))
    assert isinstance(leaves["w"], q8.QTensor)
    assert leaves["shift"] is variables["shift"]
    assert leaves["table"] is variables["table"]


def test_sites_that_are_off_keep_their_weights_in_float():
    variables = {"a": normal(32, 32), "b": normal(32, 32)}
    config = {"overrides": (("a:dot", {"mode": "off"}),)}
    leaves = encoded(lambda v, x: (x @ v["a"]) @ v["b"], variables, normal(32, 32), **config)
    assert leaves["a"] is variables["a"]
    assert isinstance(leaves["b"], q8.QTensor)


def test_bits_and_granularity_of_the_configuration():
    spec = q8.Spec(bits=4, symmetric=True, granularity="tensor")
    leaf = encoded(lambda v, x: x @ v["w"], {"w": normal(32, 32)}, normal(8, 32), weights=spec)["w"]
    assert (leaf.bits, leaf.scale.shape) == (4, (1, 1))
    assert int(jnp.max(jnp.abs(leaf.values))) == 7


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_encoder", "tiny_lstm", "tiny_nnx"])
def test_the_tree_keeps_its_structure_and_shapes(name):
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    tree = q8.quantize_weights(fn, variables, *inputs, config=q8.Config(kernels="xla"))
    same = jax.tree.map(
        lambda q, a: q.shape == a.shape and q.dtype == a.dtype, tree, variables, is_leaf=is_qtensor
    )
    assert jax.tree.structure(same) == jax.tree.structure(variables)
    assert all(jax.tree.leaves(same))


def test_encoding_twice_changes_nothing():
    fn, variables, x = (lambda v, x: x @ v["w"]), {"w": normal(32, 32)}, normal(8, 32)
    once = q8.quantize_weights(fn, variables, x)
    assert q8.quantize_weights(fn, once, x)["w"] is once["w"]


class Realistic(nn.Module):
    """Convolutions and matrix products of the sizes of a small image network."""

    @nn.compact
    def __call__(self, x):
        for features in (64, 128, 256):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2)(x))
        return nn.Dense(1000)(nn.relu(nn.Dense(1024)(x.mean((1, 2)))))


def test_bytes_are_a_quarter():
    """One byte for four, plus 8 bytes of scale and zero point for each column of at least 64 * 9 weights, plus biases."""
    module, x = Realistic(), jnp.zeros((1, 64, 64, 32))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: normal(*s.shape), shapes)
    tree = q8.quantize_weights(module.apply, variables, x)
    assert sum(a.nbytes for a in jax.tree.leaves(tree)) <= 0.26 * sum(
        a.nbytes for a in jax.tree.leaves(variables)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_weight_is_named(bad):
    variables = {"params": {"head": {"kernel": normal(32, 32).at[3, 4].set(bad)}}}
    with pytest.raises(
        q8.TensorError, match="weight params/head/kernel holds NaN or infinity; repair the checkpoint"
    ):
        q8.quantize_weights(lambda v, x: x @ v["params"]["head"]["kernel"], variables, normal(8, 32))


@pytest.mark.parametrize("empty", [{}, (), {"params": {}}])
def test_variables_without_arrays(empty):
    with pytest.raises(
        q8.ArgumentError, match="the variables hold no arrays; pass the model's variables as second"
    ):
        q8.quantize_weights(lambda v, x: x, empty, normal(8, 32))
