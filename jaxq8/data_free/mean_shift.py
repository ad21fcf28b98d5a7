"""How far rounded weights move the mean of a contraction's result, and which mean of its input explains that of its result."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxq8._compat import primitives
from jaxq8.analysis.flat_function import Node

ENOUGH = 2  # results for each unknown input channel that its mean is found from


def mean_shift(node: Node, weight: int, difference: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """The mean of a contraction's result for constant inputs: ``difference`` is its weight, or the error of its weight.

    Args:
      node: The contraction.
      weight: The position of its weight operand.
      difference: An array like that operand.
      mean: A number for each channel that is summed over.

    Returns:
      A number for each output channel; None for a contraction that has no such channels.
    """
    table = response(node, weight, difference)
    if table is None:
        return None
    groups = mean.size // table.shape[1]
    if groups * table.shape[1] != mean.size or table.shape[0] % groups:
        return None
    by_group = table.reshape(groups, -1, table.shape[1])
    return np.einsum("goi,gi->go", by_group, mean.reshape(groups, -1)).reshape(-1)


def explaining_mean(node: Node, weight: int, operand: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """The means of the input channels that give these means of the result, by least squares; None if it does not tell them."""
    table = response(node, weight, operand)
    if table is None or table.shape[0] < ENOUGH * table.shape[1] or table.shape[0] != mean.size:
        return None
    if node.eqn.params.get("feature_group_count", 1) != 1:
        return None
    found, _, rank, _ = np.linalg.lstsq(table, mean, rcond=1e-3)
    return found if rank == table.shape[1] and explains(table @ found, mean) else None


def explains(found: np.ndarray, mean: np.ndarray) -> bool:
    """Whether a vector is nearer to another than half of that one's size."""
    return bool(2 * np.linalg.norm(found - mean) < np.linalg.norm(mean))


def response(node: Node, weight: int, operand: np.ndarray) -> np.ndarray | None:
    """What one more unit in an input channel adds to the mean of each output channel: (outputs, inputs of a group)."""
    operand = np.asarray(operand, np.float64)
    params = node.eqn.params
    if node.primitive is primitives.conv_general_dilated_p:
        numbers = params["dimension_numbers"]
        if weight != 1 or params["batch_group_count"] != 1:
            return None
        taps = operand.transpose(numbers.rhs_spec)
        for d in range(taps.ndim - 2):
            covered = _covered(node, d, taps.shape[2 + d])
            taps = taps * covered.reshape([-1 if a == 2 + d else 1 for a in range(taps.ndim)])
        return taps.sum(tuple(range(2, taps.ndim)))
    contracted, batched = params["dimension_numbers"]
    if batched[0] or len(contracted[weight]) != 1 or operand.ndim != 2 or weight != 1:
        return None
    return operand if contracted[1][0] == 1 else operand.T


def _covered(node: Node, d: int, taps: int) -> np.ndarray:
    """The share of positions of a convolution, along one axis, at which each tap meets data and no padding."""
    params: dict[str, Any] = node.eqn.params
    numbers = params["dimension_numbers"]
    size = node.inputs[0][1].aval.shape[numbers.lhs_spec[2 + d]]  # type: ignore[index]
    places = node.outputs[0][1].aval.shape[numbers.out_spec[2 + d]]
    dilation = params["lhs_dilation"][d]
    where = (
        np.arange(places)[:, None] * params["window_strides"][d]
        + np.arange(taps) * params["rhs_dilation"][d]
        - params["padding"][d][0]
    )
    meets = (where >= 0) & (where <= (size - 1) * dilation) & (where % dilation == 0)
    return meets.mean(0)
