"""`compare`: runs a float function beside its quantized form and measures the error of the results and of each site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.arguments import path_name
from jaxq8.analysis.sites import site_op
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.calibrate import each_batch
from jaxq8.calibration.error_measures import OutputErrors, SiteErrors
from jaxq8.calibration.example_errors import example_sums
from jaxq8.calibration.report import Report
from jaxq8.config import Config
from jaxq8.display.intervals import Share, sqnr_interval
from jaxq8.errors import ArgumentError
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Value, to_real
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder
from jaxq8.transform import settings_of

BINS = 64  # of a site's histogram


def compare(
    fn: Callable[..., Any],
    fast: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    fast_variables: Any = None,
    progress: bool = True,
    **kwargs: Any,
) -> Report:
    """Runs `fn` and its quantized form side by side and measures the error of the results and of every site.

    Args:
      fn: The float function: ``model.apply``.
      fast: What `quantize(fn, ...)` returned, compiled or not. Of any other function of the same arguments only the results
        are compared, not the sites.
      variables: First argument of `fn`.
      batches: Iterable of inputs, as for `calibrate`.
      fast_variables: First argument of `fast` where it differs from `variables`: weights from `quantize_weights`.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of both functions.

    Returns:
      A `Report`. Errors are measured over all batches together; those of the results have 95% confidence intervals over
      examples, which say what a different choice of as many examples could have shown.

    Raises:
      ArgumentError: There are no batches, or the results have different shapes.

    Example:
      >>> report = q8.compare(model.apply, jax.jit(q8.quantize(model.apply)), variables, batches)
      >>> report.output.sqnr_db > 30
      True
    """
    quantized = variables if fast_variables is None else fast_variables
    settings = settings_of(fast)
    order: dict[
        str, None
    ] = {}  # sites in the order in which they run; a compiled function returns them sorted by name
    recorder = Recorder()
    sites = jax.jit(partial(_sites, fn, kwargs, settings, order, recorder)) if settings else None
    outputs = jax.jit(lambda v, x: jax.tree.leaves(fn(v, *x, **kwargs)))
    totals: dict[str, Any] = {}
    results = _Results()
    for inputs in each_batch("compare", batches, "comparing", progress):
        results.add(inputs, outputs(variables, inputs), jax.tree.leaves(fast(quantized, *inputs, **kwargs)))
        if sites is not None:
            for name, sums in jax.device_get(sites(variables, quantized, inputs)).items():
                totals[name] = _added(totals[name], sums) if name in totals else sums
    site_errors = tuple(_site(name, totals[name]) for name in order)
    plan = recorder.plan() if settings else None
    return Report(results.errors(), site_errors, _weights(variables, order), plan, results.answers)


class _Results:
    """Errors of the results, added up over batches."""

    def __init__(self) -> None:
        self._sums: Any = None
        self._examples: list[tuple[np.ndarray, np.ndarray]] = []
        self._same: list[tuple[float, float]] = []
        self.answers: tuple[tuple[int, int], ...] = ()

    def add(self, inputs: tuple[Any, ...], exact: list[Any], found: list[Any]) -> None:
        """Takes in the results of one batch of inputs: arrays of the float function, and arrays of the other one."""
        exact_shapes, found_shapes = [np.shape(x) for x in exact], [np.shape(x) for x in found]
        if exact_shapes != found_shapes:
            raise ArgumentError(
                f"compare: results have shapes {exact_shapes} and {found_shapes}; pass the same function twice"
            )
        sums = _sums_of(_flat(exact), _flat(found), np)
        self._sums = sums if self._sums is None else _added(self._sums, sums)
        self._examples.append(example_sums(inputs, exact, found))
        looks_like_logits = len(exact) == 1 and np.ndim(exact[0]) == 2 and np.shape(exact[0])[-1] >= 3
        if looks_like_logits:
            self._same += _agreement(np.asarray(exact[0]), np.asarray(found[0]))
            both = (np.asarray(x[0]).argmax(-1).tolist() for x in (exact, found))
            self.answers += tuple(zip(*both, strict=True))

    def errors(self) -> OutputErrors:
        """The errors over all batches so far."""
        signal, noise = (np.concatenate(sums) for sums in zip(*self._examples, strict=True))
        figures: dict[str, Any] = {**_errors(self._sums), "sqnr_db_interval": sqnr_interval(signal, noise)}
        if not self._same:
            return OutputErrors(**figures)
        first, five = (Share.of(column) for column in zip(*self._same, strict=True))
        return OutputErrors(
            **figures, top1=first.value, top5=five.value, examples=first.total, top1_interval=first.interval,
            top5_interval=five.interval,
        )  # fmt: skip


def _flat(arrays: list[Any]) -> np.ndarray:
    """All elements of several arrays as one float64 vector."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in arrays])


def _agreement(exact: np.ndarray, found: np.ndarray) -> list[tuple[float, float]]:
    """For each example: 1.0 or 0.0 for the same largest logit, and for the exact largest being among the five found."""
    best, five = exact.argmax(-1), np.argsort(-found, axis=-1)[:, :5]
    return [(float(b == f[0]), float(b in f)) for b, f in zip(best, five, strict=True)]


