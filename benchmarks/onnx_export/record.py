"""Traces a Linen model with its known layers kept whole.

A jaxpr has lost what a convolution layer or a batch norm was. Here every call of a known layer is marked in the
jaxpr by a `jit` whose name holds the number of the call; the converter reads the layer from a table instead of
from the equations inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

MARK = "layer_call_"


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer: the module and its variables ({"params": ..., "batch_stats": ...})."""

    module: nn.Module
    variables: Any


def record(
    module: nn.Module, variables: Any, inputs: Sequence[Any], known: Sequence[type[nn.Module]]
) -> tuple[Any, list[LayerCall]]:
    """The closed jaxpr of `module.apply(variables, *inputs)` as a function of the flat inputs, and its layers.

    An equation of the k-th layer is a `jit` named MARK + k, whose operands are the layer's result (to be
    ignored) and then its inputs.
    """
    calls: list[LayerCall] = []

    def intercept(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_method(*args, **kwargs)
        if context.method_name != "__call__" or type(context.module) not in known:
            return result
        arrays = [x for x in (*args, *kwargs.values()) if isinstance(x, jax.Array)]
        # The cell of a recurrent layer keeps its variables in its own place, not below the layer's.
        owner = getattr(context.module, "cell", context.module)
        calls.append(LayerCall(context.module, owner.variables))
        return _mark(len(calls) - 1, result, arrays)

    def run(*flat: Any) -> Any:
        with nn.intercept_methods(intercept):
            return module.apply(variables, *jax.tree_util.tree_unflatten(tree, flat))

    flat, tree = jax.tree_util.tree_flatten(tuple(inputs))
    return jax.make_jaxpr(run)(*flat), calls


def _mark(number: int, result: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
    def call(result: jax.Array, *_: jax.Array) -> jax.Array:
        return -result  # not the operand itself: JAX would forward it and drop the call

    call.__name__ = f"{MARK}{number}"
    return jax.jit(call, keep_unused=True)(result, *arrays)
