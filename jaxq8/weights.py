"""`quantize_weights`: turns the leaves that are weights into codes, with scales along the axes that are not summed over."""

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

    Each leaf is followed through the trace of ``fn(variables, *inputs)`` (through reshapes, transposes, slices, `jit` and
    `scan`) to the contractions and table look-ups that read it. They decide whether the leaf is a weight, and which of its
    axes keep scales of their own. Leaves that nothing reads in eight bits (biases, batch-norm statistics) stay as they are.

    Args:
      fn: The float function, for example ``model.apply``; it is traced, not run.
      variables: Its first argument: any pytree (Linen variables, NNX state, dicts).
      *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct`.
      config: As for `quantize`; its mode, overrides, `weights` and `rounding` decide how weights are encoded.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A tree of the same structure, in which float weights are replaced by QTensors of the same shape, or by a `CodeBook`
      where the spec has ``levels="kmeans"``.

    Raises:
      TensorError: A weight holds NaN or infinity; the message names it.
      ArgumentError: `variables` holds no arrays.

    Example:
      >>> q_vars = q8.quantize_weights(model.apply, variables, images)
      >>> q_vars["params"]["Dense_0"]["kernel"]
      QTensor(256x128, 8 bits signed, ..., stands for float32)
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
    # The leaves of the first argument come first, and all of them may be weights, whatever container holds them.
    may_be_weight = tuple(i < len(arrays) for i in range(len(call.arguments.leaves)))
    arguments = dataclasses.replace(call.arguments, weights=may_be_weight)
    analysis = dataclasses.replace(call, arguments=arguments).analyse(config)
    leaves = [*call.consts, *call.arguments.leaves]
    encoded = encoded_leaves(leaves, analysis, config, count, names=arguments.paths)
    for position, i in enumerate(arrays):
        if not isinstance(flat[i], CodeBook):
            flat[i] = encoded[count + position]
    return jax.tree_util.tree_unflatten(tree, flat)
