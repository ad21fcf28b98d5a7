"""Blocks of examples: which functions keep their examples apart, and that blocks change nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.analysis import batch_axis
from jaxq8.analysis.traced_call import Call
from tests.small import grad, normal
from tests.zoo import ZOO

X = jax.random.normal(jax.random.key(0), (8, 6, 5))
W = jax.random.normal(jax.random.key(1), (5, 5))

APART = {
    "elementwise": lambda v, x: jnp.tanh(x * 2) + v["w"][0],
    "dense": lambda v, x: x @ v["w"],
    "attention": lambda v, x: jax.nn.softmax(x @ jnp.swapaxes(x, 1, 2)) @ x,
    "layer norm": lambda v, x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6),
    "flattened": lambda v, x: x.reshape(8, 30)[:, :5] @ v["w"],
    "first token": lambda v, x: x[:, 0] @ v["w"],
    "padded": lambda v, x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))),
    "positions": lambda v, x: x + jnp.arange(6.0)[None, :, None],
    "moved and back": lambda v, x: jnp.moveaxis(jnp.moveaxis(x, 0, 2) * 2, 2, 0),
    "look-up": lambda v, x: v["w"][jnp.argmax(x, -1) % 5],
}
TOGETHER = {
    "mean over examples": lambda v, x: x - x.mean(0),
    "training batch norm": lambda v, x: (x - x.mean((0, 1))) / x.std((0, 1)),
    "products between examples": lambda v, x: jnp.einsum("bij,cij->bc", x, x),
    "numbered examples": lambda v, x: x + jnp.arange(8.0)[:, None, None],
    "reversed": lambda v, x: x[::-1],
    "sorted": lambda v, x: jnp.sort(x, 0),
    "running sum": lambda v, x: jnp.cumsum(x, 0),
    "shifted": lambda v, x: jnp.concatenate([x[1:], x[:1]]),
    "examples last": lambda v, x: jnp.moveaxis(x, 0, -1),
    "one number": lambda v, x: x.sum(),
    "merged axes": lambda v, x: x.reshape(48, 5),
    "random numbers": lambda v, x: x + jax.random.normal(jax.random.key(0), x.shape),
    "constant of examples": lambda v, x: x * np.arange(8.0, dtype="float32")[:, None, None],
}


def independent(fn) -> bool:
    call = Call.trace(fn, ({"w": W}, X), {})
    return batch_axis.independent(call.as_inputs, [len(call.consts) + i for i in call.examples])


@pytest.mark.parametrize("name", APART)
def test_examples_that_stay_apart_are_recognised(name):
    assert independent(APART[name])
    whole = APART[name]({"w": W}, X)
    if name != "flattened":  # its reshape names the batch size
        halves = [APART[name]({"w": W}, half) for half in (X[:4], X[4:])]
        np.testing.assert_allclose(whole, jnp.concatenate(halves), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TOGETHER)
def test_examples_that_meet_are_never_parted(name):
    assert not independent(TOGETHER[name])


@pytest.mark.parametrize(
    ("name", "apart"), [("tiny_cnn", True), ("tiny_encoder", True), ("tiny_lstm", False)]
)
def test_models(name, apart):
    fn, variables, inputs = ZOO[name].build(jax.random.key(0), 8)
    call = Call.trace(fn, (variables, *inputs), {})
    assert batch_axis.independent(call.as_inputs, [len(call.consts) + i for i in call.examples]) == apart


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(batch_axis, "LARGE_BYTES", 1000)
    monkeypatch.setattr(batch_axis, "BLOCK_BYTES", 40000)


def test_blocks_give_what_the_whole_batch_gives(small_blocks):
    """With ranges given, an example's codes do not depend on those beside it."""
    fn, variables, inputs = ZOO["tiny_cnn"].build(jax.random.key(0), 8)
    ranges = q8.calibrate(fn, variables, [inputs], progress=False)
    plan = q8.explain(fn, variables, *inputs, ranges=ranges)
    assert 1 < plan.blocks <= 8
    assert f"the batch runs in {plan.blocks} blocks" in str(plan)
    whole = q8.Config(batch_blocks=False)
    alone = q8.explain(fn, variables, *inputs, config=whole, ranges=ranges)
    assert alone.blocks == 1
    assert alone.macs == plan.macs
    found = jax.jit(q8.quantize(fn, ranges=ranges))(variables, *inputs)
    expected = jax.jit(q8.quantize(fn, whole, ranges=ranges))(variables, *inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_codes_as_input_and_derivatives_pass_through_blocks(small_blocks):
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 3, 16))
    codes = jax.random.randint(jax.random.key(3), (8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    image = q8.QTensor.from_uint8(codes, jnp.float32(1 / 255), jnp.int32(0))

    def fn(v, x):
        y = jax.lax.conv_general_dilated(
            x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.mean((1, 2))

    assert q8.explain(fn, {"k": kernel}, image).blocks > 1
    whole = q8.Config(batch_blocks=False)
    np.testing.assert_allclose(
        jax.jit(q8.quantize(fn))({"k": kernel}, image),
        jax.jit(q8.quantize(fn, whole))({"k": kernel}, image),
        rtol=1e-5,
        atol=1e-5,
    )
    x = image.dequantize()
    found, expected = (
        grad(lambda k, c=c: (q8.quantize(fn, c)({"k": k}, x) ** 2).sum())(kernel) for c in (None, whole)
    )
    cosine = jnp.vdot(found, expected) / jnp.linalg.norm(found) / jnp.linalg.norm(expected)
    assert cosine > 0.999


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, w: jnp.broadcast_to((x @ w)[:, None], (8, 3, 32)),
        lambda x, w: jnp.concatenate([x @ w, jnp.zeros((8, 4))], 1),
        lambda x, w: (x @ w).reshape(8, -1),
        lambda x, w: (x @ w) * (2 if x.shape[0] > 4 else 1),
        lambda x, w: (x @ w) if x.shape[0] == 8 else jnp.tanh(x @ w),
        lambda x, w: jnp.arange(8.0)[:, None] * 0 + x @ w,
    ],
    ids=["broadcast", "join", "reshape", "number", "branch", "sum"],
)
def test_functions_that_know_the_size_of_their_batch(small_blocks, layer):
    """Found by the search over programs (seed 150): a block of one example was broadcast to eight."""
    w, x = normal(16, 32), normal(8, 16)
    config = q8.Config(kernels="xla")
    ranges = q8.calibrate(layer_of(layer), w, [(x,)], config=config, progress=False)
    found, whole = (
        jax.jit(q8.quantize(layer_of(layer), q8.Config(kernels="xla", batch_blocks=b), ranges=ranges))(w, x)
        for b in (True, False)
    )
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def layer_of(layer):
    return lambda w, x: layer(x, w)
