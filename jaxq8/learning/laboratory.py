"""`experiment`: measures a model in a grid of quantization settings; the result is a tidy table, and runs can be resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxq8.calibration.calibrate import calibrate, each_batch
from jaxq8.config import Config
from jaxq8.display.intervals import Share, bootstrap
from jaxq8.display.tables import Row, Table
from jaxq8.errors import ArgumentError, FileError
from jaxq8.learning.learn_rounding import learn_rounding
from jaxq8.learning.rounding_problems import learned_rounding_names
from jaxq8.numerics.ranges import Ranges
from jaxq8.numerics.rounding import rounding_names
from jaxq8.numerics.spec import Spec
from jaxq8.transform import quantize
from jaxq8.weights import quantize_weights

DYNAMIC = "dynamic"  # stands for no observer: ranges are found in each run
CAP_DB = 120.0  # the SQNR that stands for no error at all, which would be infinite
# ``metric(exact, found)`` takes the results of both functions for one batch and returns one number for each example.
Metric = Callable[[np.ndarray, np.ndarray], Any]


def sqnr_by_example(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    """SQNR of each example in dB, (n,), at most 120: ``10 log10(sum x**2 / sum (x - y)**2)``."""
    x, difference = (np.asarray(a, np.float64).reshape(len(exact), -1) for a in (exact, exact - found))
    signal, noise = (np.maximum((a * a).sum(1), 1e-300) for a in (x, difference))
    return np.minimum(10 * np.log10(signal / noise), CAP_DB)


def same_answer(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For each example whether the largest logit is the same, bool (n,)."""
    return np.asarray(exact.argmax(-1) == found.argmax(-1))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of the grid.

    Attributes:
      rounding: A registered rounding, or a method of learned rounding for the weights.
      bits: Bits of weights.
      activation_bits: Bits of activations.
      granularity: Granularity of weights: "tensor", "channel", or "group64" for groups of 64.
      symmetric: Whether the representation of weights is symmetric.
      observer: The observer of activations, or "dynamic".
    """

    rounding: str = "half_even"
    bits: int = 8
    activation_bits: int = 8
    granularity: str = "channel"
    symmetric: bool = True
    observer: str = DYNAMIC

    @property
    def is_learned(self) -> bool:
        """Whether the rounding of the weights is learned."""
        return self.rounding not in rounding_names()

    def config(self, base: Config) -> Config:
        """`base` with this setting's weights, activations and rounding."""
        kind, _, size = self.granularity.partition("group")
        weights = dataclasses.replace(
            base.weights, bits=self.bits, symmetric=self.symmetric,
            granularity=kind or "group", group=int(size) if size.isdigit() else 0,  # type: ignore[arg-type]
        )  # fmt: skip
        activations = dataclasses.replace(base.activations, bits=self.activation_bits)
        rounding = base.rounding if self.is_learned else self.rounding
        return dataclasses.replace(base, weights=weights, activations=activations, rounding=rounding)


def experiment(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    rounding: Sequence[str] = ("half_even",),
    bits: Sequence[int] = (8,),
    activation_bits: Sequence[int] = (8,),
    granularity: Sequence[str] = ("channel",),
    symmetric: Sequence[bool] = (True,),
    observer: Sequence[str] = (DYNAMIC,),
    metrics: Mapping[str, Metric] | None = None,
    calibration: Iterable[Any] = (),
    config: Config | None = None,
    path: str | Path | None = None,
    name: str = "",
    progress: bool = True,
) -> Table:
    """Quantizes a model in every combination of the given settings and compares each with float, example by example.

    Args:
      fn: The float function, with one result: ``model.apply``.
      variables: Its first argument, in float.
      batches: Data to measure on, as for `compare`; batches of one size compile once.
      rounding: Registered roundings (for weights and activations), and methods of `learn_rounding` (for weights).
      bits: Bits of weights.
      activation_bits: Bits of activations.
      granularity: Granularities of weights: "tensor", "channel", or "group64" for groups of 64.
      symmetric: Whether the representation of weights is symmetric.
      observer: Names of observers, or "dynamic".
      metrics: Name -> ``metric(exact, found)``, which returns one number or boolean for each example; default "sqnr_db" and,
        for results of at least three columns, "same_answer".
      calibration: Batches for observers and learned rounding; they should not be among those that are measured.
      config: The configuration that each setting changes.
      path: A file of JSON lines. Every finished setting is added to it at once, and settings that it holds are not run again,
        so an experiment that was interrupted continues where it stopped.
      name: The model's name. It is a column of the table, and `path` is searched for settings of this model only.
      progress: Show progress bars.

    Returns:
      A `Table` with one row for each setting, in the order of the grid: means with their 95% intervals over examples, those of
      `bootstrap` for numbers and those of `Share` for booleans.

    Raises:
      ArgumentError: There are no batches, a rounding is unknown, or calibration data is needed and missing.
      FileError: `path` holds something other than results of `experiment`.

    Example:
      >>> table = q8.experiment(model.apply, variables, batches, bits=(8, 4))
      >>> print(table)
      rounding   bits  activation_bits  granularity  symmetric  observer  sqnr_db ...
      >>> table.plot("lab.png", x="bits", by="rounding")
    """
    grid = itertools.product(rounding, bits, activation_bits, granularity, symmetric, observer)
    settings = [Setting(*point) for point in grid]
    data, learning = list(each_batch("experiment", batches)), list(calibration)
    _check(settings, learning)
    exact = _outputs(jax.jit(fn), variables, data)
    chosen = dict(metrics) if metrics else _default_metrics(exact)
    done = _read(Path(path), chosen) if path else {}
    laboratory = _Laboratory(fn, variables, data, learning, config or Config(), exact, chosen)
    rows: list[Row] = []
    for setting in tqdm(settings, desc=f"experiment {name}".strip(), unit="setting", disable=not progress):
        point = {"model": name, **dataclasses.asdict(setting)}
        row = done.get(_identity(point))
        if row is None:
            row = {**point, **laboratory.measure(setting)}
            if path:
                with Path(path).open("a") as file:
                    file.write(json.dumps(row) + "\n")
        rows.append(row)
    return Table(tuple(rows), tuple(chosen))


