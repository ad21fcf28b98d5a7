"""The errors of each example by itself, over which confidence intervals are taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def example_count(inputs: Sequence[Any], results: Sequence[Any]) -> int | None:
    """How many examples a batch has; None where the results cannot be told apart by example.

    Examples lie along the first axis, if the first input and all results have the same size there.
    """
    first = jax.tree.leaves(inputs)[:1]
    sizes = {np.shape(x)[0] if np.ndim(x) else None for x in (*first, *results)}
    (size,) = sizes if len(sizes) == 1 else (None,)
    return size or None


def example_sums(
    inputs: Sequence[Any], exact: Sequence[Any], found: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Signal and noise of each example of a batch: two vectors, of one element where examples cannot be told apart.

    Args:
      inputs: The inputs of the batch.
      exact: The exact results.
      found: The approximate results, in the same shapes.
    """
    rows = example_count(inputs, exact) or 1
    signal, noise = np.zeros(rows), np.zeros(rows)
    for e, f in zip(exact, found, strict=True):
        e, f = (np.asarray(x, np.float64).reshape(rows, -1) for x in (e, f))
        signal, noise = signal + (e * e).sum(1), noise + ((e - f) ** 2).sum(1)
    return signal, noise
