"""`error_sources`, on nets where one source of error was planted and must be the one that is found."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from tests.small import ALWAYS, normal, sqnr_db

X = normal(12, 16)
V = {"a": normal(16, 16) / 4, "b": normal(16, 17)[:, :16] / 4, "c": normal(17, 16)[:16] / 4}
FOUR_BITS = q8.Config(kernels="xla", weights=q8.Spec(bits=4, symmetric=True, granularity="channel"))
FAR = 400.0  # the end of a range that is 100 times too wide for numbers of a few units


def chain(v, x):
    """Three layers in a row, with a bias and a gelu, which add numbers but no two maps."""
    return jax.nn.gelu(x @ v["a"] + jnp.arange(16.0)) @ v["b"] @ v["c"]


def residual(v, x):
    """A layer, a branch that is added to it, and a layer that reads the sum."""
    hidden = jax.nn.relu(x @ v["a"])
    return jax.nn.relu(2 * hidden + hidden @ v["b"]) @ v["c"]


def joined(v, x):
    """Two layers side by side that a third one reads."""
    both = jnp.concatenate([jax.nn.relu(x @ v["a"]), x @ v["b"]], 1)
    return both @ jnp.concatenate([v["c"], v["c"]])


def sources(fn, variables=V, config=ALWAYS, **options):
    """The rows of the table by the name of the source; two batches."""
    batches = [X[:5], X[5:]]
    table = q8.error_sources(fn, variables, batches, config=config, progress=False, **options)
    json.loads(table.to_json())
    return {row["source"]: row for row in table.rows}


def test_weights_of_four_bits_dominate_and_are_the_error_of_decoded_weights():
    encoded = q8.quantize_weights(chain, V, X, config=FOUR_BITS, correct=None)
    found = sources(chain, config=FOUR_BITS, fast_variables=encoded)
    decoded = {name: w.dequantize() for name, w in encoded.items()}
    row = found["weights"]
    assert row["sqnr_db"] == pytest.approx(sqnr_db(chain(V, X), chain(decoded, X)), abs=0.05)
    assert row["share"] > 0.9
    assert row["sqnr_db_low"] < row["sqnr_db"] < row["sqnr_db_high"]
    assert found["all"]["share"] == pytest.approx(1, abs=0.2)
    # Weights that the function closes over are encoded in the run, and count as weights too.
    closed = sources(lambda v, x: chain(V, x) + 0 * v["unused"], {"unused": jnp.zeros(16)}, config=FOUR_BITS)
    assert closed["weights"]["sqnr_db"] == pytest.approx(row["sqnr_db"], abs=0.05)


def test_activations_in_too_wide_a_range_dominate():
    found = sources(chain, ranges={"a:dot": q8.Range(-FAR, FAR)})
    assert found["activations"]["share"] > 0.99
    assert found["joins and sums"]["sqnr_db"] == np.inf
    assert found["all"]["sqnr_db"] == pytest.approx(found["activations"]["sqnr_db"], abs=0.5)


@pytest.mark.parametrize(("fn", "site"), [(residual, "c:dot"), (joined, "concatenate")])
def test_joins_and_sums_in_too_wide_a_range_dominate(fn, site):
    found = sources(fn, ranges={site: q8.Range(-FAR, FAR)})
    assert found["joins and sums"]["share"] > 0.95
    assert found["all"]["sqnr_db"] == pytest.approx(found["joins and sums"]["sqnr_db"], abs=1)


def test_parts_with_scales_of_their_own_are_measured_with_them():
    """A part of 16 times larger numbers, with weights that make up for it; under one range the other part would lose 4 bits."""
    v = {**V, "d": jnp.concatenate([V["c"] / 16, V["c"]])}

    def unlike(v, x):
        return jnp.concatenate([16 * jax.nn.sigmoid(x @ v["a"]), jax.nn.sigmoid(x @ v["b"])], 1) @ v["d"]

    found = sources(unlike, v)
    assert found["joins and sums"]["sqnr_db"] > 45
    assert found["all"]["share"] == pytest.approx(1, abs=0.3)
    costs = {site.name: site for site in q8.sensitivity(unlike, v, [X], config=ALWAYS, progress=False).sites}
    without_weight = q8.Config(
        kernels="xla", overrides=(("a:dot", {"mode": "off"}), ("b:dot", {"mode": "off"}))
    )
    fast = q8.quantize(unlike, without_weight)
    assert costs["d:dot"].alone_db == pytest.approx(sqnr_db(unlike(v, X), fast(v, X)), abs=0.5)


def test_weights_that_are_computed_count_as_weights():
    """Rows of a weight that differ 1000 times, under one scale a channel, where the small ones matter as much."""

    def computed(v, x):
        both = jnp.concatenate([1000 * jax.nn.sigmoid(x @ v["a"]), jax.nn.sigmoid(x @ v["b"])], 1)
        return both @ jnp.concatenate([v["c"] / 1000, v["c"]])

    found = sources(computed)
    assert found["weights"]["share"] > 0.99
    assert found["all"]["sqnr_db"] == pytest.approx(found["weights"]["sqnr_db"], abs=0.5)


def test_given_weights_are_measured_with_their_biases():
    """A bias that is wrong by a tenth is an error of `fast_variables`, and so one of the weights."""

    def biased(v, x):
        return chain(v, x) + v["bias"]

    v = {**V, "bias": jnp.zeros(16)}
    encoded = q8.quantize_weights(biased, v, X, config=ALWAYS, correct=None)
    right = sources(biased, v, fast_variables=encoded)
    wrong = sources(biased, v, fast_variables={**encoded, "bias": encoded["bias"] + 1.0})
    assert wrong["weights"]["sqnr_db"] < right["weights"]["sqnr_db"] - 10
    assert wrong["activations"]["sqnr_db"] == right["activations"]["sqnr_db"]


def test_nothing_in_eight_bits_has_no_error():
    found = sources(chain, config=q8.Config(mode="off"))
    assert {row["sqnr_db"] > 100 for row in found.values()} == {True}


def test_error_sources_refuses_what_has_no_result():
    with pytest.raises(q8.ArgumentError, match="batches"):
        q8.error_sources(chain, V, [], progress=False)
    with pytest.raises(q8.ArgumentError, match="returns nothing"):
        q8.error_sources(lambda v, x: {}, V, [X], progress=False)
