"""The model of the tests of the command line, as the text of the file that a user would write."""

MODEL = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0):
        return nn.Dense(5, name="last")(nn.relu(nn.Dense(64, name="first")(x))) * scale


class Small(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(32, 64, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.first(x))))


def small():
    return Small(nnx.Rngs(0))


def load():
    return Net(), Net().init(jax.random.key(0), jnp.ones((1, 32)))


def plain(variables, x):
    p = variables["params"]
    return jax.nn.relu(x @ p["first"]["kernel"]) @ p["last"]["kernel"]


def broken():
    raise RuntimeError("no weights today")


def whole(variables, x):
    return jnp.sum(plain(variables, x))


number = 3
"""
BYTES = (32 * 64 + 64 + 64 * 5 + 5) * 4
SMALL = ["--kernels", "xla", "--input-shape", "1,32"]
