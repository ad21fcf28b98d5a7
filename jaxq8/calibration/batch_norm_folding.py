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

from jaxq8._compat import primitives
from jaxq8.analysis.affine_steps import PRODUCTS, SUMS, Step, affine, steps_after
from jaxq8.analysis.channel_factors import leaf_readers, weight_axis
from jaxq8.analysis.flat_function import Chains, Node, array_leaves, channel_axis
from jaxq8.analysis.sites import Site
from jaxq8.config import Config
from jaxq8.numerics.codebook import CodeBook
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor, is_concrete


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
    steps = steps_after(chains, node)
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
    combined = partial(affine, chains, steps, channel_axis(node), size)
    sign = -1.0 if last.node.primitive is primitives.sub_p else 1.0
    return _Fold(weight, out_axis, last.leaf, constants, combined, sign)


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


def _constants(steps: list[Step]) -> dict[int, float] | None:
    """What the leaves of these steps are filled with: 1 in products, 0 in sums; None if one leaf is in both."""
    constants: dict[int, float] = {}
    for step in steps:
        number = 1.0 if step.node.primitive in PRODUCTS else 0.0
        for leaf in step.leaves:
            if constants.setdefault(leaf, number) != number:
                return None
    return constants


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
    if isinstance(weight, PackedTensor):
        codes = _scaled(weight.unpack(), axis, ratio.ravel())
        return None if codes is None else weight.with_codes(codes)
    if not isinstance(weight, QTensor):
        return jnp.asarray(np.asarray(weight, np.float64) * ratio, weight.dtype)
    negative = (ratio < 0).any()
    if weight.scale.shape[axis] != ratio.size or (negative and not weight.symmetric):
        return None
    codes = jnp.where(jnp.asarray(ratio < 0), -weight.values, weight.values) if negative else weight.values
    scale = jnp.asarray(np.asarray(weight.scale, np.float64) * np.abs(ratio), weight.scale.dtype)
    return dataclasses.replace(weight, values=codes, scale=scale) if (scale > 0).all() else None
