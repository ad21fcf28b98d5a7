"""Observers summarize a site's values over many batches and choose the range that follows from the summary.

An observer has four methods. `init` and `update` run inside the jitted calibration step, `merge` joins the states of two
batches (or of two steps of a loop), and `finalise` turns the last state into a `Range` on the host.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.errors import RuleError, SpecError
from jaxq8.numerics.ranges import Range

if TYPE_CHECKING:
    from jaxq8.numerics.spec import Spec  # for annotations only, since `spec` imports this module

State = Any
Registered = TypeVar("Registered")
BINS = 4096  # the number of bins of a histogram over [-limit, limit)


class Observer(Protocol):
    """The methods that `calibrate` calls on an observer. A state is a pytree of arrays.

    Example:
      >>> class Largest:  # a symmetric range that holds every value
      ...     init = staticmethod(lambda: jnp.float32(0))
      ...     update = staticmethod(lambda state, x: jnp.maximum(state, jnp.abs(x).max()))
      ...     merge = staticmethod(jnp.maximum)
      ...     finalise = staticmethod(lambda state, spec: q8.Range(-state, state))
      >>> found = q8.calibrate(model.apply, variables, batches, observer=Largest())
      >>> found["params/Dense_0/kernel:dot"].maximum == float(jnp.abs(images).max())
      True
    """

    def init(self) -> State:
        """The state before any data."""

    def update(self, state: State, x: jax.Array) -> State:
        """The state after one more batch of a site's values, which are traced float32 of any shape."""

    def merge(self, first: State, second: State) -> State:
        """The state after both, with `first` observed before `second`; merging with `init()` changes nothing."""

    def finalise(self, state: State, spec: Spec) -> Range:
        """The range for the representation `spec`, from a state of NumPy arrays."""


_REGISTRY: dict[str, Observer] = {}


def register_observer(name: str) -> Callable[[Registered], Registered]:
    """Registers an observer under `name`; use as a decorator of a class without arguments, or call it with an instance.

    Args:
      name: What `calibrate(observer=...)` and ``Spec(range=...)`` call it.

    Returns:
      A function that returns its argument unchanged.

    Raises:
      RuleError: The name is taken, or the observer lacks one of the methods of `Observer`.

    Example:
      >>> @q8.register_observer("largest")
      ... class Largest:
      ...     init = staticmethod(lambda: jnp.float32(0))
      ...     update = staticmethod(lambda state, x: jnp.maximum(state, jnp.abs(x).max()))
      ...     merge = staticmethod(jnp.maximum)
      ...     finalise = staticmethod(lambda state, spec: q8.Range(-state, state))
      >>> ranges = q8.calibrate(model.apply, variables, batches, observer="largest")
    """

    def register(observer: Registered) -> Registered:
        if name in _REGISTRY:
            raise RuleError(f"observer {name!r} is already registered; choose another name")
        instance: Any = observer() if isinstance(observer, type) else observer
        methods = ("init", "update", "merge", "finalise")
        missing = [method for method in methods if not callable(getattr(instance, method, None))]
        if missing:
            raise RuleError(f"observer {name!r} lacks {', '.join(missing)}; see q8.Observer")
        _REGISTRY[name] = instance
        return observer

    return register


def get_observer(observer: str | Range | Observer) -> Observer:
    """Finds an observer by name; for a `Range` it is one that always gives that range, and an observer is returned as it is.

    Raises:
      SpecError: No observer has that name.
    """
    if isinstance(observer, Range):
        return Known(observer)
    if not isinstance(observer, str):
        return observer
    if observer not in _REGISTRY:
        raise SpecError(
            f"unknown observer {observer!r}; known are {', '.join(observer_names())}, a Range, or an object"
        )
    return _REGISTRY[observer]


def observer_names() -> tuple[str, ...]:
    """The names of all registered observers, sorted.

    Example:
      >>> q8.observer_names()
      ('entropy', 'minmax', 'moving_average', 'mse', 'percentile')
    """
    return tuple(sorted(_REGISTRY))


@dataclasses.dataclass(frozen=True)
class Known:
    """An observer that observes nothing and gives a range that is known."""

    range: Range

    def init(self) -> State:
        return ()

    def update(self, state: State, x: jax.Array) -> State:
        return ()

    def merge(self, first: State, second: State) -> State:
        return ()

    def finalise(self, state: State, spec: Spec) -> Range:
        return self.range


