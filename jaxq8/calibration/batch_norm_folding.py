"""Batch norms folded into the weights before them: the codes stay, their scales and one bias take everything up.

Right after a contraction there may be vectors made of leaves alone, ``(y - mean) * (rsqrt(var + eps) * gamma) + beta``: in all
``y * a + b``. The weight takes ``a``, the last added vector takes ``b``, and the others become ones and zeros, which files
(`jaxq8.files.weights_file`) store once. Source: Krishnamoorthi 2018, section 3.2.2; Jacob et al. 2018, eq. 14.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    """Folds batch norms, and other vectors that scale a contraction's result, into its weight and its bias.

    Nothing is lost but the statistics themselves: of a `QTensor` only the scales change (and the sign of a channel's codes
    where its factor is negative), so the function gives the same results up to the rounding of float32. A model that is to
    be trained further needs its statistics: keep its float file.

    A norm stays as it is where something else reads one of its vectors or the weight, where a factor is zero or not finite,
    where nothing is added after the factor, where a float leaf has 16 bits, or where the weight is a `CodeBook` or has no
    scale for each output channel.

    Args:
      fn: The float function, ``model.apply`` for example; it is traced, not run.
      variables: Its first argument; float weights or those of `quantize_weights`.
      *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct`.
      config: As for `quantize`.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      New variables of the same structure, shapes and dtypes.

    Example:
      >>> q_vars = q8.fold_norms(model.apply, q8.quantize_weights(model.apply, variables, images), images)
      >>> q8.save("model.q8", q_vars)
    """
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config or Config())
    flat, arrays, tree = array_leaves(variables)
    leaves = {leaf: flat[i] for leaf, i in enumerate(arrays)}
    readers = leaf_readers(chains)
    returned = {
        leaf for ref in chains.outputs if ref in chains.trails for leaf, _ in chains.trails[ref].sources
    }
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
    """What follows one contraction.

    Attributes:
      weight: Leaf of the contraction's weight.
      axis: Axis of that leaf that holds the output channels.
      shift: Leaf that is added or subtracted last.
      constants: The number that each other leaf becomes: 1 in a factor, 0 in a sum.
      affine: From leaves to (factors, offsets): ``y * factors + offsets`` is what comes out.
      sign: -1 where the last shift is subtracted.
    """

    weight: int
    axis: int
    shift: int
    constants: dict[int, float]
    affine: Callable[[dict[int, Any]], tuple[np.ndarray, np.ndarray]]
    sign: float


def _found(chains: Chains, node: Node, site: Site, leaves: dict[int, Any]) -> _Fold | None:
    """The chain of vectors after a contraction, up to the last one that is added; None if no factor is in it."""
    assert site.weight is not None
    operand = node.inputs[site.weight]
    trail = chains.trails.get(operand) if operand is not None else None
    dim = weight_axis(node, site.weight, channel_axis(node), out=True)
    if trail is None or len(trail.sources) != 1 or dim is None or len(trail.sources[0][1][dim]) != 1:
        return None
    weight, axes = trail.sources[0]
    steps = _steps(chains, node)
    while steps and (steps[-1].node.primitive not in SUMS or steps[-1].leaf is None):
        steps.pop()
    if not any(s.node.primitive in PRODUCTS for s in steps):
        return None
    *before, last = steps
    assert last.leaf is not None
    constants: dict[int, float] = {}
    for step in before:
        for leaf in step.leaves:
            number = 1.0 if step.node.primitive in PRODUCTS else 0.0
            if constants.setdefault(leaf, number) != number:
                return None
    axis, size = channel_axis(node), np.shape(leaves[weight])[axes[dim][0]]

    def affine(values: dict[int, Any]) -> tuple[np.ndarray, np.ndarray]:
        factors, offsets = np.ones(size), np.zeros(size)
        for step in steps:
            vector = _vector(chains, step.operand, values, axis)
            if step.node.primitive in PRODUCTS:
                vector = 1 / vector if step.node.primitive is primitives.div_p else vector
                factors, offsets = factors * vector, offsets * vector
            else:
                offsets = offsets + (-vector if step.node.primitive is primitives.sub_p else vector)
        return factors, offsets

    return _Fold(
        weight,
        axes[dim][0],
        last.leaf,
        constants,
        affine,
        -1.0 if last.node.primitive is primitives.sub_p else 1.0,
    )


@dataclasses.dataclass(frozen=True)
class _Step:
    """One operation on the contraction's result; its other operand, the leaves that is made of, and which it is by layout."""

    node: Node
    operand: Ref
    leaves: frozenset[int]
    leaf: int | None


def _steps(chains: Chains, node: Node) -> list[_Step]:
    """The sums and products with vectors of leaves that a result goes through before anything else happens to it."""
    ref, axis, steps = node.outputs[0], channel_axis(node), []
    while (reader := chains.only_reader(ref)) is not None:
        if reader.primitive in (*SUMS, *PRODUCTS):
            first = reader.inputs[0] == ref
            operand = reader.inputs[1 if first else 0]
            found = _leaves_of(chains, operand)
            swapped = not first and reader.primitive in (primitives.sub_p, primitives.div_p)
            if operand is None or not found or swapped:
                break
            steps.append(_Step(reader, operand, found, chains.vector(operand, axis)))
        elif reader.primitive is not primitives.convert_element_type_p:
            break
        ref = reader.outputs[0]
    return steps


def _leaves_of(chains: Chains, ref: Ref | None) -> frozenset[int]:
    """The leaves that something is computed from, if it is from nothing else and nobody else reads what lies between."""
    if ref is None:
        return frozenset()
    node = chains.makers.get(ref)
    if node is None:
        trail = chains.trails.get(ref)
        return frozenset() if trail is None else frozenset(leaf for leaf, _ in trail.sources)
    if node.primitive not in _NUMPY or chains.only_reader(ref) is None:
        return frozenset()
    parts = [
        _leaves_of(chains, r)
        for r, v in zip(node.inputs, node.eqn.invars, strict=True)
        if not isinstance(v, Literal)
    ]
    return frozenset().union(*parts) if all(parts) else frozenset()


def _vector(chains: Chains, ref: Ref, values: dict[int, Any], axis: int) -> np.ndarray:
    """The numbers of a vector of leaves along the channel axis; NaN for a channel whose numbers differ."""
    rows = np.moveaxis(_value(chains, ref, values), axis, 0)
    first = rows[(slice(None), *[slice(1)] * (rows.ndim - 1))]
    same = (rows == first).all(tuple(range(1, rows.ndim)))
    return np.where(same, first.reshape(-1), np.nan)


def _value(chains: Chains, ref: Ref, values: dict[int, Any]) -> np.ndarray:
    node = chains.makers.get(ref)
    if node is None:
        return np.asarray(values[chains.trails[ref].sources[0][0]], np.float64)
    operands = [
        np.asarray(v.val, np.float64) if isinstance(v, Literal) else _value(chains, r, values)  # type: ignore[arg-type]
        for r, v in zip(node.inputs, node.eqn.invars, strict=True)
    ]
    return _NUMPY[node.primitive](*operands, node.eqn.params)


def _broadcast(x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """A view: the result may be as large as an activation."""
    small = [1] * len(params["shape"])
    for size, place in zip(x.shape, params["broadcast_dimensions"], strict=True):
        small[place] = size
    return np.broadcast_to(x.reshape(small), params["shape"])


# What vectors of leaves are computed with; with anything else (a mean over the data, for example) they are none.
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
    """The leaves that change; None where a factor is zero or not finite, or the weight cannot take factors."""
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
    """A weight times a factor for each channel; None if it has no place for them."""
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
