"""Batch norms in a traced function, and the mean and spread of their input and result, which their statistics tell."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.analysis.affine_steps import PRODUCTS, SUMS, Step, affine, leaves_of, steps_from, value_of
from jaxq8.analysis.flat_function import Chains, Node, Ref

ROOTS = (primitives.sqrt_p, primitives.rsqrt_p)
SAME = 1e-6  # how far numbers may differ, relatively, that are computed from float32


@dataclasses.dataclass(frozen=True, eq=False)
class BatchNorm:
    """One batch norm with its running statistics, and the vectors that are added or multiplied next to it.

    Attributes:
      source: The value that enters the first of these steps.
      result: The value after the last one.
      axis: Their channel axis.
      mean: The mean of `source`, a float64 for each channel.
      result_mean: The mean of `result`.
      result_spread: The standard deviation of `result`.
      leaf: The leaf that holds the running mean.
    """

    source: Ref
    result: Ref
    axis: int
    mean: np.ndarray
    result_mean: np.ndarray
    result_spread: np.ndarray
    leaf: int


def batch_norms(chains: Chains, leaves: dict[int, Any]) -> list[BatchNorm]:
    """The batch norms of a function, in program order.

    A batch norm is found by what it computes, not by its name: a value is scaled by the reciprocal of the square root of a
    leaf, and there is a leaf that moves the result as much down as the value itself would move it up: the running mean.

    Args:
      chains: The function.
      leaves: The leaves by number, in float.
    """
    found: list[BatchNorm] = []
    inside: set[Node] = set()  # operations that belong to a chain already
    for node in chains.nodes:
        if node.primitive not in (*SUMS, *PRODUCTS) or node in inside:
            continue
        start = _start(chains, node, leaves)
        if start is None:
            continue
        steps = list(
            itertools.takewhile(lambda s: s.leaves <= leaves.keys(), steps_from(chains, *start, node))
        )
        inside.update(step.node for step in steps)
        norm = _norm(chains, *start, steps, leaves)
        if norm is not None:
            found.append(norm)
    return found


def _start(chains: Chains, node: Node, leaves: dict[int, Any]) -> tuple[Ref, int] | None:
    """(the value that an operation combines with a vector of leaves, its channel axis); None if it does no such thing."""
    for ref, other in (node.inputs, node.inputs[::-1]):
        if ref is None or ref in chains.trails or leaves_of(chains, ref, private=False):
            continue
        used = leaves_of(chains, other, private=False)
        if other is None or not used or not used <= leaves.keys():
            continue
        axis = _vector_axis(value_of(chains, other, leaves))
        if axis is not None:
            return ref, axis
    return None


def _vector_axis(array: np.ndarray) -> int | None:
    """The only axis along which an array is not broadcast; None if there are several, or none."""
    axes = [
        d for d, (n, stride) in enumerate(zip(array.shape, array.strides, strict=True)) if n > 1 and stride
    ]
    return axes[0] if len(axes) == 1 else None


def _norm(
    chains: Chains, source: Ref, axis: int, steps: Sequence[Step], leaves: dict[int, Any]
) -> BatchNorm | None:
    size = int(source[1].aval.shape[axis])
    roots = {
        root for step in steps if step.node.primitive in PRODUCTS for root in _roots(chains, step.operand)
    }
    if len(roots) != 1:
        return None
    (root,) = roots
    variance = value_of(chains, root, leaves).reshape(-1)
    used = {leaf: np.asarray(leaves[leaf], np.float64) for step in steps for leaf in step.leaves}
    in_variance = leaves_of(chains, root, private=False)

    def combined(changed: Mapping[int, Any]) -> tuple[np.ndarray, np.ndarray]:
        return affine(chains, list(steps), axis, size, {**used, **changed})

    with np.errstate(all="ignore"):
        factors, offsets = combined({})
        if variance.size != size or not _usable(factors, offsets, variance):
            return None
        means = [
            leaf for leaf in used
            if leaf not in in_variance and np.size(used[leaf]) == size
            and _moves(combined({leaf: used[leaf] + 1}), factors, offsets)
        ]  # fmt: skip
    if len(means) != 1:
        return None
    mean = used[means[0]].reshape(-1) - _added_before(steps, means[0], used, size)
    result = factors * mean + offsets
    spread = np.abs(factors) * np.sqrt(variance)
    return BatchNorm(source, steps[-1].node.outputs[0], axis, mean, result, spread, means[0])


def _roots(chains: Chains, ref: Ref | None) -> Iterator[Ref]:
    """The values whose square root is taken while a vector is computed."""
    node = chains.makers.get(ref) if ref is not None else None
    if node is None:
        return
    if node.primitive in ROOTS and node.inputs[0] is not None:
        yield node.inputs[0]
    for operand, variable in zip(node.inputs, node.eqn.invars, strict=True):
        if not isinstance(variable, Literal):
            yield from _roots(chains, operand)


def _usable(*vectors: np.ndarray) -> bool:
    return all(np.isfinite(v).all() for v in vectors) and bool(vectors[0].any() and (vectors[2] > 0).all())


def _moves(changed: tuple[np.ndarray, np.ndarray], factors: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether a leaf that grew by one moved the result down by the factors, and changed nothing else."""
    limit = SAME * (1 + np.abs(offsets) + np.abs(factors))
    return bool(
        (np.abs(changed[0] - factors) <= limit).all()
        and (np.abs(changed[1] - (offsets - factors)) <= limit).all()
    )


def _added_before(steps: Sequence[Step], mean: int, used: Mapping[int, np.ndarray], size: int) -> np.ndarray:
    """What is added to the source before it is normalized, such as the bias of a convolution: the mean contains it."""
    total = np.zeros(size)
    for step in steps:
        if step.node.primitive in PRODUCTS or step.leaf == mean:
            break
        if step.leaf is None:  # a computed vector: the mean may be in it
            break
        sign = -1.0 if step.node.primitive is primitives.sub_p else 1.0
        total = total + sign * used[step.leaf].reshape(-1)
    return total
