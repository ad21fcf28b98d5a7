"""The arguments of a quantized function: which are data, which are static, which are weights, and how they are named."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.errors import ArgumentError
from jaxq8.numerics.codebook import CodeBook, as_codes, is_encoded, validate_book
from jaxq8.numerics.packed_tensor import PackedTensor, validate_packed
from jaxq8.numerics.qtensor import QTensor, describe, validate

_VALUE_ATTRIBUTES = ("value", "raw_value", "_value")  # of an NNX variable


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A call's arguments, taken apart.

    Attributes:
      given: The array-like leaves in order: arrays, tracers, ShapeDtypeStructs, QTensors (code books too become QTensors) and
        packed weights.
      paths: The names of the leaves: ``params/Dense_0/kernel``.
      weights: For each leaf whether it belongs to the argument that holds the model's variables.
      rebuild: ``rebuild(leaves) -> (args, kwargs)``, which puts the static leaves back in their places.
    """

    given: tuple[Any, ...]
    paths: tuple[str, ...]
    weights: tuple[bool, ...]
    rebuild: Any

    @functools.cached_property
    def leaves(self) -> tuple[Any, ...]:
        """The leaves with packed weights as QTensors."""
        return tuple(map(as_codes, self.given))


def take_apart(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """Separates arrays from everything else; Python numbers, strings and other objects stay static.

    The weights are the leaves of the first argument, if it is a container (a dict of variables, an NNX state, a tuple) rather
    than a bare array.

    Raises:
      ArgumentError: A QTensor, CodeBook or PackedTensor is malformed.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path((tuple(args), dict(kwargs)), is_leaf=is_encoded)
    dynamic = [i for i, (_, leaf) in enumerate(flat) if is_arraylike(leaf)]
    container = bool(args) and not is_arraylike(args[0])
    leaves, paths, weights = [], [], []
    for i in dynamic:
        path, leaf = flat[i]
        if isinstance(leaf, QTensor) and hasattr(leaf.values, "dtype"):
            validate(leaf, path_name(path[1:]) or "argument")
        if isinstance(leaf, CodeBook):
            validate_book(leaf, path_name(path[1:]) or "argument")
        if isinstance(leaf, PackedTensor):
            validate_packed(leaf, path_name(path[1:]) or "argument")
        leaves.append(leaf if isinstance(leaf, PackedTensor) else as_codes(leaf))
        in_first = path[0] == jax.tree_util.SequenceKey(0) and path[1] == jax.tree_util.SequenceKey(0)
        paths.append(path_name(path[2:]) or path_name(path[1:]))
        weights.append(container and in_first)

    # `rebuild` may live longer than a trace, so it must not close over tracers.
    static = [None if is_arraylike(leaf) else leaf for _, leaf in flat]

    def rebuild(new: Sequence[Any]) -> Any:
        full = list(static)
        for i, leaf in zip(dynamic, new, strict=True):
            full[i] = leaf
        return jax.tree_util.tree_unflatten(tree, full)

    return Arguments(tuple(leaves), tuple(paths), tuple(weights), rebuild)


def is_arraylike(x: Any) -> bool:
    """Whether an argument leaf is data to trace."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct) or is_encoded(x)


def stand_in(leaf: Any) -> Any:
    """The abstract float array that a leaf stands for while the function is traced."""
    if isinstance(leaf, QTensor | PackedTensor):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "biufcV":
        raise ArgumentError(
            f"argument of dtype {leaf.dtype} ({describe(leaf)}) is not an array that JAX can compute with"
        )
    if isinstance(leaf, np.ndarray | np.generic):
        return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype))
    return leaf


def take_results_apart(results: Any) -> tuple[list[Any], Any]:
    """(leaves, structure) of what a function returns.

    Raises:
      ArgumentError: A leaf is neither an array nor a number; the message names it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(results):
        if not is_arraylike(leaf) and not isinstance(leaf, bool | int | float | complex):
            raise ArgumentError(
                f"the function returned a {type(leaf).__name__}{_place(path)}: results are arrays and numbers, as under "
                "jax.jit; return the rest from outside of it"
            )
    return jax.tree_util.tree_flatten(results)


def _place(path: Sequence[Any]) -> str:
    return f" at {path_name(path)}" if path else ""


def path_name(path: Sequence[Any]) -> str:
    """``params/Dense_0/kernel`` from a key path; the attribute of an NNX variable that holds its value is left out."""
    parts = []
    for key in path:
        part = next((str(getattr(key, a)) for a in ("key", "name", "idx") if hasattr(key, a)), str(key))
        inside_variable = isinstance(key, jax.tree_util.GetAttrKey) and part in _VALUE_ATTRIBUTES
        if not inside_variable:
            parts.append(part.strip("."))
    return "/".join(parts)


def as_array(leaf: Any) -> Any:
    """A leaf as an array, unless it is encoded or abstract."""
    return leaf if isinstance(leaf, QTensor | PackedTensor | jax.ShapeDtypeStruct) else jnp.asarray(leaf)