def _check(settings: list[Setting], calibration: list[Any]) -> None:
    known = {*rounding_names(), *learned_rounding_names()}
    for setting in settings:
        if setting.rounding not in known:
            raise ArgumentError(
                f"experiment: unknown rounding {setting.rounding!r}; known: {', '.join(sorted(known))}"
            )
        if not calibration and (setting.is_learned or setting.observer != DYNAMIC):
            raise ArgumentError(f"experiment: {setting} needs data to learn from; pass calibration=batches")


def _default_metrics(exact: list[np.ndarray]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {"sqnr_db": sqnr_by_example}
    looks_like_logits = exact[0].ndim == 2 and exact[0].shape[1] >= 3
    if looks_like_logits:
        metrics["same_answer"] = same_answer
    return metrics


def _outputs(fn: Callable[..., Any], variables: Any, data: list[tuple[Any, ...]]) -> list[np.ndarray]:
    return [np.asarray(fn(variables, *inputs)) for inputs in data]


def _identity(point: Mapping[str, Any]) -> str:
    """Text that two rows share if they are of the same model and setting."""
    names = ("model", *(f.name for f in dataclasses.fields(Setting)))
    return json.dumps([point[name] for name in names])


def _with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and interval of a metric over examples."""
    if values.dtype != np.bool_:
        return bootstrap(values)
    share = Share.of(values)
    return (share.value, *share.interval)


def _read(path: Path, metrics: Mapping[str, Metric]) -> dict[str, Row]:
    """The finished rows of a file that have all metrics, by `_identity`; a last line that was cut off is removed from it."""
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        found = {_identity(row): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}: not a file of experiment ({error}); give another path") from error
    return {point: row for point, row in found.items() if all(metric in row for metric in metrics)}


@dataclasses.dataclass
class _Laboratory:
    """Measures one setting after the other; holds what all settings share, and the ranges that were calibrated so far."""

    fn: Callable[..., Any]
    variables: Any
    data: list[tuple[Any, ...]]
    calibration: list[Any]
    base: Config
    exact: list[np.ndarray]
    metrics: Mapping[str, Metric]
    _ranges: dict[tuple[str, Spec], Ranges] = dataclasses.field(default_factory=dict)

    def measure(self, setting: Setting) -> Row:
        """The mean of each metric in one setting, with the ends of its interval."""
        config = setting.config(self.base)
        ranges = self._calibrated(setting.observer, config)
        fast = jax.jit(quantize(self.fn, config, ranges=ranges))
        found = _outputs(fast, self._encoded(setting, config), self.data)
        row: Row = {}
        for name, metric in self.metrics.items():
            values = np.concatenate([np.ravel(metric(x, y)) for x, y in zip(self.exact, found, strict=True)])
            row[name], row[f"{name}_low"], row[f"{name}_high"] = _with_interval(values)
        return row

    def _encoded(self, setting: Setting, config: Config) -> Any:
        if not setting.is_learned:
            # A row shows what its rounding does, and no correction.
            return quantize_weights(self.fn, self.variables, *self.data[0], config=config, correct=None)
        return learn_rounding(
            self.fn,
            self.variables,
            self.calibration,
            method=setting.rounding,
            config=config,
            stages=1,
            progress=False,
        )

    def _calibrated(self, observer: str, config: Config) -> Ranges | None:
        if observer == DYNAMIC:
            return None
        known = observer, config.activations
        if known not in self._ranges:
            self._ranges[known] = calibrate(
                self.fn, self.variables, self.calibration, config=config, observer=observer, progress=False
            )
        return self._ranges[known]
