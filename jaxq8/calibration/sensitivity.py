"""`sensitivity`: measures how much accuracy each site costs, and which few sites to leave in float for a wanted accuracy."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq8.analysis.flat_function import Chains
from jaxq8.analysis.sites import site_name
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.calibrate import each_batch
from jaxq8.calibration.example_errors import example_sums
from jaxq8.config import Config, literal
from jaxq8.display.intervals import (
    Interval,
    decibel_text,
    percent_text,
    shares_interval,
    sqnr_interval,
)
from jaxq8.display.text_table import table
from jaxq8.errors import ArgumentError, RangesError
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Value
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.plan import Recorder
from jaxq8.transform import checked_config


@dataclasses.dataclass(frozen=True)
class SiteSensitivity:
    """How much accuracy one site costs.

    Attributes:
      name: Site name.
      alone_db: SQNR of the results if only this site is quantized.
      without_db: SQNR of the results if all sites but this one are quantized.
    """

    name: str
    alone_db: float
    without_db: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The result of `sensitivity`; ``print`` shows it as a table.

    Attributes:
      all_db: SQNR of the results with every site quantized.
      all_agreement: Share of examples with the same largest result as in float.
      sites: The costs of all sites, the most expensive site first. Contractions that read the same codes count as one site,
        under the name of the first, and are switched together.
      overrides: For `Config(overrides=...)`: the sites to leave in float so that the target is reached.
      reached_db: SQNR with these overrides.
      reached_agreement: Agreement with these overrides. They were chosen on the examples that it is measured on, so other
        examples may agree less.
      all_db_interval: Ends of the 95% bootstrap interval of `all_db` over examples; None for fewer than two.
      all_agreement_interval: Ends of the 95% interval of `all_agreement` over examples (Wilson 1927, where an example has one
        result), None if nothing could agree.
      reached_db_interval: That of `reached_db`; None also where everything is in float.
      reached_agreement_interval: That of `reached_agreement`.

    Example:
      >>> found = q8.sensitivity(model.apply, variables, batches, target_db=20)
      >>> found.all_db > 30, found.overrides  # the target is reached with every site in eight bits
      (True, ())
    """

    all_db: float
    all_agreement: float
    sites: tuple[SiteSensitivity, ...]
    overrides: tuple[tuple[str, Mapping[str, Any]], ...]
    reached_db: float
    reached_agreement: float
    all_db_interval: Interval | None = None
    all_agreement_interval: Interval | None = None
    reached_db_interval: Interval | None = None
    reached_agreement_interval: Interval | None = None

    def __str__(self) -> str:
        rows = [(s.name, f"{s.alone_db:.1f}", f"{s.without_db:.1f}") for s in self.sites]
        figures = _text(self.all_db, self.all_db_interval, self.all_agreement, self.all_agreement_interval)
        lines = [f"all sites in eight bits: {figures}"]
        if self.overrides:
            figures = _text(
                self.reached_db,
                self.reached_db_interval,
                self.reached_agreement,
                self.reached_agreement_interval,
            )
            lines.append(f"with {len(self.overrides)} contractions in float: {figures}")
        return "\n".join([*lines, "", *table(("site", "alone, dB", "all but it, dB"), rows)])

    def to_json(self) -> str:
        """All figures as JSON; infinities become null."""
        document = _with_null(dataclasses.asdict(self))
        document["sites"] = [_with_null(site) for site in document["sites"]]
        document["overrides"] = [[pattern, dict(changes)] for pattern, changes in self.overrides]
        return json.dumps(document, indent=1)


def _text(db: float, db_interval: Interval | None, agreement: float, interval: Interval | None) -> str:
    """An SQNR and an agreement with their intervals."""
    figure = f"SQNR {db:.1f} dB {decibel_text(db_interval)}".rstrip()
    return f"{figure}, same first answer {agreement:.1%} {percent_text(interval)}".rstrip()


