"""`quantize_weights`: turns the leaves that are weights into codes, with scales along the axes that are not summed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from jaxq8.analysis.flat_function import Chains
from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.data_free.correction import corrected
from jaxq8.errors import ArgumentError
from jaxq8.evaluation.weight_encoding import encoded_leaves, site_config
from jaxq8.numerics.codebook import CodeBook, is_encoded
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import is_concrete
from jaxq8.numerics.rounding import get_rounding, half_away, half_even


def quantize_weights(
    fn: Callable[..., Any], variables: Any, *inputs: Any, config: Config | None = None,
    correct: Literal["auto", "statistics"] | None = "auto", **kwargs: Any,
) -> Any:  # fmt: skip
    """Returns `variables` with the leaves that are weights as `QTensor`.

    Each leaf is followed through the trace of ``fn(variables, *inputs)`` (through reshapes, transposes, slices, `jit` and
    `scan`) to the contractions and table look-ups that read it. They decide whether the leaf is a weight, and which of its
    axes keep scales of their own. Leaves that nothing reads in eight bits (biases, batch-norm statistics) stay float; the
    correction moves some of them a little.

    Args:
      fn: The float function, for example ``model.apply``; it is traced, not run.
      variables: Its first argument: any pytree (Linen variables, NNX state, dicts).
      *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct`.
      config: As for `quantize`; its mode, overrides, `weights` and `rounding` decide how weights are encoded.
      correct: "statistics" makes up for what rounding does to the means of channels, without any data. Where a weight lies
        near the middle between two codes, the code is chosen so that the errors of a channel cancel. Where the statistics of
        batch norms, among the variables, tell what a contraction reads, its inputs are weighed by them, and the mean error
        that is left is taken out of the bias or the running mean after the contraction (Nagel et al. 2019). The program and
        its speed stay the same. Not for weights that are traced, nor for code books. "auto" does that where it can: weights
        whose `Config.rounding` is another one than to the nearest stay as it rounds them, and traced variables are rounded
        to the nearest code. None rounds each weight by itself, as `quantize` does with float variables;
        take it for variables that were fitted to the nearest codes, by `correct_bias` or by training in simulation.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A tree of the same structure, in which float weights are replaced by QTensors of the same shape, or by a `CodeBook`
      where the spec has ``levels="kmeans"``.

    Raises:
      TensorError: A weight holds NaN or infinity; the message names it.
      ArgumentError: `variables` holds no arrays; `correct` is unknown, or the variables are traced and cannot be corrected.

    Example:
      >>> q_vars = q8.quantize_weights(model.apply, variables, images)
      >>> q_vars["params"]["Dense_0"]["kernel"]
      QTensor(256x128, 8 bits signed, ..., stands for float32)
      >>> logits = jax.jit(q8.quantize(model.apply))(q_vars, images)
    """
    config = config or Config()
    traced = Call.trace(fn, (variables, *inputs), kwargs)
    flat, tree = jax.tree_util.tree_flatten(variables, is_leaf=is_encoded)
    count = len(traced.consts)
    arrays = [i for i, leaf in enumerate(flat) if hasattr(leaf, "dtype")]
    if not arrays:
        raise ArgumentError(
            "quantize_weights: the variables hold no arrays; pass the model's variables as second argument"
        )
    known = all(is_concrete(a) for a in jax.tree_util.tree_leaves([flat[i] for i in arrays]))
    if correct not in (None, "auto", "statistics"):
        raise ArgumentError(f"quantize_weights(correct={correct!r}): it is None, 'auto' or 'statistics'")
    if correct == "statistics" and not known:
        raise ArgumentError(
            "quantize_weights(correct='statistics') looks at the numbers of the variables, and these are traced or shapes "
            "only; pass arrays, outside of jit, grad and vmap"
        )
    # The leaves of the first argument come first.
    call = traced.with_first(len(arrays))
    analysis = call.analyse(config)
    leaves = [*call.consts, *call.arguments.leaves]
    encoded = encoded_leaves(leaves, analysis, config, count, names=call.arguments.paths)[count:]
    if correct is not None and known:
        kept = {
            leaf - count: tuple(use.kept)
            for leaf, use in analysis.weights.items()
            if leaf >= count and (correct == "statistics" or _to_nearest(config, use.sites))
        }
        with (
            jax.ensure_compile_time_eval()
        ):  # the numbers are known, even while a function that uses them is traced
            encoded = corrected(Chains.of(call, config), call.arguments.leaves, encoded[: len(arrays)], kept)
    for position, i in enumerate(arrays):
        if not isinstance(flat[i], CodeBook | PackedTensor):
            flat[i] = encoded[position]
    return jax.tree_util.tree_unflatten(tree, flat)


def _to_nearest(config: Config, sites: Sequence[str]) -> bool:
    """Whether the weight of these sites is rounded to the nearest code: any other rounding was chosen for what it does."""
    return get_rounding(site_config(config, sites[0]).rounding).function in (half_even, half_away)
