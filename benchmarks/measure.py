"""Time and error of all contenders on one model, in one process, alternating."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from benchmarks.contenders import Contender, Prepared, UnavailableError
from benchmarks.models import Model
from benchmarks.regions import Regions

PAUSE = 0.02  # seconds between bursts: thread pools of the one before spin for a while


@dataclasses.dataclass
class Row:
    """One contender on one model.

    Attributes:
        milliseconds: every timed run.
        relative_error: |y - y_float| / |y_float| of the first output; y_float is XLA's float32.
        peak_bytes: memory of a process of its own, above one with a tiny model; None if not measured.
        temporary_bytes: XLA's temporary buffer.
        lower_seconds: of `compile_seconds`, lowering and compiling alone.
        regions: the native regions: calls, contractions in them, contractions of the model.
    """

    model: str
    batch: int
    contender: str
    label: str
    side: str
    milliseconds: list[float]
    relative_error: float
    weight_bytes: int
    compile_seconds: float
    temporary_bytes: int | None = None
    peak_bytes: int | None = None
    lower_seconds: float | None = None
    regions: Regions | None = None

    @property
    def minimum(self) -> float:
        """Of the times, in ms."""
        return min(self.milliseconds)

    @property
    def median(self) -> float:
        """Of the times, in ms."""
        return float(np.median(self.milliseconds))

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the outputs, in dB."""
        return -20 * float(np.log10(max(self.relative_error, 1e-12)))


def prepare_all(
    model: Model, contenders: Sequence[Contender], say: Callable[[str], None]
) -> dict[str, Prepared]:
    """Those that can run; each other one is reported with its reason."""
    ready = {}
    for contender in tqdm(contenders, desc=f"{model.name}: preparing", leave=False):
        try:
            ready[contender.name] = contender.prepare(model)
        except UnavailableError as error:
            say(f"skipped: {contender.label} on {model.name}: {error}")
        # A peer that fails on a model is a result of the comparison, not an end to it.
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            say(f"failed: {contender.label} on {model.name}: {type(error).__name__}: {first[:200]}")
    return ready


def compare(
    model: Model,
    batch: int,
    contenders: Sequence[Contender],
    ready: dict[str, Prepared],
    repeats: int,
    seconds: float,
) -> list[Row]:
    """A row for each prepared contender, errors against XLA's float32 ("xla", always among them)."""
    reference = ready["xla"].outputs()
    times = alternate({name: p.run for name, p in ready.items()}, repeats, seconds, model.name)
    return [
        Row(
            model.name,
            batch,
            contender.name,
            contender.label,
            contender.side,
            times[contender.name],
            relative_error(prepared.outputs(), reference),
            prepared.weight_bytes,
            prepared.compile_seconds,
            prepared.temporary_bytes,
            lower_seconds=prepared.lower_seconds,
            regions=prepared.regions,
        )
        for contender in contenders
        if (prepared := ready.get(contender.name)) is not None
    ]


def alternate(
    runs: dict[str, Callable[[], object]], repeats: int, seconds: float, title: str
) -> dict[str, list[float]]:
    """`repeats` rounds; in each, every contender runs for about `seconds` (at least twice), in ms."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc=f"{title}: rounds", leave=False):
        for name, run in runs.items():
            times[name] += _burst(run, seconds)
            time.sleep(PAUSE)
    return times


def _burst(run: Callable[[], object], seconds: float) -> list[float]:
    run()  # not timed: caches and thread pools are still those of the contender before
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def relative_error(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """|y - r| / |r| over the first output: the others (a decoder's cache) mostly repeat the inputs.

    Raises:
        ValueError: shapes differ.
    """
    y, r = outputs[0].astype(np.float64), reference[0].astype(np.float64)
    if y.shape != r.shape:
        raise ValueError(f"a contender returns shape {y.shape} where XLA's float32 returns {r.shape}")
    return float(np.linalg.norm(y - r) / np.linalg.norm(r))