def _with_null(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with None for infinities and NaN, which JSON does not have."""
    found = dict(figures)
    for name, value in figures.items():
        if isinstance(value, tuple) and all(isinstance(end, float) for end in value):
            found[name] = [end if math.isfinite(end) else None for end in value]
        elif isinstance(value, float) and not math.isfinite(value):
            found[name] = None
    return found


def sensitivity(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    config: Config | None = None,
    ranges: Mapping[str, Range] | None = None,
    target_db: float | None = None,
    target_agreement: float | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Sensitivity:
    """Quantizes one site at a time, and all but one, and proposes the fewest sites to leave in float.

    The error of every combination is measured, not estimated, with the numbers that the codes stand for; one compiled
    function serves all combinations. Sites are left in float in the order of what they cost alone, until the target is
    reached.

    Args:
      fn: The float function.
      variables: Its first argument, in float.
      batches: As for `calibrate`; they are kept in memory. A few dozen examples are enough.
      config: As for `quantize`; sites that it leaves in float are not measured.
      ranges: As for `quantize`.
      target_db: Wanted SQNR of the results, in dB.
      target_agreement: Wanted share of examples whose largest result (along the last axis, in results of two or more axes) is
        the same as in float.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A `Sensitivity`. If no number of sites reaches the target, all are in `overrides`.

    Raises:
      ArgumentError: There are no batches, or a target is not a number that could be reached.
      RangesError: The function has no site that runs in eight bits.

    Example:
      >>> found = q8.sensitivity(model.apply, variables, batches, ranges=ranges, target_db=60)
      >>> fast = jax.jit(q8.quantize(model.apply, q8.Config(overrides=found.overrides), ranges=ranges))
    """
    config, given = checked_config(fn, config), Ranges(ranges)
    _check_targets(target_db, target_agreement)
    data = list(each_batch("sensitivity", batches))
    groups = _groups(fn, variables, data[0], kwargs, config, given)
    names = list(groups)
    if not names:
        raise RangesError(
            "sensitivity: this function has no site that runs in eight bits; q8.explain(...) says why"
        )
    trial = _Trial(fn, variables, data, kwargs, config, given, groups)
    with tqdm(total=2 * len(names) + 1, desc="sensitivity", unit="run", disable=not progress) as bar:
        trial.bar = bar
        whole = trial.measure(range(len(names)))
        alone = [trial.measure([i]).db for i in range(len(names))]
        without = [trial.measure(set(range(len(names))) - {i}).db for i in range(len(names))]
        order = sorted(range(len(names)), key=lambda i: alone[i])
        kept = _fewest(trial, order, whole, target_db, target_agreement)
    sites = tuple(SiteSensitivity(names[i], alone[i], without[i]) for i in order)
    overrides: list[tuple[str, Mapping[str, Any]]] = []
    for i in order[: kept.count]:
        overrides += [(literal(name), {"mode": "off"}) for name in sorted(groups[names[i]])]
    return Sensitivity(
        whole.db, whole.agreement, sites, tuple(overrides), kept.score.db, kept.score.agreement,
        whole.db_interval, whole.agreement_interval, kept.score.db_interval, kept.score.agreement_interval,
    )  # fmt: skip


def _check_targets(db: float | None, agreement: float | None) -> None:
    if db is not None and math.isnan(db):
        raise ArgumentError("sensitivity(target_db=nan): pass decibels")
    if agreement is not None and not 0 <= agreement <= 1:
        raise ArgumentError(f"sensitivity(target_agreement={agreement}): must be a share between 0 and 1")


@dataclasses.dataclass(frozen=True)
class _Score:
    db: float
    agreement: float
    signal: Any = ()  # of each example
    noise: Any = ()
    shares: Any = ()  # of each example, how many of its results agree

    @property
    def db_interval(self) -> Interval | None:
        return sqnr_interval(self.signal, self.noise)

    @property
    def agreement_interval(self) -> Interval | None:
        return shares_interval(self.shares)

    def reaches(self, db: float | None, agreement: float | None) -> bool:
        return (db is None or self.db >= db) and (agreement is None or self.agreement >= agreement)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """How many sites stay in float, and the score that is reached with them."""

    count: int
    score: _Score


def _fewest(
    trial: _Trial,
    order: Sequence[int],
    whole: _Score,
    target_db: float | None,
    target_agreement: float | None,
) -> _Kept:
    """Finds by bisection how many of the first sites of `order` must stay in float."""
    if whole.reaches(target_db, target_agreement):
        return _Kept(0, whole)
    low, high, best = 0, len(order), _Score(math.inf, 1.0)
    while high - low > 1:
        middle = (low + high) // 2
        score = trial.measure(order[middle:])
        if score.reaches(target_db, target_agreement):
            high, best = middle, score
        else:
            low = middle
    return _Kept(high, best)


class _Trial:
    """Measures the results with some sites quantized and the others exact."""

    def __init__(
        self, fn: Callable[..., Any], variables: Any, data: Sequence[tuple[Any, ...]], kwargs: dict[str, Any], config: Config,
        ranges: Ranges, groups: Mapping[str, set[str]],
    ):  # fmt: skip
        self.bar: Any = None
        self._data, self._count, self._variables = data, len(groups), variables
        position = {name: i for i, group in enumerate(groups.values()) for name in group}

        def run(variables: Any, inputs: tuple[Any, ...], exact: jax.Array) -> list[jax.Array]:
            call = Call.trace(fn, (variables, *inputs), kwargs)

            def flag(name: str) -> Any:
                site = position.get(site_name(name))
                return True if site is None else exact[site]

            return evaluate_call(call, call.arguments.leaves, config, ranges, Recorder(), exact=flag)

        self._run = jax.jit(run)
        nothing = jnp.ones(len(groups), bool)
        self._exact = [self._run(variables, inputs, nothing) for inputs in data]

    def measure(self, quantized: Iterable[int]) -> _Score:
        """The score over all data with these sites quantized and all others exact."""
        exact = np.ones(self._count, bool)
        exact[list(quantized)] = False
        same = count = 0.0
        sums, shares = [], []
        for inputs, expected in zip(self._data, self._exact, strict=True):
            results = self._run(self._variables, inputs, jnp.asarray(exact))
            sums.append(example_sums(inputs, expected, results))
            answers: list[np.ndarray] = []
            for e, f in zip(expected, results, strict=True):
                if e.ndim >= 2 and e.shape[-1] > 1:
                    equal = np.asarray(e).argmax(-1) == np.asarray(f).argmax(-1)
                    same, count = same + np.sum(equal), count + equal.size
                    answers.append(equal.mean(axis=tuple(range(1, equal.ndim))))
            if answers:
                shares.append(_mean_of_each_example(answers))
        if self.bar is not None:
            self.bar.update()
        signal, noise = (np.concatenate(part) for part in zip(*sums, strict=True))
        power, error = signal.sum(), noise.sum()
        db = 10 * math.log10(power / error) if error > 0 and power > 0 else math.inf
        agreement = float(same / count) if count else 1.0
        return _Score(db, agreement, signal, noise, np.concatenate(shares) if shares else ())


def _mean_of_each_example(shares: list[np.ndarray]) -> np.ndarray:
    """The mean share of each example over several results; results of different numbers of examples count as one example."""
    if len({len(s) for s in shares}) > 1:
        return np.mean(np.concatenate(shares), keepdims=True)
    return np.mean(shares, axis=0)


class _Names(Probe):
    """Keeps the names of all values that are encoded."""

    active = True

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def see(self, name: str, value: Value, codes: QTensor) -> None:
        self.names[name.removesuffix(".rhs")] = None


def _groups(
    fn: Callable[..., Any],
    variables: Any,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    config: Config,
    ranges: Ranges,
) -> dict[str, set[str]]:
    """For each name under which a value is encoded, the sites that read these codes and are switched together."""
    call, probe = Call.trace(fn, (variables, *inputs), kwargs), _Names()
    jax.eval_shape(
        lambda leaves: evaluate_call(
            call, leaves, config, ranges, Recorder(), probe, exact=lambda name: True
        ),
        call.arguments.leaves,
    )
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config)
    groups: dict[str, set[str]] = {}
    taken: set[str] = set()
    for name in probe.names:
        if name not in taken:
            groups[name] = chains.sharing(name) - taken
            taken |= groups[name]
    return groups
