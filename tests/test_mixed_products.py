"""Products of uint8 and int8 whose operands or results are transposed: XLA:CPU must not move transpositions into them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from small import ALWAYS, normal
from test_operands import relative

import jaxq8 as q8

pytestmark = pytest.mark.compiled


def left_then_right(p, x):
    return jax.nn.sigmoid(p[0] @ x) @ p[1]


def transposed_between(p, x):
    return (p[0] @ x).T @ p[2]


def both_transposed(p, x):
    return jnp.tanh(x.T @ p[0].T).T @ p[1]


def by_einsum(p, x):
    return jnp.einsum("ok,kn->no", p[0], x), jnp.einsum("kn,ok->on", jax.nn.relu(x), p[0])


# Two layers with short sums of static codes have a few percent; a result that is transposed or uncorrected has 100.
WRONG = 0.2

P = [normal(8, 40), normal(24, 65), normal(8, 17)]
X = normal(40, 24)


@pytest.fixture(params=[True, False])
def mixed(request, monkeypatch):
    """Both signs of the activation, whatever this machine prefers."""
    monkeypatch.setattr("jaxq8.kernels.dot.mixed_dots_are_fast", lambda: request.param)
    return request.param


@pytest.mark.parametrize("how", ["alone", "vmap", "scan"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("fn", [left_then_right, transposed_between, both_transposed, by_einsum])
def test_what_compiles_in_float_compiles_in_eight_bits(fn, static, how, mixed):
    ranges = q8.calibrate(fn, P, [X], config=ALWAYS, progress=False) if static else None
    forms = {
        "alone": lambda f: f,
        "vmap": lambda f: lambda p, x: jax.vmap(lambda y: f(p, y))(jnp.stack([x, x])),
        "scan": lambda f: lambda p, x: jax.lax.scan(lambda c, y: (c, f(p, y)), 0, jnp.stack([x, x]))[1],
    }
    found = jax.jit(forms[how](q8.quantize(fn, ALWAYS, ranges=ranges)))(P, X)
    for e, f in zip(*map(jax.tree.leaves, (forms[how](fn)(P, X), found)), strict=True):
        assert relative(e, f) < WRONG
