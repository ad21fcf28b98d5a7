"""Codes whose rounding errors cancel: in each channel the weighted sum of the errors is brought near zero.

The error that rounding makes in a result is the sum of the errors of a channel's weights, each times what it is multiplied
with. Inputs after relu are positive, and neighbours in a picture are alike, so errors of one sign add up. Rounding the other way
where a weight lies near the middle between two codes costs little, and a few such weights make up for all of a channel.
This is the first term of the second-order view of Nagel et al. 2020 (AdaRound, eq. 11), for expected inputs instead of data.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8.numerics.qtensor import QTensor

COLUMNS = 1 << 22  # weights that are sorted at once


def balanced(
    weight: Any, codes: QTensor, kept: tuple[int, ...], mean: Any = 1.0, variance: Any = 1.0
) -> QTensor:
    """The codes of a weight, some of them one step further, so that the errors of each channel cancel.

    Args:
      weight: The weight in float.
      codes: Its codes.
      kept: The axes that are not summed over: each index along them is a channel.
      mean: The mean of what each weight is multiplied with; broadcasts to the weight.
      variance: Its variance; what one more step costs is weighed with it.

    Returns:
      A QTensor that differs from `codes` in some of the codes, each by one.
    """
    if codes.values.dtype not in (jnp.int8, jnp.uint8):
        return codes
    shape = codes.shape
    summed = [d for d in range(len(shape)) if d not in kept]
    order = [*summed, *(d for d in range(len(shape)) if d in kept)]
    rows = int(np.prod([shape[d] for d in summed], dtype=int))

    def columns(array: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(array, np.float32), shape).transpose(order).reshape(rows, -1)

    values = np.asarray(codes.values, np.int32)
    low, high = _ends(codes)
    parts = [
        columns(a)
        for a in (weight, codes.dequantize(np.float32), codes.by_element(codes.scale), mean, variance)
    ]
    ordered = values.transpose(order)
    flat = ordered.reshape(rows, -1).copy()
    width = max(1, COLUMNS // max(rows, 1))
    for start in range(0, flat.shape[1], width):
        some = slice(start, start + width)
        flat[:, some] += _steps(flat[:, some], *(p[:, some] for p in parts), low, high)
    back = flat.reshape(ordered.shape).transpose(np.argsort(order))
    return dataclasses.replace(codes, values=jnp.asarray(back, codes.values.dtype))


def _ends(codes: QTensor) -> tuple[int, int]:
    """The smallest and largest code."""
    count = 2**codes.bits
    if not codes.signed:
        return 0, count - 1
    return -(count // 2) + (1 if codes.symmetric else 0), count // 2 - 1


def _steps(
    values: np.ndarray, weight: np.ndarray, decoded: np.ndarray, scale: np.ndarray, mean: np.ndarray,
    variance: np.ndarray, low: int, high: int,
) -> np.ndarray:  # fmt: skip
    """-1, 0 or 1 for each code: the steps that lower the expected squared error of each column's sum the most."""
    error = decoded - weight
    total = np.sum(error * mean, axis=0, dtype=np.float64)
    step = np.where(error > 0, -1, 1)  # towards the weight, and past it
    effect = step * scale * mean
    helps = (effect * np.sign(total) < 0) & (values + step >= low) & (values + step <= high)
    size = np.where(helps, np.abs(effect), 0.0)
    price = variance * (np.square(scale - np.abs(error)) - np.square(error))
    order = np.argsort(np.where(helps, price / np.maximum(size, 1e-30), np.inf), axis=0, kind="stable")
    moved = np.cumsum(np.take_along_axis(size, order, 0), axis=0, dtype=np.float64)
    paid = np.cumsum(np.take_along_axis(np.where(helps, price, 0.0), order, 0), axis=0, dtype=np.float64)
    gain = np.square(total) - np.square(np.abs(total) - moved) - paid
    best = np.argmax(gain, axis=0)
    taken = np.arange(values.shape[0])[:, None] <= np.where(gain.max(axis=0) > 0, best, -1)
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, order, taken, 0)
    return np.where(chosen & helps, step, 0)
