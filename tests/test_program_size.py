"""How many operations and how many different loops a program has: what its compile time is made of.

Seconds depend on the machine; each different loop costs 10 to 80 ms of them, and each operation before optimisation 0.3 ms.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.numerics.rounding import get_rounding
from jaxq8.numerics.scales import affine, known_affine

WIDTH = 64


def layers(count):
    """A chain of dots with gelu between them: all layers have the same shapes."""
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.standard_normal((WIDTH, WIDTH), np.float32) / 8) for _ in range(count)]

    def net(weights, x):
        for w in weights:
            x = jax.nn.gelu(x @ w)
        return x

    return net, weights, jnp.asarray(rng.standard_normal((16, WIDTH), np.float32))


def ranges_of(net, weights, x):
    """Ranges that differ from site to site, as calibrated ones do."""
    found = q8.calibrate(net, weights, [(x,)])
    return q8.Ranges(
        {name: (r.minimum - i / 7, r.maximum + i / 5) for i, (name, r) in enumerate(found.items())}
    )


def loops(compiled):
    """The compiled loops as texts in which equal ones are equal."""
    text = compiled.as_text()
    bodies = dict(re.findall(r"^%?([\w.\-]+) (\(.*?^\})", text, re.S | re.M))
    return [_plain(bodies[name]) for name in re.findall(r" fusion\(.*?calls=%?([\w.\-]+)", text)]


def _plain(body):
    names = {}
    body = re.sub(r", metadata=\{[^}]*\}", "", body[body.index("->") :])
    return re.sub(r"%[\w.\-]+", lambda m: names.setdefault(m.group(), f"%{len(names)}"), body)


def compiled(net, weights, x, **how):
    q_weights = q8.quantize_weights(net, weights, x)
    return jax.jit(q8.quantize(net, **how)).lower(q_weights, x).compile()


@pytest.mark.parametrize("static", [False, True])
def test_more_equal_layers_make_no_more_different_loops(static):
    different = []
    for count in (3, 6):
        net, weights, x = layers(count)
        how = {"ranges": ranges_of(net, weights, x)} if static else {}
        different.append(len(set(loops(compiled(net, weights, x, **how)))))
    assert different[0] == different[1]


def test_readers_of_one_array_share_its_codes():
    """The projections of an attention: the rows that all of them read are measured once."""
    rng = np.random.default_rng(0)
    w = [jnp.asarray(rng.standard_normal((WIDTH, WIDTH), np.float32)) for _ in range(4)]
    x = jnp.asarray(rng.standard_normal((16, WIDTH), np.float32))

    def net(count, w, x):
        y = jnp.sinh(x)  # nothing is known of its range
        return [y @ v for v in w[:count]]

    w = q8.quantize_weights(lambda w, x: net(4, w, x), w, x)
    texts = [jax.jit(q8.quantize(lambda w, x, n=n: net(n, w, x))).lower(w, x).as_text() for n in (1, 2, 3)]
    assert [text.count("applies stablehlo.maximum") for text in texts] == [1, 1, 1]


@pytest.mark.parametrize(
    "spec", [q8.Spec(), q8.Spec(symmetric=True), q8.Spec(signed=True), q8.Spec(symmetric=True, signed=False)]
)
def test_numbers_of_a_known_range_are_those_of_the_program(spec):
    rng = np.random.default_rng(0)
    low, high = (sign * np.abs(rng.standard_normal(50)).astype(np.float32) for sign in (-1, 1))
    scheme = get_rounding("half_even")
    scale, zero = jax.jit(lambda a, b: affine(a, b, spec, scheme))(low, high)
    known = [known_affine(float(a), float(b), spec, scheme) for a, b in zip(low, high, strict=True)]
    np.testing.assert_array_equal(scale, [s for s, _ in known])
    np.testing.assert_array_equal(zero, [z for _, z in known])
