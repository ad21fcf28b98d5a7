"""The evaluation of a function on one block of examples after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8.numerics.qtensor import QTensor


def in_blocks(
    run: Callable[[list[Any]], Any], leaves: Sequence[Any], examples: Sequence[int], size: int
) -> Any:
    """Calls ``run(leaves)`` for one block of examples after the other, and joins the results along their first axes.

    Args:
      run: The function of all leaves; it is traced once, on a block.
      leaves: Arrays and QTensors.
      examples: Indices of the leaves that hold examples along their first axis.
      size: Number of examples in a block; it divides the number of all examples.
    """
    count = leaves[examples[0]].shape[0] // size

    def step(parts: Any) -> Any:
        block = list(leaves)
        for i, part in zip(examples, parts, strict=True):
            block[i] = part
        return run(block)

    out = jax.lax.map(step, [_parted(leaves[i], count) for i in examples])
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:]), out)


def _parted(leaf: Any, count: int) -> Any:
    """A leaf cut into blocks along a new first axis; what all examples share (the scale of a QTensor) is repeated."""

    def part(a: Any) -> Any:
        shared = isinstance(leaf, QTensor) and a.shape[0] == 1 < leaf.shape[0]
        if shared:
            return jnp.broadcast_to(a, (count, *a.shape))
        return a.reshape(count, a.shape[0] // count, *a.shape[1:])

    return jax.tree.map(part, leaf)