@register_observer("minmax")
class MinMax:
    """The range from the smallest to the largest value of all data; the default, and the right choice where outliers matter."""

    def init(self) -> State:
        return jnp.float32(math.inf), jnp.float32(-math.inf)

    def update(self, state: State, x: jax.Array) -> State:
        return jnp.minimum(state[0], jnp.min(x)), jnp.maximum(state[1], jnp.max(x))

    def merge(self, first: State, second: State) -> State:
        return jnp.minimum(first[0], second[0]), jnp.maximum(first[1], second[1])

    def finalise(self, state: State, spec: Spec) -> Range:
        return Range(float(state[0]), float(state[1]))


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """Exponential moving average of the extremes of each batch, so later batches count more (Jacob et al. 2018, section 3.1).

    Attributes:
      decay: Weight of the past, in [0, 1).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise SpecError(f"MovingAverage(decay={self.decay}): must be at least 0 and below 1")

    def init(self) -> State:
        return jnp.float32(0), jnp.float32(0), jnp.bool_(False)

    def update(self, state: State, x: jax.Array) -> State:
        return self.merge(state, (jnp.min(x), jnp.max(x), jnp.bool_(True)))

    def merge(self, first: State, second: State) -> State:
        def mix(a: jax.Array, b: jax.Array) -> jax.Array:
            both = self.decay * a + (1 - self.decay) * b
            return jnp.where(first[2] & second[2], both, jnp.where(second[2], b, a))

        return mix(first[0], second[0]), mix(first[1], second[1]), first[2] | second[2]

    def finalise(self, state: State, spec: Spec) -> Range:
        return Range(float(state[0]), float(state[1]))


@dataclasses.dataclass(frozen=True)
class Counts:
    """A histogram on the host: the counts of its bins, the centre of each bin, and the exact extremes of the data."""

    counts: np.ndarray
    centres: np.ndarray
    low: float
    high: float


class Histogram:
    """Base class of observers that need the distribution of the values.

    It counts them in `BINS` equal bins over [-limit, limit), where the limit is a power of two. For a batch that exceeds the
    limit, the limit is doubled until the batch fits, and neighbouring bins are added up. This takes one pass over the data and
    a fixed amount of memory. The state is (counts, exponent of the limit, smallest value, largest value).
    """

    def init(self) -> State:
        ends = jnp.float32(math.inf), jnp.float32(-math.inf)
        return jnp.zeros(BINS, jnp.float32), jnp.int32(-126), *ends

    def update(self, state: State, x: jax.Array) -> State:
        x = x.reshape(-1)
        exponent = jnp.clip(jnp.frexp(jnp.max(jnp.abs(x)))[1], -126, 127).astype(jnp.int32)
        width = jnp.ldexp(jnp.float32(2.0 / BINS), exponent)
        bins = jnp.clip(jnp.floor(x / width).astype(jnp.int32) + BINS // 2, 0, BINS - 1)
        counts = jnp.zeros(BINS, jnp.float32).at[bins].add(1.0)
        return self.merge(state, (counts, exponent, jnp.min(x), jnp.max(x)))

    def merge(self, first: State, second: State) -> State:
        exponent = jnp.maximum(first[1], second[1])
        counts = _coarser(first[0], exponent - first[1]) + _coarser(second[0], exponent - second[1])
        return counts, exponent, jnp.minimum(first[2], second[2]), jnp.maximum(first[3], second[3])

    def counts(self, state: State) -> Counts:
        """The histogram as NumPy arrays, without its empty bins."""
        counts, exponent, low, high = (np.asarray(s) for s in state)
        centres = (np.arange(BINS) - BINS // 2 + 0.5) * np.ldexp(2.0 / BINS, int(exponent))
        filled = counts > 0
        return Counts(counts[filled].astype(np.float64), centres[filled], float(low), float(high))


def _coarser(counts: jax.Array, doublings: jax.Array) -> jax.Array:
    """The same histogram over [-limit, limit) with a limit that is 2**doublings times as large."""
    place = jnp.arange(BINS) - BINS // 2
    return jnp.zeros_like(counts).at[(place >> jnp.minimum(doublings, 31)) + BINS // 2].add(counts)


@dataclasses.dataclass(frozen=True)
class Percentile(Histogram):
    """Clips the rarest values on both sides, where there are any (McKinstry et al. 2019; NVIDIA's 99.99%).

    Attributes:
      percent: The percentage of the data that lies inside the range, in (0, 100].
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise SpecError(f"Percentile({self.percent}): must be above 0 and at most 100")

    def finalise(self, state: State, spec: Spec) -> Range:
        data = self.counts(state)
        below = np.cumsum(data.counts) / max(data.counts.sum(), 1)
        tail = (1 - self.percent / 100) / 2
        low = data.centres[np.searchsorted(below, tail)]
        high = data.centres[min(int(np.searchsorted(below, 1 - tail)), len(below) - 1)]
        return _clipped(data, low, high)


@register_observer("mse")
class MeanSquaredError(Histogram):
    """The range with the smallest mean squared error, which weighs rounding inside the range against clipping outside.

    The ends are searched for, first shrunk together and then each separately. The error is measured on the histogram, as in
    PyTorch's HistogramObserver, rather than derived from an assumed distribution as in Banner et al. 2019.
    """

    def finalise(self, state: State, spec: Spec) -> Range:
        data = self.counts(state)
        shrink = np.linspace(1.0, 0.1, 91)
        best = float(min(shrink, key=lambda s: squared_error(data, data.low * s, data.high * s, spec)))
        low, high = data.low * best, data.high * best
        nearby = np.linspace(1.25, 0.75, 51)
        for _ in range(2):
            low = min((low * s for s in nearby), key=lambda end: squared_error(data, end, high, spec))
            high = min((high * s for s in nearby), key=lambda end: squared_error(data, low, end, spec))
        return _clipped(data, low, high)


def squared_error(data: Counts, low: float, high: float, spec: Spec) -> float:
    """The squared error, summed over all values of a histogram, of encoding them with a range."""
    low, high = min(low, 0.0), max(high, 0.0)
    if spec.is_symmetric:
        step = max(-low, high) / spec.qmax
        zero = 0.0
    else:
        step = (high - low) / (spec.qmax - spec.qmin)
        zero = spec.qmin - np.round(low / step) if step > 0 else 0.0
    if not step > 0:
        return math.inf if len(data.centres) and np.abs(data.centres).max() > 0 else 0.0
    codes = np.clip(np.round(data.centres / step) + zero, spec.qmin, spec.qmax)
    return float(np.sum(data.counts * (data.centres - (codes - zero) * step) ** 2))


@register_observer("entropy")
class Entropy(Histogram):
    """The clipping threshold with the smallest Kullback-Leibler divergence between the data and its codes.

    This is NVIDIA's TensorRT calibration (Migacz 2017): magnitudes up to a threshold are put into as many groups as there are
    codes, and the distribution that the groups describe is compared with that of the data, in which larger magnitudes are
    counted at the threshold.
    """

    def finalise(self, state: State, spec: Spec) -> Range:
        data = self.counts(state)
        limit = max(-data.low, data.high)
        levels = 2 ** (spec.bits - 1) if data.low < 0 else 2**spec.bits
        if not limit > 0:
            return _clipped(data, data.low, data.high)
        counts, edges = np.histogram(
            np.abs(data.centres), bins=BINS // 2, range=(0, limit), weights=data.counts
        )
        counts[0] = counts[
            1
        ]  # zeros, of which relu makes many, are exact for every threshold and must not decide
        ends = range(levels, len(counts) + 1, max(1, len(counts) // 256))
        best = min(ends, key=lambda end: _divergence(counts, end, levels))
        return _clipped(data, -edges[best], edges[best])


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """KL divergence between the first `end` bins, with the other bins added to the last, and these bins as `levels` groups."""
    kept = counts[:end].astype(np.float64)
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    group = np.minimum(np.arange(end) * levels // end, levels - 1)
    filled = kept > 0
    sums = np.bincount(group, kept, levels)
    members = np.maximum(np.bincount(group, filled, levels), 1)
    coded = np.where(filled, (sums / members)[group], 0)
    p, q = reference / max(reference.sum(), 1), coded / max(coded.sum(), 1)
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))


def _clipped(data: Counts, low: float, high: float) -> Range:
    """The range from `low` to `high`, cut to the extremes of the data, with its ends in the right order."""
    low, high = (min(max(float(end), data.low), data.high) for end in (low, high))
    return Range(min(low, high), max(low, high))


register_observer("moving_average")(MovingAverage())
register_observer("percentile")(Percentile())
