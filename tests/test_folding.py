"""Folding norms changes scales and one bias, and neither codes nor results; what cannot be folded stays as it is."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.cli import main

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
ALWAYS = q8.Config(kernels="xla")


class Net(nn.Module):
    """Every place of a norm: after convolutions, a depthwise one, and a layer with a bias; one cannot be folded."""

    @nn.compact
    def __call__(self, x):
        norm = lambda name: nn.BatchNorm(use_running_average=True, name=name)  # noqa: E731
        x = nn.relu6(norm("a_norm")(nn.Conv(32, (3, 3), use_bias=False, name="a")(x)))
        x = nn.relu(norm("b_norm")(nn.Conv(32, (3, 3), feature_group_count=32, use_bias=False, name="b")(x)))
        x = norm("before")(x).mean((1, 2))
        return norm("c_norm")(nn.Dense(16, name="c")(x))


def filled(variables):
    """Statistics as after training, some factors negative."""
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def fill(path, leaf):
        name = path[-1].key
        new = jax.random.normal(next(keys), leaf.shape)
        return leaf if name == "kernel" else jnp.abs(new) + 0.1 if name == "var" else new

    return jax.tree_util.tree_map_with_path(fill, variables)


NET = Net()
V = filled(NET.init(jax.random.key(2), X))
Q = q8.quantize_weights(NET.apply, V, X, config=ALWAYS, correct=None)
FOLDED = q8.fold_norms(NET.apply, Q, X)


def sqnr_db(exact, found) -> float:
    exact, found = (np.asarray(a, np.float64) for a in (exact, found))
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)))


def same_leaf(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_float_results_stay():
    exact = NET.apply(V, X)
    assert sqnr_db(exact, NET.apply(q8.fold_norms(NET.apply, V, X), X)) > 110
    weights = q8.Config(mode="weights", kernels="xla")
    run = jax.jit(q8.quantize(NET.apply, weights))
    assert sqnr_db(run(Q, X), run(FOLDED, X)) > 110


def test_codes_stay_and_vectors_become_constant():
    for name in ("a", "b", "c"):
        before, after = Q["params"][name]["kernel"], FOLDED["params"][name]["kernel"]
        factor = V["params"][f"{name}_norm"]["scale"]
        assert (factor < 0).any()
        np.testing.assert_array_equal(np.where(factor < 0, -before.values, before.values), after.values)
        assert (after.scale.dtype, after.dtype) == (np.float32, np.float32)
        statistics = FOLDED["batch_stats"][f"{name}_norm"]
        assert (statistics["mean"] == 0).all()
        assert (statistics["var"] == 1).all()
        assert (FOLDED["params"][f"{name}_norm"]["scale"] == 1).all()
    assert (FOLDED["params"]["c"]["bias"] == 0).all()
    assert jax.tree.structure(FOLDED) == jax.tree.structure(Q)


def test_a_norm_with_nothing_before_it_stays():
    for kind in ("params", "batch_stats"):
        assert same_leaf(FOLDED[kind]["before"], V[kind]["before"])


def test_eight_bit_results_stay():
    """The same codes of weights; codes of activations on the border of a rounding may fall either way."""
    run = jax.jit(q8.quantize(NET.apply, ALWAYS))
    assert sqnr_db(run(Q, X), run(FOLDED, X)) > 40


def dense(v, x):
    return (x @ v["w"] - v["mean"]) * v["factor"] + v["bias"]


def small(**changes):
    keys = jax.random.split(jax.random.key(3), 3)
    v = {
        "w": jax.random.normal(keys[0], (64, 32)), "mean": jax.random.normal(keys[1], (32,)),
        "factor": jnp.linspace(0.5, 2, 32), "bias": jax.random.normal(keys[2], (32,)),
    }  # fmt: skip
    return {**v, **changes}


ROWS = jax.random.normal(jax.random.key(4), (8, 64))


def test_plain_functions_and_quotients():
    v = small()
    folded = q8.fold_norms(dense, v, ROWS)
    assert (folded["mean"] == 0).all()
    assert sqnr_db(dense(v, ROWS), dense(folded, ROWS)) > 110

    def divided(v, x):
        return v["bias"] + (x @ v["w"]) / jnp.sqrt(v["factor"] + 1e-3) + v["mean"]

    folded = q8.fold_norms(divided, v, ROWS)
    assert (folded["factor"] == 1).all()
    assert (folded["bias"] == 0).all()
    assert sqnr_db(divided(v, ROWS), divided(folded, ROWS)) > 110


@pytest.mark.parametrize(
    ("fn", "v"),
    [
        (dense, small(factor=jnp.linspace(0, 2, 32))),  # a channel that is lost could not be brought back
        (dense, small(factor=jnp.full(32, jnp.inf))),
        (dense, jax.tree.map(lambda a: a.astype(jnp.bfloat16), small())),
        (lambda v, x: dense(v, x) + v["factor"].sum(), small()),  # read elsewhere
        (lambda v, x: (dense(v, x), v["mean"]), small()),  # returned
        (lambda v, x: dense(v, x) + dense(v, 2 * x), small()),  # used twice
        (lambda v, x: (x @ v["w"] - v["mean"]) * v["factor"], small()),  # nothing to take the shift
        (lambda v, x: (x @ v["w"]) * x.mean() * v["factor"] + v["bias"], small()),  # data in between
    ],
    ids=["zero", "infinite", "bfloat16", "read", "returned", "twice", "no shift", "data"],
)  # fmt: skip
def test_what_cannot_be_folded_stays(fn, v):
    x = ROWS.astype(v["w"].dtype)
    assert same_leaf(q8.fold_norms(fn, v, x), v)


@pytest.mark.parametrize(
    "spec",
    [q8.Spec(bits=8, symmetric=True, granularity="tensor"), q8.Spec(bits=4, levels="kmeans", symmetric=True)],
    ids=["one scale", "code book"],
)
def test_weights_without_a_scale_for_each_channel_stay(spec):
    v = q8.quantize_weights(dense, small(), ROWS, config=q8.Config(kernels="xla", weights=spec), correct=None)
    assert same_leaf(q8.fold_norms(dense, v, ROWS), v)


def test_groups_of_weights():
    spec = q8.Spec(bits=4, symmetric=True, granularity="group", group=16)
    config = q8.Config(mode="weights", kernels="xla", weights=spec)
    v = q8.quantize_weights(dense, small(factor=jnp.linspace(-2, -1, 32)), ROWS, config=config, correct=None)
    folded = q8.fold_norms(dense, v, ROWS, config=config)
    assert (folded["factor"] == 1).all()
    run = q8.quantize(dense, config)
    assert sqnr_db(run(v, ROWS), run(folded, ROWS)) > 100


NORMED = """
import flax.linen as nn, jax
from tests.test_folding import Net, V
def load():
    return Net(), V
"""


def test_the_command_line_folds_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "net.py").write_text(NORMED)
    monkeypatch.chdir(tmp_path)
    sizes = []
    for more in ([], ["--keep-norms"]):
        line = [
            "quantize",
            "net.py:load",
            "--input-shape",
            "1,8,8,4",
            "--kernels",
            "xla",
            "--output",
            "net.q8",
        ]
        assert main([*line, *more]) == 0
        sizes.append((tmp_path / "net.q8").stat().st_size)
        said = "3 folded into the scales" in capsys.readouterr().out
        assert said != bool(more)
    assert sizes[0] < sizes[1]
    found = q8.load(tmp_path / "net.q8")[0]
    assert same_leaf(found["batch_stats"], V["batch_stats"])
