"""What `compress` measures: the error of the results, on examples that no step learns from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.config import Config
from jaxq8.display.intervals import bootstrap
from jaxq8.errors import ArgumentError, TensorError
from jaxq8.numerics.qtensor import is_qtensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.transform import quantize

Batch = tuple[Any, ...]
CAP_DB = 120.0  # stands for no error at all, and its negative for results that are not finite
PART = 4  # one example, or batch, of so many is held out


@dataclasses.dataclass(frozen=True)
class Data:
    """The data in two parts.

    Attributes:
      learn: The batches that steps learn from.
      held: The batches that errors are measured on.
      apart: Whether the two have no example in common.
    """

    learn: tuple[Batch, ...]
    held: tuple[Batch, ...]
    apart: bool


def split(batches: Sequence[Batch], fits: Callable[[Batch], bool]) -> Data:
    """Holds out every fourth batch; of fewer than four batches every fourth example.

    Args:
      batches: All batches.
      fits: Whether the function takes a batch: if it cannot take a part of one, examples cannot be told apart.

    Returns:
      The parts; both are all batches where neither batches nor examples can be held out.
    """
    if len(batches) >= PART:
        learn = tuple(b for i, b in enumerate(batches) if i % PART != PART - 1)
        return Data(learn, tuple(batches[PART - 1 :: PART]), True)
    some: list[Batch] = []
    held: list[Batch] = []
    seen = 0
    for batch in batches:
        size = _examples(batch)
        if size is None:
            return Data(tuple(batches), tuple(batches), False)
        chosen = (np.arange(seen, seen + size) % PART) == PART - 1
        seen += size
        some += [_rows(batch, ~chosen)] if not chosen.all() else []
        held += [_rows(batch, chosen)] if chosen.any() else []
    if not some or not held or not all(fits(b) for b in (*some, *held)):
        return Data(tuple(batches), tuple(batches), False)
    return Data(tuple(some), tuple(held), True)


def _examples(batch: Batch) -> int | None:
    """How many examples a batch has: the size of the first axis that all of its arrays share."""
    sizes = {np.shape(a)[0] if np.ndim(a) else None for a in jax.tree.leaves(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def largest_count(batch: Batch) -> int:
    """How many examples a batch has at most: the longest first axis of its arrays."""
    return max((np.shape(a)[0] for a in jax.tree.leaves(batch) if np.ndim(a)), default=1)


def _rows(batch: Batch, chosen: np.ndarray) -> Batch:
    rows: Batch = jax.tree.map(lambda a: a[np.flatnonzero(chosen)], batch)
    return rows


@dataclasses.dataclass(frozen=True)
class Score:
    """The error of the results on the held-out examples; each figure with the ends of its 95% bootstrap interval.

    Attributes:
      db: Signal to quantization noise of all results together, at most 120 dB.
      agreement: Share of answers (largest results along the last axis) that are those of float; None without answers.
    """

    db: tuple[float, float, float]
    agreement: tuple[float, float, float] | None

    def row(self) -> dict[str, float]:
        """The figures as columns of a `Table`."""
        figures = {"sqnr_db": self.db} | ({"same_answer": self.agreement} if self.agreement else {})
        return {
            f"{name}{end}": x
            for name, xs in figures.items()
            for end, x in zip(("", "_low", "_high"), xs, strict=True)
        }

    @staticmethod
    def of_row(row: dict[str, Any]) -> Score:
        """The reverse of `row`."""
        db, same = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] if name in row else None
                    for name in ("sqnr_db", "same_answer"))  # fmt: skip
        return Score(tuple(db or ()), tuple(same) if same else None)


class Measure:
    """Measures variables and configurations against the float function on the held-out batches.

    Raises:
      TensorError: The float function gives NaN or infinity; the message names the batch.
    """

    def __init__(self, fn: Callable[..., Any], variables: Any, held: Sequence[Batch], kwargs: dict[str, Any]):
        self._fn, self._held, self._kwargs = fn, held, kwargs
        self._runs: dict[Config, Any] = {}
        run = jax.jit(lambda v, x: _floats(fn(v, *x, **kwargs)))
        self._exact = [jax.device_get(run(variables, batch)) for batch in held]
        for i, outputs in enumerate(self._exact):
            if not all(np.isfinite(out).all() for out in outputs):
                raise TensorError(
                    f"compress: the float function gives NaN or infinity on held-out batch {i}; repair the data or the "
                    "checkpoint"
                )

    @property
    def has_answers(self) -> bool:
        """Whether the results look like logits: one array of at least two axes, the last of at least 3."""
        return all(len(outs) == 1 and outs[0].ndim >= 2 and outs[0].shape[-1] >= 3 for outs in self._exact)

    def score(self, variables: Any, config: Config, ranges: Ranges | None) -> Score:
        """The error of the quantized function with these variables.

        Codes of fewer bits are handed over as codes of eight, which hold the same integers. So one program, which takes much
        longer to compile than to run, serves all widths.
        """
        if config not in self._runs:
            fast = quantize(self._fn, config, ranges=ranges)
            self._runs[config] = jax.jit(lambda v, x: _floats(fast(v, *x, **self._kwargs)))
        run, variables = self._runs[config], _as_eight_bits(variables)
        signal, noise, same = [], [], []
        for batch, exact in zip(self._held, self._exact, strict=True):
            found = jax.device_get(run(variables, batch))
            signal.append(_energy(exact))
            noise.append(_energy([np.asarray(e, np.float64) - f for e, f in zip(exact, found, strict=True)]))
            if self.has_answers:
                equal = exact[0].argmax(-1) == found[0].argmax(-1)
                same.append(equal.reshape(len(equal), -1).mean(1))
        agreement = bootstrap(np.concatenate(same)) if same else None
        return Score(_decibels(np.concatenate(signal), np.concatenate(noise)), agreement)


def _as_eight_bits(variables: Any) -> Any:
    """Symmetric codes of any width, with the width of eight bits."""

    def wide(leaf: Any) -> Any:
        return dataclasses.replace(leaf, bits=8) if is_qtensor(leaf) and leaf.symmetric else leaf

    return jax.tree.map(wide, variables, is_leaf=is_qtensor)


def _floats(outputs: Any) -> list[jax.Array]:
    return [
        jnp.asarray(x) for x in jax.tree.leaves(outputs) if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    ]


def _energy(outputs: Sequence[Any]) -> np.ndarray:
    """The sum of squares of each example; of all together where the outputs do not share their first axis."""
    arrays = [np.asarray(x, np.float64) for x in outputs]
    if len({x.shape[0] if x.ndim else None for x in arrays}) != 1 or not arrays[0].ndim:
        return np.array([sum(float(np.sum(x * x)) for x in arrays)])
    return sum(np.square(x).reshape(len(x), -1).sum(1) for x in arrays)


def _decibels(signal: np.ndarray, noise: np.ndarray) -> tuple[float, float, float]:
    """The signal over the noise of all examples in dB, and its interval; results that are not finite are all noise."""
    noise = np.where(np.isfinite(noise), noise, np.finfo(np.float64).max / len(noise) / 2)
    with np.errstate(divide="ignore"):
        whole, low, high = np.clip(10 * np.log10(bootstrap(signal, over=noise)), -CAP_DB, CAP_DB)
    return float(whole), float(low), float(high)


def target_checks(
    target_db: float | None, target_agreement: float | None, target_bytes: int | None, seconds: float, has_data: bool
) -> None:  # fmt: skip
    """Refuses targets that mean nothing.

    Raises:
      ArgumentError: A target is no number in its range, or needs data where there are none.
    """
    if target_db is not None and not math.isfinite(target_db):
        raise ArgumentError(f"compress(target_db={target_db}): pass a finite number of decibels, such as 30")
    if target_agreement is not None and not 0 < target_agreement <= 1:
        raise ArgumentError(
            f"compress(target_agreement={target_agreement}): pass a share above 0 and at most 1, such as 0.99"
        )
    if target_bytes is not None and not target_bytes > 0:
        raise ArgumentError(f"compress(target_bytes={target_bytes}): pass a positive number of bytes")
    if not seconds > 0:
        raise ArgumentError(f"compress(seconds={seconds}): pass a positive number of seconds")
    if not has_data and (target_db is not None or target_agreement is not None):
        raise ArgumentError(
            "compress: target_db and target_agreement are measured on data; pass batches=[...], or give target_bytes alone"
        )