class _Keeping(Probe):
    """Keeps the real numbers that each site reads; with `codes` those that the codes stand for, their range and step.

    Where a site has several scales, the range is that from the smallest to the largest value of all, and the step is the
    largest one.
    """

    active = True

    def __init__(self, codes: bool):
        super().__init__()
        self._codes = codes

    def see(self, name: str, value: Value, codes: QTensor) -> None:
        if self._codes:
            ends = jnp.min(codes.minimum), jnp.max(codes.maximum), jnp.max(codes.scale)
            self.add({name: (codes.dequantize().astype(jnp.float32), *ends)})
        else:
            self.add({name: to_real(value).astype(jnp.float32)})

    part = see


def _sites(
    fn: Callable[..., Any], kwargs: dict[str, Any], settings: tuple[Config, Ranges], order: dict[str, None],
    recorder: Recorder, variables: Any, quantized: Any, inputs: tuple[Any, ...],
) -> dict[str, Any]:  # fmt: skip
    """Sums of the errors of one batch by site.

    While it is traced, it adds the names of the sites to `order` and what is planned for them to `recorder`.
    """
    config, ranges = settings
    exact, found = _Keeping(codes=False), _Keeping(codes=True)
    call = Call.trace(fn, (variables, *inputs), kwargs)
    evaluate_call(call, call.arguments.leaves, config, ranges, Recorder(), exact, exact=lambda name: True)
    call = Call.trace(fn, (quantized, *inputs), kwargs)
    evaluate_call(call, call.arguments.leaves, config, ranges, recorder, found)
    sums = {}
    for name, (real, *range_and_step) in found.seen.items():
        expected = exact.seen.get(name)
        if expected is not None and expected.shape == real.shape and real.size:
            sums[name] = _site_sums(expected, real, *range_and_step)
    order.update(dict.fromkeys(sums))
    return sums


def _site_sums(
    x: jax.Array, y: jax.Array, low: jax.Array, high: jax.Array, step: jax.Array
) -> dict[str, Any]:
    """Sums of the errors of `y` against `x`, how many values of `x` are clipped, and the histogram of `x`."""
    low, high, step = jnp.min(low), jnp.max(high), jnp.max(step)
    span = jnp.stack([jnp.min(x), jnp.max(x)])
    width = jnp.where(span[1] > span[0], span[1] - span[0], 1) / BINS
    bins = jnp.clip(((x - span[0]) / width).astype(jnp.int32), 0, BINS - 1).reshape(-1)
    counts = jnp.zeros(BINS, jnp.int32).at[bins].add(1)
    # The ends of the range lie on the grid, which may be up to half a step inside of the range that was asked for.
    reach = 0.5001 * step
    clipped = jnp.sum((x < low - reach) | (x > high + reach))
    return {
        **_sums_of(x, y, jnp),
        "clipped": clipped,
        "low": low,
        "high": high,
        "histogram": counts,
        "span": span,
    }


def _sums_of(x: Any, y: Any, xp: Any) -> dict[str, Any]:
    """The sums from which `_errors` follows, of exact numbers `x` and approximate ones `y`; `xp` is np or jnp."""
    d = xp.abs(x - y)
    return {
        "xx": xp.sum(x * x), "yy": xp.sum(y * y), "xy": xp.sum(x * y), "dd": xp.sum(d * d), "d": xp.sum(d),
        "max": xp.max(d) if d.size else xp.sum(d), "n": xp.asarray(d.size, xp.float32),
    }  # fmt: skip


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The sums of two batches together; the histogram stays that of the first batch."""
    joins: dict[str, Callable[[Any, Any], Any]] = {
        "max": np.maximum,
        "low": np.minimum,
        "high": np.maximum,
        "histogram": lambda x, y: x,
        "span": lambda x, y: x,
    }
    return {key: joins.get(key, np.add)(np.asarray(a[key]), np.asarray(b[key])) for key in a}


def _errors(sums: Mapping[str, Any]) -> dict[str, float]:
    xx, yy, xy, dd, d, n = (float(sums[k]) for k in ("xx", "yy", "xy", "dd", "d", "n"))
    cosine = xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else float(xx == yy)
    return {
        "sqnr_db": _decibels(xx, dd),
        "cosine": cosine,
        "max_error": float(sums["max"]),
        "mean_error": d / max(n, 1),
    }


def _decibels(signal: float, noise: float) -> float:
    """The SQNR of a signal and a noise power; infinite without noise, and -inf for noise without a signal."""
    if noise == 0:
        return math.inf
    if noise > 0 and signal > 0:
        return 10 * math.log10(signal / noise)
    return -math.inf


def _site(name: str, sums: Mapping[str, Any]) -> SiteErrors:
    return SiteErrors(
        **_errors(sums), name=name, op=site_op(name), clipped=float(sums["clipped"]) / max(float(sums["n"]), 1),
        minimum=float(sums["low"]), maximum=float(sums["high"]), histogram=tuple(int(c) for c in sums["histogram"]),
        span=(float(sums["span"][0]), float(sums["span"][1])),
    )  # fmt: skip


def _weights(variables: Any, sites: Iterable[str]) -> dict[str, Any]:
    """For each site that is named after the path of a leaf, that leaf."""
    leaves = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    found = {}
    for name in sites:
        path = name.split("#")[0].rsplit(":", 1)[0]
        if leaves.get(path) is not None:
            found[name] = leaves[path]
    return found
