"""What the examples measure of a float function and its eight-bit twin: time, bytes, noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import jaxq8 as q8


def weight_bytes(variables: Any) -> int:
    """Bytes of all arrays in a tree; of a quantized tensor its codes, scales and zero points count."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(variables))


def sqnr_db(exact: np.ndarray, approximate: np.ndarray) -> float:
    """Signal to quantization noise ratio over all elements, in dB; infinite where both are equal.

    10 log10(sum exact^2 / sum (exact - approximate)^2)
    """
    exact = np.asarray(exact, np.float64)
    noise = np.sum((exact - approximate) ** 2)
    return float(10 * np.log10(np.sum(exact**2) / noise)) if noise else float("inf")


def sqnr_interval(exact: np.ndarray, approximate: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of `sqnr_db` over examples, which lie along the first axis, in dB."""
    exact = np.asarray(exact, np.float64).reshape(len(exact), -1)
    noise = ((exact - np.reshape(approximate, exact.shape)) ** 2).sum(1)
    _, low, high = q8.bootstrap((exact**2).sum(1), over=noise)
    return float(10 * np.log10(low)), float(10 * np.log10(high))


def fastest_ms(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int, seconds: float = 20
) -> tuple[float, float]:
    """The shortest time of each call in milliseconds, the two taking turns so that both see the same machine.

    The first round is not counted: it compiles. Then come `repeats` rounds, or what `seconds` allow, but 3.
    """
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    for _ in tqdm(range(repeats + 1), desc="timing", unit="round", leave=False, mininterval=1):
        if len(times[0]) > 3 and time.perf_counter() > end:
            break
        for call, series in zip((first, second), times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            series.append((time.perf_counter() - start) * 1e3)
    return min(times[0][1:]), min(times[1][1:])
