"""`quantize_weights`: the leaves that are weights become codes, with scales along the axes over which nothing is summed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.errors import ArgumentError
from jaxq8.evaluation.weight_encoding import encoded_leaves
from jaxq8.numerics.codebook import CodeBook, is_encoded


def quantize_weights(
    fn: Callable[..., Any], variables: Any, *inputs: Any, config: Config | None = None, **kwargs: Any
) -> Any:
    """Returns `variables` with the leaves that are weights as `QTensor`.

    Which leaves are weights, and which of their axes keep scales of their own, is found by following each leaf through the
    trace of ``fn(variables, *inputs)`` to the contractions and table look-ups that read it (through reshapes, transposes,
    slices, `jit` and `scan`). Leaves that nothing reads in eight bits (biases, batch-norm statistics) stay as they are.

    Args:
      fn: The float function, ``model.apply`` for example; it is traced, not run.
      variables: Its first argument: any pytree (Linen variables, NNX state, dicts).
      *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct`.
      config: As for `quantize`; mode, overrides, `weights` and `rounding` decide.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A tree of the same structure; float weights are replaced by QTensors of the same shape (`CodeBook` where the spec has
      ``levels="kmeans"``).

    Raises:
      TensorError: A weight holds NaN or infinity; the message names it.
      ArgumentError: `variables` holds no arrays.

    Example:
      >>> q_vars = q8.quantize_weights(model.apply, variables, images)
      >>> logits = jax.jit(q8.quantize(model.apply))(q_vars, images)
    """
    config = config or Config()
    call = Call.trace(fn, (variables, *inputs), kwargs)
    flat, tree = jax.tree_util.tree_flatten(variables, is_leaf=is_encoded)
    count = len(call.consts)
    arrays = [i for i, leaf in enumerate(flat) if hasattr(leaf, "dtype")]
    if not arrays:
        raise ArgumentError(
            "quantize_weights: the variables hold no arrays; pass the model's variables as second argument"
        )
    marked = dataclasses.replace(
        call.arguments, weights=tuple(i < len(arrays) for i in range(len(call.arguments.leaves)))
    )
    analysis = dataclasses.replace(call, arguments=marked).analyse(config)
    leaves = [*call.consts, *call.arguments.leaves]
    encoded = encoded_leaves(leaves, analysis, config, count, names=marked.paths)
    for position, i in enumerate(arrays):
        flat[i] = flat[i] if isinstance(flat[i], CodeBook) else encoded[count + position]
    return jax.tree_util.tree_unflatten(tree, flat)
