"""`fold_norms`: folds a batch norm into the contraction before it, which changes scales and one bias but no codes.

The result of a contraction is often combined with vectors that are computed from variables alone, as in
``(y - mean) * (rsqrt(var + eps) * gamma) + beta``. Together they are ``y * a + b``. Folding multiplies the weight by ``a``,
stores ``b`` in the last vector that is added, and fills the other vectors with ones and zeros; equal vectors are stored once
in a file (`jaxq8.files.weights_file`). Source: Krishnamoorthi 2018, section 3.2.2; Jacob et al. 2018, eq. 14.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.analysis.channel_factors import leaf_readers, weight_axis
from jaxq8.analysis.flat_function import Chains, Node, Ref, array_leaves, channel_axis
from jaxq8.analysis.sites import Site
from jaxq8.config import Config
from jaxq8.numerics.codebook import CodeBook
from jaxq8.numerics.qtensor import QTensor, is_concrete

SUMS = (primitives.add_p, primitives.sub_p)
PRODUCTS = (primitives.mul_p, primitives.div_p)


def fold_norms(
    fn: Callable[..., Any], variables: Any, *inputs: Any, config: Config | None = None, **kwargs: Any
) -> Any:
    """Folds batch norms, and other vectors that scale a contraction's result, into the contraction's weight and bias.

    Only the batch statistics themselves are lost. Of a `QTensor` only the scales change (and the sign of a channel's codes
    where its factor is negative), so the function gives the same results up to the rounding of float32. A model that will
    be trained further needs its statistics, so keep its float file.

    A norm stays as it is in these cases: something else reads one of its vectors or the weight; a factor is zero or not
    finite; nothing is added after the factor; a float leaf has 16 bits; the weight is a `CodeBook`; or the weight has no
    scale for each output channel.

    Args:
      fn: The float function, for example ``model.apply``; it is traced, not run.
      variables: The first argument of `fn`, with float weights or with those that `quantize_weights` returned.
      *inputs: The other arguments of `fn`: arrays or `jax.ShapeDtypeStruct`.
      config: As for `quantize`.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      New variables of the same structure, shapes and dtypes.

    Example:
      >>> folded = q8.fold_norms(model.apply, q_vars, images)
      >>> folded["batch_stats"]["BatchNorm_0"]["var"].shape  # the structure stays, the norm now does nothing
      (128,)
      >>> q8.save("model.q8", folded)
    """
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config or Config())
    flat, arrays, tree = array_leaves(variables)
    leaves = {leaf: flat[i] for leaf, i in enumerate(arrays)}
    readers = leaf_readers(chains)
    returned: set[int] = set()
    for ref in chains.outputs:
        if ref in chains.trails:
            returned.update(leaf for leaf, _ in chains.trails[ref].sources)
    # Leaves that may change: nothing but the norm reads them, and the function does not return them.
    private = {leaf for leaf in leaves if leaf not in returned and len(readers[leaf]) == 1}
    for node, site in chains.contractions():
        fold = _found(chains, node, site, leaves)
        if fold is not None and private.issuperset({fold.weight, fold.shift, *fold.constants}):
            leaves.update(_folded(fold, leaves) or {})
    for leaf, i in enumerate(arrays):
        flat[i] = leaves[leaf]
    return jax.tree_util.tree_unflatten(tree, flat)


@dataclasses.dataclass(frozen=True)
class _Fold:
    """The vectors that follow one contraction, and how they are folded.

    Attributes:
      weight: Leaf that holds the contraction's weight.
      axis: Axis of that leaf that holds the output channels.
      shift: Leaf that is added or subtracted last.
      constants: The number that each other leaf is filled with: 1 for a factor, 0 for a summand.
      affine: Function of the leaves that returns (factors, offsets), so that the contraction's result ``y`` becomes
        ``y * factors + offsets``.
      sign: -1 where the last vector is subtracted, else 1.
    """

    weight: int
    axis: int
    shift: int
    constants: dict[int, float]
    affine: Callable[[dict[int, Any]], tuple[np.ndarray, np.ndarray]]
    sign: float


def _found(chains: Chains, node: Node, site: Site, leaves: dict[int, Any]) -> _Fold | None:
    """The vectors after a contraction, up to the last one that is added; None if they cannot be folded."""
    place = _weight_place(chains, node, site)
    if place is None:
        return None
    weight, out_axis = place
    steps = _steps(chains, node)
    # The chain has to end with a leaf that is added or subtracted: that leaf will hold the folded offsets.
    while steps and (steps[-1].node.primitive not in SUMS or steps[-1].leaf is None):
        steps.pop()
    if not any(step.node.primitive in PRODUCTS for step in steps):
        return None
    *before, last = steps
    constants = _constants(before)
    if constants is None:
        return None
    assert last.leaf is not None
    size = np.shape(leaves[weight])[out_axis]
    affine = partial(_affine, chains, steps, channel_axis(node), size)
    sign = -1.0 if last.node.primitive is primitives.sub_p else 1.0
    return _Fold(weight, out_axis, last.leaf, constants, affine, sign)


def _weight_place(chains: Chains, node: Node, site: Site) -> tuple[int, int] | None:
    """The leaf of a contraction's weight and its axis of output channels; None unless it is one axis of one leaf."""
    assert site.weight is not None
    operand = node.inputs[site.weight]
    trail = chains.trails.get(operand) if operand is not None else None
    axis = weight_axis(node, site.weight, channel_axis(node), out=True)
    if trail is None or axis is None or len(trail.sources) != 1:
        return None
    leaf, axes = trail.sources[0]
    return (leaf, axes[axis][0]) if len(axes[axis]) == 1 else None


