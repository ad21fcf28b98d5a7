"""One arithmetic, two carriers: integers, and the same codes in float32, from which derivatives come."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from small import ALWAYS, SIMULATE, normal
from test_operands import relative

import jaxq8 as q8

REFERENCE = q8.Config(kernels="reference")


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def joined_twice(p, x):
    h = conv(x, p[0])
    return conv(jnp.concatenate([h, h], -1), p[1]), conv(h, p[2])


def pooled_and_read_again(p, x):
    x = jnp.abs(x)
    pooled = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    return conv(x, p[0]), conv(pooled, p[0])


def summed_codes(p, x):
    h = jax.nn.relu(conv(x, p[0]))
    return jnp.mean(conv(h, p[2]), (1, 2)), jnp.sum(h, (1, 2)) @ p[2][0, 0]


P = [normal(3, 3, 16, 24) / 12, normal(3, 3, 48, 24) / 20, normal(3, 3, 24, 24) / 15]
X = normal(2, 10, 10, 16)
PROGRAMS = [joined_twice, pooled_and_read_again, summed_codes]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("fn", PROGRAMS)
def test_the_simulation_is_as_near_to_the_integers_as_rounding_allows(fn, static):
    ranges = q8.calibrate(fn, P, [X], config=ALWAYS, progress=False) if static else None
    found = [jax.jit(q8.quantize(fn, c, ranges=ranges))(P, X) for c in (ALWAYS, REFERENCE, SIMULATE)]
    for exact, fast, reference, simulated in zip(fn(P, X), *found, strict=True):
        assert relative(exact, fast) < 0.05  # it is right at all
        # A code that lies on a boundary may tip over: one step in one of thousands of elements.
        assert relative(fast, reference) < 0.1 * relative(exact, fast)
        assert relative(fast, simulated) < 0.1 * relative(exact, fast)


def pooled(p, x):
    h = lax.reduce_window(conv(x, p[0]), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    return conv(h, p[2]), h


def pooled_in_large_windows(p, x):
    h = jax.nn.relu(conv(x, p[0]))
    return (lax.reduce_window(h, 0.0, lax.add, (1, 7, 7, 1), (1, 1, 1, 1), "VALID") / 49,)


def largest_in_large_windows(p, x):
    h = jax.nn.relu(conv(x, p[0]))
    return (lax.reduce_window(h, -jnp.inf, lax.max, (1, 7, 7, 1), (1, 1, 1, 1), "VALID"),)


@pytest.mark.parametrize("fn", [*PROGRAMS, pooled, pooled_in_large_windows, largest_in_large_windows])
def test_derivatives_are_near_those_of_float(fn):
    def loss(fn):
        return lambda p, x: sum(jnp.sum(y**2) for y in fn(p, x))

    exact, found = (jax.jit(jax.grad(loss(f)))(P, X) for f in (fn, q8.quantize(fn, ALWAYS)))
    for e, f in zip(exact, found, strict=True):
        # Rounding changes which relu is at work and who wins a maximum; of a wrong simulation a third was wrong, and more.
        assert relative(e, f) < 0.15


def test_simulated_codes_keep_the_sign_of_their_spec():
    x = jnp.abs(normal(8, 8))
    seen = []

    def watch(p, x):
        q = q8.QTensor.from_float(x, q8.Spec(symmetric=True, signed=False))
        seen.append(q)
        return q.dequantize() @ p

    watch(normal(8, 8), x)
    q = jax.tree.map(lambda a: a.astype(jnp.float32), seen[0])
    assert (q.signed, q.spec.qmin, q.spec.qmax) == (False, 0, 255)
    assert float(q.minimum.min()) == 0
    assert jax.tree.structure(q) == jax.tree.structure(seen[0])
    assert q8.QTensor(q.values, q.scale, q.zero_point).signed  # float codes of an unnamed sign: as before
