"""Eight bits in four lines, for a Flax Linen and a Flax NNX model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxq8 as q8


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(jnp.mean(nnx.relu(self.conv(x)), axis=(1, 2)))


x = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
linen = Linen()
variables = linen.init(jax.random.key(1), x)
graph, state = nnx.split(Nnx(nnx.Rngs(2)))

for apply, weights in ((linen.apply, variables), (lambda state, x: nnx.merge(graph, state)(x), state)):
    q_weights = q8.quantize_weights(apply, weights, x)
    fast = jax.jit(q8.quantize(apply))
    print(q8.explain(apply, q_weights, x))
    print("largest difference from float:", jnp.max(jnp.abs(fast(q_weights, x) - apply(weights, x))), "\n")