def _constants(steps: list[_Step]) -> dict[int, float] | None:
    """What the leaves of these steps are filled with: 1 in products, 0 in sums; None if one leaf is in both."""
    constants: dict[int, float] = {}
    for step in steps:
        number = 1.0 if step.node.primitive in PRODUCTS else 0.0
        for leaf in step.leaves:
            if constants.setdefault(leaf, number) != number:
                return None
    return constants


def _affine(
    chains: Chains, steps: list[_Step], axis: int, size: int, values: dict[int, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(factors, offsets) of all steps together, one number for each channel, for these values of the leaves."""
    factors, offsets = np.ones(size), np.zeros(size)
    for step in steps:
        operation = step.node.primitive
        vector = _vector(chains, step.operand, values, axis)
        if operation in PRODUCTS:
            vector = 1 / vector if operation is primitives.div_p else vector
            factors, offsets = factors * vector, offsets * vector
        else:
            offsets = offsets + (-vector if operation is primitives.sub_p else vector)
    return factors, offsets


@dataclasses.dataclass(frozen=True)
class _Step:
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


def _steps(chains: Chains, node: Node) -> list[_Step]:
    """The sums and products with vectors of leaves that directly follow a contraction, in order."""
    ref, axis, steps = node.outputs[0], channel_axis(node), []
    while (reader := chains.only_reader(ref)) is not None:
        if reader.primitive in (*SUMS, *PRODUCTS):
            first = reader.inputs[0] == ref
            operand = reader.inputs[1 if first else 0]
            used = _leaves_of(chains, operand)
            swapped = not first and reader.primitive in (primitives.sub_p, primitives.div_p)
            if operand is None or not used or swapped:
                break
            steps.append(_Step(reader, operand, used, chains.vector(operand, axis)))
        elif reader.primitive is not primitives.convert_element_type_p:
            break
        ref = reader.outputs[0]
    return steps


def _leaves_of(chains: Chains, ref: Ref | None) -> frozenset[int]:
    """The leaves that a value is computed from.

    Empty if it depends on anything but leaves and literals, or if an intermediate value has another reader.
    """
    if ref is None:
        return frozenset()
    node = chains.makers.get(ref)
    if node is None:
        trail = chains.trails.get(ref)
        return frozenset() if trail is None else frozenset(leaf for leaf, _ in trail.sources)
    if node.primitive not in _NUMPY or chains.only_reader(ref) is None:
        return frozenset()
    found: frozenset[int] = frozenset()
    for operand, variable in zip(node.inputs, node.eqn.invars, strict=True):
        if isinstance(variable, Literal):
            continue
        part = _leaves_of(chains, operand)
        if not part:
            return frozenset()
        found |= part
    return found


def _vector(chains: Chains, ref: Ref, values: dict[int, Any], axis: int) -> np.ndarray:
    """The numbers of a vector along the channel axis; NaN for a channel in which the elements differ."""
    rows = np.moveaxis(_value(chains, ref, values), axis, 0)
    first = rows[(slice(None), *[slice(1)] * (rows.ndim - 1))]
    same = (rows == first).all(tuple(range(1, rows.ndim)))
    return np.where(same, first.reshape(-1), np.nan)


def _value(chains: Chains, ref: Ref, values: dict[int, Any]) -> np.ndarray:
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
            operands.append(_value(chains, operand, values))  # type: ignore[arg-type]
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
    primitives.sqrt_p: lambda x, params: np.sqrt(x),
    primitives.rsqrt_p: lambda x, params: 1 / np.sqrt(x),
    primitives.integer_pow_p: lambda x, params: x ** params["y"],
    primitives.convert_element_type_p: lambda x, params: x,
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.reshape_p: lambda x, params: x.reshape(params["new_sizes"]),
    primitives.squeeze_p: lambda x, params: x.squeeze(params["dimensions"]),
}


def _folded(fold: _Fold, leaves: dict[int, Any]) -> dict[int, Any] | None:
    """The leaves that change; None where a factor is zero or not finite, or the weight cannot be multiplied by factors."""
    needed = [fold.weight, fold.shift, *fold.constants]
    parts = jax.tree_util.tree_leaves([leaves[leaf] for leaf in needed])
    narrow = any(jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4 for x in parts)
    if narrow or not all(is_concrete(x) for x in parts):
        return None
    new = {leaf: _filled(leaves[leaf], number) for leaf, number in fold.constants.items()}
    new[fold.shift] = _filled(leaves[fold.shift], 0.0)
    with np.errstate(all="ignore"):
        factors, offsets = fold.affine(leaves)
        left, rest = fold.affine({**leaves, **new})
        ratio, shift = factors / left, fold.sign * (offsets - rest)
    if not np.isfinite(ratio).all() or not np.isfinite(shift).all() or not ratio.all():
        return None
    weight = _scaled(leaves[fold.weight], fold.axis, ratio)
    if weight is None:
        return None
    old = leaves[fold.shift]
    new[fold.shift] = jnp.asarray(shift.reshape(np.shape(old)), old.dtype)
    return {**new, fold.weight: weight}


def _filled(leaf: Any, number: float) -> Any:
    return jnp.full(np.shape(leaf), number, leaf.dtype)


def _scaled(weight: Any, axis: int, ratio: np.ndarray) -> Any:
    """A weight times a factor for each channel; None if its scales cannot hold the factors."""
    shape = [1] * len(weight.shape)
    shape[axis] = -1
    ratio = ratio.reshape(shape)
    if isinstance(weight, CodeBook):
        return None
    if not isinstance(weight, QTensor):
        return jnp.asarray(np.asarray(weight, np.float64) * ratio, weight.dtype)
    negative = (ratio < 0).any()
    if weight.scale.shape[axis] != ratio.size or (negative and not weight.symmetric):
        return None
    codes = jnp.where(jnp.asarray(ratio < 0), -weight.values, weight.values) if negative else weight.values
    scale = jnp.asarray(np.asarray(weight.scale, np.float64) * np.abs(ratio), weight.scale.dtype)
    return dataclasses.replace(weight, values=codes, scale=scale) if (scale > 0).all() else None
