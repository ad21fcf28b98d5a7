"""Codes whose rounding errors cancel: in each channel the weighted sum of the errors is brought near zero.

The error that rounding makes in a result is the sum of the errors of a channel's weights, each times what it is multiplied
with. Inputs after relu are positive, and neighbours in a picture are alike, so errors of one sign add up. To round the other
way where a weight lies near the middle between two codes costs little, and a few such weights make up for all of a channel.
This lowers the layer's expected squared error, the measure of Nagel et al. 2020 (AdaRound, eq. 13), without any data: the
second moments of the inputs are taken to be a mean times itself, and a variance.
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

    ordered = np.asarray(codes.values, np.int32).transpose(order)
    values = ordered.reshape(rows, -1).copy()
    step_sizes = columns(codes.by_element(codes.scale))
    exact, decoded = columns(weight), columns(codes.dequantize(np.float32))
    means, variances = columns(mean), columns(variance)
    low, high = ends(codes)
    width = max(1, COLUMNS // max(rows, 1))
    for start in range(0, values.shape[1], width):
        some = (slice(None), slice(start, start + width))
        error = decoded[some] - exact[some]
        step = np.where(error > 0, -1, 1)  # towards the weight, and past it
        possible = (values[some] + step >= low) & (values[some] + step <= high)
        values[some] += step * _taken(error, step * step_sizes[some], means[some], variances[some], possible)
    back = values.reshape(ordered.shape).transpose(np.argsort(order))
    return dataclasses.replace(codes, values=jnp.asarray(back, codes.values.dtype))


def ends(codes: QTensor) -> tuple[int, int]:
    """The smallest and largest code."""
    count = 2**codes.bits
    if not codes.signed:
        return 0, count - 1
    return -(count // 2) + (1 if codes.symmetric else 0), count // 2 - 1


def _taken(
    error: np.ndarray, step: np.ndarray, mean: np.ndarray, variance: np.ndarray, possible: np.ndarray
) -> np.ndarray:
    """Which steps to take: those that lower the expected squared error of each column's sum the most.

    The expected square is that of the sum of ``error * mean``, and the sum of ``error**2 * variance``. The steps that lower
    the first are sorted by what they add to the second for what they give, and the best number of them is taken.

    Args:
      error: Decoded minus exact weights, (rows, columns).
      step: What a step adds to each.
      mean: Of what each weight is multiplied with.
      variance: Likewise.
      possible: Whether a code can be moved.
    """
    total = np.sum(error * mean, axis=0, dtype=np.float64)
    helps = possible & (step * mean * np.sign(total) < 0)
    given = np.where(helps, np.abs(step * mean), 0.0)
    price = np.where(helps, variance * (np.square(error + step) - np.square(error)), 0.0)
    order = np.argsort(np.where(helps, price / np.maximum(given, 1e-30), np.inf), axis=0, kind="stable")
    moved = np.cumsum(np.take_along_axis(given, order, 0), axis=0, dtype=np.float64)
    paid = np.cumsum(np.take_along_axis(price, order, 0), axis=0, dtype=np.float64)
    gain = np.square(total) - np.square(np.abs(total) - moved) - paid
    last = np.where(gain.max(axis=0) > 0, np.argmax(gain, axis=0), -1)
    chosen = np.zeros(error.shape, bool)
    np.put_along_axis(chosen, order, np.arange(error.shape[0])[:, None] <= last, 0)
    return chosen & helps
