"""Sums and products with vectors of leaves, as biases and batch norms are: which follow a value, and what they do to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.analysis.flat_function import Chains, Node, Ref, channel_axis

SUMS = (primitives.add_p, primitives.sub_p)
PRODUCTS = (primitives.mul_p, primitives.div_p)


@dataclasses.dataclass(frozen=True)
class Step:
    """One sum or product of the contraction's result with a vector.

    Attributes:
      node: The operation.
      operand: Its other operand, the vector.
      leaves: The leaves that the vector is computed from.
      leaf: The leaf that the vector is, if only its layout was changed; None if it was computed.
    """

    node: Node
    operand: Ref
    leaves: frozenset[int]
    leaf: int | None


def steps_after(chains: Chains, node: Node) -> list[Step]:
    """The sums and products with vectors of leaves that directly follow a contraction, in order.

    Only vectors whose intermediate values nothing else reads count: these may be changed.
    """
    ref = node.outputs[0]
    return steps_from(chains, ref, channel_axis(node), chains.only_reader(ref), private=True)


def steps_from(chains: Chains, ref: Ref, axis: int, reader: Node | None, private: bool = False) -> list[Step]:
    """The sums and products of a value with vectors of leaves, in order, beginning with one of its readers.

    Args:
      chains: The function.
      ref: The value.
      axis: Its channel axis.
      reader: The first operation; None if there is none.
      private: Leave out vectors of which something else reads an intermediate value.
    """
    steps: list[Step] = []
    while reader is not None:
        if reader.primitive in (*SUMS, *PRODUCTS):
            first = reader.inputs[0] == ref
            operand = reader.inputs[1 if first else 0]
            used = leaves_of(chains, operand, private)
            swapped = not first and reader.primitive in (primitives.sub_p, primitives.div_p)
            if operand is None or not used or swapped:
                break
            steps.append(Step(reader, operand, used, chains.vector(operand, axis)))
        elif reader.primitive is not primitives.convert_element_type_p:
            break
        ref = reader.outputs[0]
        reader = chains.only_reader(ref)
    return steps


def leaves_of(chains: Chains, ref: Ref | None, private: bool = True) -> frozenset[int]:
    """The leaves that a value is computed from.

    Empty if it depends on anything but leaves and literals, or (`private`) if an intermediate value has another reader.
    """
    if ref is None:
        return frozenset()
    node = chains.makers.get(ref)
    if node is None:
        trail = chains.trails.get(ref)
        return frozenset() if trail is None else frozenset(leaf for leaf, _ in trail.sources)
    if node.primitive not in _NUMPY or (private and chains.only_reader(ref) is None):
        return frozenset()
    found: frozenset[int] = frozenset()
    for operand, variable in zip(node.inputs, node.eqn.invars, strict=True):
        if isinstance(variable, Literal):
            continue
        part = leaves_of(chains, operand, private)
        if not part:
            return frozenset()
        found |= part
    return found


def affine(
    chains: Chains, steps: list[Step], axis: int, size: int, values: dict[int, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(factors, offsets) of all steps together, one number for each channel, for these values of the leaves."""
    factors, offsets = np.ones(size), np.zeros(size)
    for step in steps:
        operation = step.node.primitive
        vector = vector_of(chains, step.operand, values, axis)
        if operation in PRODUCTS:
            vector = 1 / vector if operation is primitives.div_p else vector
            factors, offsets = factors * vector, offsets * vector
        else:
            offsets = offsets + (-vector if operation is primitives.sub_p else vector)
    return factors, offsets


def vector_of(chains: Chains, ref: Ref, values: dict[int, Any], axis: int) -> np.ndarray:
    """The numbers of a vector along the channel axis; NaN for a channel in which the elements differ."""
    whole = value_of(chains, ref, values)
    # Along an axis of stride 0 a view repeats one element, and need not be looked at.
    repeated = (d != axis and stride == 0 for d, stride in enumerate(whole.strides))
    rows = np.moveaxis(whole[tuple(slice(1) if r else slice(None) for r in repeated)], axis, 0)
    first = rows[(slice(None), *[slice(1)] * (rows.ndim - 1))]
    same = (rows == first).all(tuple(range(1, rows.ndim)))
    return np.where(same, first.reshape(-1), np.nan)


def value_of(chains: Chains, ref: Ref, values: dict[int, Any]) -> np.ndarray:
    """What is computed from leaves with these values, in float64."""
    node = chains.makers.get(ref)
    if node is None:
        leaf, _ = chains.trails[ref].sources[0]
        return np.asarray(values[leaf], np.float64)
    operands = []
    for operand, variable in zip(node.inputs, node.eqn.invars, strict=True):
        if isinstance(variable, Literal):
            operands.append(np.asarray(variable.val, np.float64))
        else:
            operands.append(value_of(chains, operand, values))  # type: ignore[arg-type]
    return _NUMPY[node.primitive](*operands, node.eqn.params)


def _broadcast(x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """`lax.broadcast_in_dim` as a view without a copy, since the result may be as large as an activation."""
    small = [1] * len(params["shape"])
    for size, place in zip(x.shape, params["broadcast_dimensions"], strict=True):
        small[place] = size
    return np.broadcast_to(x.reshape(small), params["shape"])


# The operations by which vectors may be computed from leaves. Whatever uses another operation (a mean over the data, for
# example) is not such a vector.
_NUMPY: dict[Any, Callable[..., np.ndarray]] = {
    primitives.add_p: lambda x, y, params: x + y,
    primitives.sub_p: lambda x, y, params: x - y,
    primitives.mul_p: lambda x, y, params: x * y,
    primitives.div_p: lambda x, y, params: x / y,
    primitives.max_p: lambda x, y, params: np.maximum(x, y),
    primitives.neg_p: lambda x, params: -x,
    primitives.sqrt_p: lambda x, params: np.sqrt(x),
    primitives.rsqrt_p: lambda x, params: 1 / np.sqrt(x),
    primitives.integer_pow_p: lambda x, params: x ** params["y"],
    primitives.convert_element_type_p: lambda x, params: x,
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.reshape_p: lambda x, params: x.reshape(params["new_sizes"]),
    primitives.squeeze_p: lambda x, params: x.squeeze(params["dimensions"]),
}
