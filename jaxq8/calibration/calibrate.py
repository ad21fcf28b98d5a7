"""`calibrate`: observes the values of every site over batches of data, and returns the ranges to use as static ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq8.analysis.sites import is_part, site_name, site_op
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.outliers import Magnitudes, larger, leading_sizes, magnitudes, nothing, outliers, warn
from jaxq8.config import Config
from jaxq8.errors import ArgumentError, RangesError, SpecError
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.rules.joined import are_unlike
from jaxq8.evaluation.values import Value, to_real
from jaxq8.numerics.observers import Observer, State, get_observer
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.numerics.spec import Spec
from jaxq8.plan import Recorder
from jaxq8.transform import checked_config, settings_of


def calibrate(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    config: Config | None = None,
    observer: str | Range | Observer | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Ranges:
    """Observes, in float over batches of data, the range of everything that `quantize(fn, config)` encodes.

    One pass over the data serves all sites. Only the observers' states and three numbers for each site and batch are kept, so
    memory does not grow with the size of the batches. `Ranges.merge` joins the results of several runs (on other data, or on
    other machines). A site is left out if it never ran (a branch that was not taken) or read nothing but zeros; its range is
    then found in each run.

    Args:
      fn: The function as it is given to `quantize`: ``model.apply``.
      variables: Its first argument, in float (`QTensor` leaves are observed as the numbers that they stand for).
      batches: An iterable of inputs: a tuple holds the other positional arguments, anything else is the only one.
        Batches may differ in size; each new shape is compiled once.
      config: As for `quantize`. A site's ``activations.range`` may name an observer of its own.
      observer: Name of a registered observer, or an object like one, for all sites whose configuration names none; default
        "minmax".
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`, the same for all batches.

    Returns:
      `Ranges`, to be given to `quantize(fn, config, ranges=...)`; edit them by hand through `Ranges.to_json`.

    Raises:
      ArgumentError: There are no batches, or `batches` is itself a batch.
      RangesError: A site saw NaN or infinity (the message names site and batch), the function has no site to calibrate, or
        every site saw nothing but zeros.
      SpecError: No observer has that name.

    Warns:
      CalibrationWarning: An example, or a whole batch, is far larger than the others, and the range of a site includes it;
        the message names site, batch and ratio.

    Example:
      >>> ranges = q8.calibrate(model.apply, variables, [images[:2], images[2:]])
      >>> fast = jax.jit(q8.quantize(model.apply, ranges=ranges))
      >>> list(ranges)
      ['params/Dense_0/kernel:dot', 'params/Dense_1/kernel:dot']
    """
    config = checked_config(fn, config)
    choose = _Observers(config, get_observer(observer or "minmax"))
    order: dict[
        str, None
    ] = {}  # sites in the order in which they run; a compiled function returns them sorted by name
    step = jax.jit(lambda variables, inputs: _observe(fn, variables, inputs, kwargs, config, choose, order))
    merge = jax.jit(lambda old, new: _merged(old, new, choose))
    states: dict[str, State] = {}
    sizes: list[dict[str, Magnitudes]] = []
    for index, inputs in enumerate(each_batch("calibrate", batches, "calibrating", progress)):
        new, finite, size = step(variables, inputs)
        _check_finite(finite, index)
        sizes.append(jax.device_get(size))
        states = merge(states, new) if states else new
    if not states:
        quantized = settings_of(fn) is not None
        why = "it is quantized already: pass the float function" if quantized else "q8.explain(...) says why"
        raise RangesError(f"calibrate: this function has no site that runs in eight bits; {why}")
    ranges = _ranges(jax.device_get(states), order, choose)
    if not ranges:
        raise RangesError(
            "calibrate: every site saw nothing but zeros; pass data like those that the model will see"
        )
    warn(outliers(sizes, ranges), stacklevel=2)
    return ranges


def _ranges(states: dict[str, State], order: Iterable[str], choose: _Observers) -> Ranges:
    """The ranges of all sites that saw values, in the given order, from the final states of their observers."""
    found: dict[str, Range] = {}
    for name in order:
        range = _range(choose(name), states[name], choose.spec(name))
        if range is not None:
            found[name] = range
    return Ranges(_without_like_parts(found))


def _without_like_parts(ranges: dict[str, Range]) -> dict[str, Range]:
    """The ranges without those of parts of a joined value that are all alike.

    Parts need ranges of their own only where these differ, since only there a contraction is split (`rules.joined`).
    """
    parts: dict[str, list[Range]] = {}
    for name, range in ranges.items():
        if is_part(name):
            parts.setdefault(site_name(name), []).append(range)
    unlike = {site for site, found in parts.items() if are_unlike(found)}
    return {n: r for n, r in ranges.items() if not is_part(n) or site_name(n) in unlike}


def each_batch(
    who: str, batches: Iterable[Any], doing: str = "", progress: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Yields the positional arguments of each batch, under a progress bar that says what is being done.

    Raises:
      ArgumentError: There are no batches, or `batches` is itself a batch; the message names the function `who`.
    """
    if hasattr(batches, "shape") or isinstance(batches, Mapping | str) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"{who}: batches must be an iterable of inputs, got {type(batches).__name__}; pass [x] for a single batch x"
        )
    count = 0
    for batch in tqdm(batches, desc=doing, unit="batch", disable=not progress):
        count += 1
        yield as_inputs(batch)
    if not count:
        raise ArgumentError(
            f"{who}: no batches; pass an iterable of inputs like those that the model will see"
        )


def as_inputs(batch: Any) -> tuple[Any, ...]:
    """The positional arguments that a batch stands for: a tuple holds all of them, anything else is the only one."""
    return batch if isinstance(batch, tuple) and not hasattr(batch, "_fields") else (batch,)


@dataclasses.dataclass(frozen=True)
class _Observers:
    """Chooses the observer of a site: the one that its configuration names, or else the default."""

    config: Config
    default: Observer

    def spec(self, name: str) -> Spec:
        return self.config.for_site(name, site_op(name)).activations

    def __call__(self, name: str) -> Observer:
        own = self.spec(name).range
        return self.default if own == "minmax" else get_observer(own)


class _Observing(Probe):
    """Keeps, for every site that is encoded, the observer's state, whether all values were finite, and their magnitudes."""

    active = static = True

    def __init__(self, choose: _Observers, leading: tuple[int, ...]):
        super().__init__()
        self._choose = choose
        self._leading = leading

    def see(self, name: str, value: Value, codes: QTensor) -> None:
        observer = self._choose(name)
        real = jnp.asarray(to_real(value), jnp.float32)
        finite = jnp.isfinite(jnp.sum(real * 0))
        state = observer.update(observer.init(), real) if real.size else observer.init()
        self.add({name: (state, finite, magnitudes(real, self._leading))})

    part = see

    def join(self, name: str, first: Any, second: Any) -> Any:
        merged = self._choose(name).merge(first[0], second[0])
        return merged, first[1] & second[1], larger(first[2], second[2])

    def empty(self, name: str, like: Any) -> Any:
        return self._choose(name).init(), jnp.bool_(True), nothing()

    def fold(self, name: str, stacked: Any) -> Any:
        start = self.empty(name, None)
        return jax.lax.scan(lambda old, new: (self.join(name, old, new), None), start, stacked)[0]


def _observe(
    fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], config: Config,
    choose: _Observers, order: dict[str, None],
) -> tuple[dict[str, State], dict[str, jax.Array], dict[str, Magnitudes]]:  # fmt: skip
    """Three dicts by site, for one batch: the observer's state, whether all values were finite, and their magnitudes.

    The names of the sites are added to `order` while the function is traced.
    """
    call = Call.trace(fn, (variables, *inputs), kwargs)
    probe = _Observing(choose, leading_sizes(inputs))
    evaluate_call(call, call.arguments.leaves, config, Ranges(), Recorder(), probe, exact=lambda name: True)
    order.update(dict.fromkeys(probe.seen))
    states, finite, sizes = {}, {}, {}
    for name, (state, is_finite, size) in probe.seen.items():
        states[name], finite[name], sizes[name] = state, is_finite, size
    return states, finite, sizes


def _merged(old: dict[str, State], new: dict[str, State], choose: _Observers) -> dict[str, State]:
    """The states of all sites that either side has; where both have one, the observer merges them."""
    merged = dict(old)
    for name, state in new.items():
        merged[name] = choose(name).merge(old[name], state) if name in old else state
    return merged


def _check_finite(finite: dict[str, jax.Array], batch: int) -> None:
    bad = [name for name, ok in jax.device_get(finite).items() if not ok]
    if not bad:
        return
    more = f" and {len(bad) - 1} later sites" if len(bad) > 1 else ""
    raise RangesError(
        f"calibrate: NaN or infinity in batch {batch} at {bad[0]}{more}; repair that batch or leave it out"
    )


def _range(observer: Observer, state: State, spec: Spec) -> Range | None:
    """The range of a site; None if the site saw no values (a branch that did not run), or nothing but zeros."""
    try:
        found = observer.finalise(jax.tree.map(np.asarray, state), spec)
    except (SpecError, IndexError):
        return None
    return found if found.minimum or found.maximum else None
