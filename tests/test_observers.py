"""Laws of observers: one row of the table makes an observer run all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.numerics.observers import (
    BINS,
    Counts,
    Known,
    MovingAverage,
    Percentile,
    get_observer,
    squared_error,
)

SPEC = q8.Spec()
OBSERVERS = {name: get_observer(name) for name in q8.observer_names()}
OBSERVERS["known"] = Known(q8.Range(-1.0, 4.0))
DATA = np.random.default_rng(0).normal(0.5, 2.0, (6, 500)).astype(np.float32)


def observed(observer, batches):
    state = observer.init()
    for batch in batches:
        state = jax.jit(observer.update)(state, jnp.asarray(batch))
    return state


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_observed_changes_nothing(name):
    observer = OBSERVERS[name]
    state = observed(observer, DATA)
    for joined in (observer.merge(observer.init(), state), observer.merge(state, observer.init())):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(joined), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name", sorted(set(OBSERVERS) - {"moving_average"})
)  # an average depends on the order by intention
def test_parts_merge_to_the_whole(name):
    observer = OBSERVERS[name]
    parts = observer.merge(observed(observer, DATA[:2]), observed(observer, DATA[2:]))
    a, b = (observer.finalise(jax.device_get(s), SPEC) for s in (parts, observed(observer, DATA)))
    assert a == b


@pytest.mark.parametrize("name", sorted(set(OBSERVERS) - {"known"}))
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_ranges_lie_inside_the_data(name, scale):
    low, high = OBSERVERS[name].finalise(jax.device_get(observed(OBSERVERS[name], DATA * scale)), SPEC)
    assert DATA.min() * scale <= low * (1 + 1e-6) or low >= DATA.min() * scale
    assert low < high <= DATA.max() * scale * (1 + 1e-6)
    assert low >= DATA.min() * scale * (1 + 1e-6)


@pytest.mark.parametrize("name", sorted(set(OBSERVERS) - {"known"}))
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
def test_equal_values_give_a_range_that_holds_them(name, value):
    """Every range is widened to zero when it becomes a scale, so its other end is what counts."""
    observer = OBSERVERS[name]
    low, high = observer.finalise(jax.device_get(observed(observer, np.full((2, 9), value, "f4"))), SPEC)
    assert min(low, 0) == min(value, 0)
    assert max(high, 0) == max(value, 0)


def test_histograms_grow_by_powers_of_two_and_lose_nothing():
    observer = OBSERVERS["mse"]
    small, large = DATA[0], DATA[1] * 1000
    counts, exponent, low, high = jax.device_get(observed(observer, [small, large]))
    assert counts.sum() == small.size + large.size
    width = 2.0 / BINS * 2.0**exponent
    edges = (np.arange(BINS + 1) - BINS // 2) * width
    expected = np.histogram(np.concatenate([small, large]), edges)[0]
    assert np.abs(counts - expected).sum() <= 4  # values on an edge
    assert (low, high) == (min(small.min(), large.min()), max(small.max(), large.max()))


@pytest.mark.parametrize("percent", [91.3, 98.7, 100.0])
def test_percentiles_are_those_of_numpy_to_a_bin(percent):
    observer = Percentile(percent)
    low, high = observer.finalise(jax.device_get(observed(observer, DATA)), SPEC)
    tail = (100 - percent) / 2
    bin_width = float(2 * 2 ** np.ceil(np.log2(np.abs(DATA).max())) / BINS)
    assert low == pytest.approx(np.percentile(DATA, tail, method="inverted_cdf"), abs=2 * bin_width)
    assert high == pytest.approx(np.percentile(DATA, 100 - tail, method="inverted_cdf"), abs=2 * bin_width)


def test_moving_average_follows_its_formula():
    observer = MovingAverage(0.5)
    low, high = observer.finalise(
        jax.device_get(observed(observer, [[-1.0, 1.0], [-3.0, 5.0], [-1.0, 1.0]])), SPEC
    )
    assert (low, high) == (-1.5, 2.0)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_is_as_good_as_a_search_of_all_ranges(bits):
    spec, observer = q8.Spec(bits=bits), OBSERVERS["mse"]
    data = np.concatenate([DATA.ravel(), [60.0, -40.0]]).astype("f4")
    state = jax.device_get(observed(observer, [data]))
    counts = observer.counts(state)
    found = squared_error(counts, *observer.finalise(state, spec), spec)
    ends = np.linspace(0.05, 1.0, 40)
    best = min(squared_error(counts, -40 * a, 60 * b, spec) for a in ends for b in ends)
    assert found <= best * 1.05
    whole = squared_error(counts, -40, 60, spec)
    assert found <= whole  # at 8 bits the whole range may be the best
    assert bits == 8 or found < whole / 2


def test_squared_error_is_that_of_the_codes():
    x = np.array([-1.0, -0.3, 0.2, 2.0, 9.0])
    counts = Counts(np.ones(5), x, -1.0, 9.0)
    codes = q8.QTensor.from_float(jnp.asarray(x, jnp.float32), q8.Spec(range=q8.Range(-1.0, 3.0)))
    expected = np.sum((x - np.asarray(codes.dequantize())) ** 2)
    assert squared_error(counts, -1.0, 3.0, SPEC) == pytest.approx(expected, rel=1e-4)


def test_entropy_clips_outliers_and_keeps_even_data():
    observer = OBSERVERS["entropy"]
    rng = np.random.default_rng(1)
    tailed = np.concatenate([rng.normal(0, 1, 20000), [100.0]]).astype("f4")
    assert 1.5 < observer.finalise(jax.device_get(observed(observer, [tailed])), SPEC).maximum < 20
    even = rng.uniform(-1, 1, 20000).astype("f4")
    assert observer.finalise(jax.device_get(observed(observer, [even])), SPEC).maximum > 0.9


def test_a_user_registers_an_observer():
    @q8.register_observer("largest magnitude, doubled")
    class Doubled:
        def init(self):
            return jnp.float32(0)

        def update(self, state, x):
            return jnp.maximum(state, jnp.max(jnp.abs(x)))

        def merge(self, first, second):
            return jnp.maximum(first, second)

        def finalise(self, state, spec):
            return q8.Range(-2 * float(state), 2 * float(state))

    w = {"w": jnp.ones((32, 32))}
    ranges = q8.calibrate(
        lambda v, x: x @ v["w"],
        w,
        [jnp.full((4, 32), 3.0)],
        observer="largest magnitude, doubled",
        progress=False,
        config=q8.Config(kernels="xla"),
    )
    assert dict(ranges) == {"w:dot": q8.Range(-6.0, 6.0)}
    with pytest.raises(q8.RuleError, match="is already registered; choose another name"):
        q8.register_observer("largest magnitude, doubled")(Doubled)
    with pytest.raises(q8.RuleError, match="lacks merge, finalise"):
        q8.register_observer("half")(type("Half", (), {"init": Doubled.init, "update": Doubled.update}))


def test_unknown_observers_are_named():
    with pytest.raises(q8.SpecError, match="unknown observer 'minmx'; known are entropy"):
        get_observer("minmx")
    with pytest.raises(q8.SpecError, match="must be above 0 and at most 100"):
        Percentile(0)
    with pytest.raises(q8.SpecError, match="must be at least 0 and below 1"):
        MovingAverage(1.0)
