"""Whether a function treats its examples one by one, so that a large batch can run in blocks that fit the caches.

If its temporary buffer exceeds 32 MB, XLA:CPU requests the buffer from the system on every call, and the page faults cost more
than the arithmetic. `independent` follows the batch axis of the inputs through the traced function. An operation that is not
known to keep examples apart ends the search, and the batch runs as a whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxq8._compat import Literal, open_jaxpr, primitives
from jaxq8.analysis.elementwise import ELEMENTWISE
from jaxq8.analysis.inner_functions import INLINED, callees
from jaxq8.analysis.sites import CONTRACTIONS

# Size of the largest accumulator from which on a batch runs in blocks.
LARGE_BYTES = 16 << 20
# Limit for the largest accumulator of a block (measured on MobileNetV2 and ResNet-50 at batch 8).
BLOCK_BYTES = 10 << 20


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is known of a variable: the axis of its examples, or, if it has none, the axes along which it is constant."""

    batch: int | None = None
    uniform: frozenset[int] = frozenset()


class _Mixed(Exception):
    """Raised for an operation that is not known to keep examples apart."""


def block_size(jaxpr: Any, examples: Sequence[int]) -> int | None:
    """The number of examples in a block; None if the batch is small, or if its examples are not independent.

    Args:
      jaxpr: The traced function, with constants as inputs.
      examples: Positions of the inputs whose first axis is that of the examples.
    """
    if not examples:
        return None
    shapes = [jaxpr.invars[i].aval.shape for i in examples]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1:
        return None
    count = sizes.pop()
    if not isinstance(count, int) or count < 2:  # a symbolic size is no int
        return None
    largest = _largest_accumulator(jaxpr)
    if largest <= LARGE_BYTES or not independent(jaxpr, examples):
        return None
    fitting = [d for d in range(1, count) if count % d == 0 and largest * d <= BLOCK_BYTES * count]
    return max(fitting, default=1)


def _largest_accumulator(jaxpr: Any) -> int:
    """Bytes of the largest int32 result of a contraction, inner functions included."""
    largest = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive in CONTRACTIONS:
            largest = max(largest, 4 * math.prod(eqn.outvars[0].aval.shape))
        for callee in callees(eqn):
            largest = max(largest, _largest_accumulator(open_jaxpr(callee.jaxpr)[0]))
    return largest


def independent(jaxpr: Any, examples: Sequence[int]) -> bool:
    """Whether every result has the examples on its first axis, and each example is computed from its own inputs alone."""
    facts = [Fact(0 if i in examples else None) for i in range(len(jaxpr.invars))]
    try:
        return all(fact.batch == 0 for fact in _follow(jaxpr, facts))
    except _Mixed:
        return False


def same_on_block(jaxpr: Any, block: Any, examples: Sequence[int]) -> bool:
    """Whether a function that was traced again, on a block of examples, is the same function of its examples.

    It is another one if its code holds the number of examples as a number, or looks at it: ``broadcast_to(x, (8, 16))``.

    Args:
      jaxpr: The function for all examples, with constants as inputs.
      block: The function for a block.
      examples: Positions of those inputs of `block` whose first axis is that of the examples.
    """
    return _operations(jaxpr) == _operations(block) and independent(block, examples)


def _operations(jaxpr: Any) -> list[Any]:
    """The primitives of a jaxpr in their order with their literal numbers, inner functions included."""
    return [
        (
            str(eqn.primitive),
            [np.asarray(v.val).tolist() for v in eqn.invars if isinstance(v, Literal)],
            [_operations(open_jaxpr(callee.jaxpr)[0]) for callee in callees(eqn)],
        )
        for eqn in jaxpr.eqns
    ]


def _follow(jaxpr: Any, inputs: Sequence[Fact]) -> list[Fact]:
    """The facts about the results of a jaxpr."""
    env: dict[Any, Fact] = dict.fromkeys(jaxpr.constvars, Fact())
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Fact:
        return Fact(None, frozenset(range(np.ndim(atom.val)))) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        env.update(zip(eqn.outvars, _results(eqn, operands), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _results(eqn: Any, operands: list[Fact]) -> list[Fact]:
    """The facts about the results of one equation."""
    if eqn.primitive in INLINED:
        (callee,) = callees(eqn)
        return _follow(open_jaxpr(callee.jaxpr)[0], operands)
    if eqn.primitive in _ELEMENTWISE:
        return [_elementwise(eqn, operands)]
    if all(fact.batch is None for fact in operands):
        keep = eqn.primitive is primitives.broadcast_in_dim_p
        return [_broadcast(eqn, operands)] if keep else [Fact() for _ in eqn.outvars]
    rule = _RULES.get(eqn.primitive)
    if rule is None:
        raise _Mixed(str(eqn.primitive))
    return [rule(eqn, operands)]


def _elementwise(eqn: Any, operands: list[Fact]) -> Fact:
    """An elementwise operation: operands without examples must be constant along the axis of the examples."""
    rank = len(eqn.outvars[0].aval.shape)
    axes = {f.batch for f in operands if f.batch is not None}
    uniform = []  # of each operand except scalars
    for fact, variable in zip(operands, eqn.invars, strict=True):
        if len(variable.aval.shape) == rank:
            uniform.append(_uniform(fact, variable.aval.shape))
    if not axes:
        return Fact(None, frozenset.intersection(*uniform) if uniform else frozenset())
    if len(axes) > 1 or not all(axes <= along for along in uniform):
        raise _Mixed("operands differ along the examples")
    return Fact(axes.pop())


def _uniform(fact: Fact, shape: Sequence[int]) -> frozenset[int]:
    """The axes along which an operand is constant, and the axis of its examples."""
    if fact.batch is not None:
        return fact.uniform | {fact.batch}
    return fact.uniform | {d for d, n in enumerate(shape) if n == 1}


def _broadcast(eqn: Any, operands: list[Fact]) -> Fact:
    places = eqn.params["broadcast_dimensions"]
    fact, shape, target = operands[0], eqn.invars[0].aval.shape, eqn.params["shape"]
    if fact.batch is not None:
        if shape[fact.batch] != target[places[fact.batch]]:
            raise _Mixed("one example becomes several")
        return Fact(places[fact.batch])
    varying = {p for d, p in enumerate(places) if shape[d] == target[p] != 1 and d not in fact.uniform}
    return Fact(None, frozenset(range(len(target))) - varying)


def _convolution(eqn: Any, operands: list[Fact]) -> Fact:
    numbers = eqn.params["dimension_numbers"]
    x, w = operands
    if x.batch != numbers.lhs_spec[0] or w.batch is not None or eqn.params["batch_group_count"] != 1:
        raise _Mixed("convolution")
    return Fact(numbers.out_spec[0])


def _dot(eqn: Any, operands: list[Fact]) -> Fact:
    """A dot: examples are on a batch axis of both operands, or on a free axis of one of them."""
    contracted, batched = eqn.params["dimension_numbers"]
    ranks = [len(v.aval.shape) for v in eqn.invars]
    left_free = ranks[0] - len(contracted[0]) - len(batched[0])
    places = []  # the axis of the examples in the result, as each operand tells
    for side, fact in enumerate(operands):
        if fact.batch is None:
            continue
        if fact.batch in batched[side]:
            places.append(batched[side].index(fact.batch))
        elif fact.batch in contracted[side] or operands[1 - side].batch is not None:
            raise _Mixed("a sum over examples")
        else:
            free = [d for d in range(ranks[side]) if d not in contracted[side] and d not in batched[side]]
            first_free = len(batched[side]) + (left_free if side == 1 else 0)
            places.append(first_free + free.index(fact.batch))
    both = all(f.batch is not None for f in operands)
    shared = any(f.batch in b for f, b in zip(operands, batched, strict=True) if f.batch is not None)
    if len(set(places)) != 1 or (shared and not both):
        raise _Mixed("examples beside shared rows")
    return Fact(places[0])


def _reshape(eqn: Any, operands: list[Fact]) -> Fact:
    before, after = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    examples_stay = operands[0].batch == 0 and bool(after) and after[0] == before[0]
    if not examples_stay or eqn.params.get("dimensions") is not None:
        raise _Mixed("a reshape across examples")
    return Fact(0)


def _transpose(eqn: Any, operands: list[Fact]) -> Fact:
    return Fact(eqn.params["permutation"].index(operands[0].batch))


def _reduction(eqn: Any, operands: list[Fact]) -> Fact:
    return _dropped(operands[0], eqn.params["axes"])


def _axis(fact: Fact) -> int:
    """The axis of the examples, which must be known."""
    if fact.batch is None:
        raise _Mixed("an operand without examples")
    return fact.batch


def _squeeze(eqn: Any, operands: list[Fact]) -> Fact:
    return _dropped(operands[0], eqn.params["dimensions"])


def _dropped(fact: Fact, axes: Sequence[int]) -> Fact:
    """The fact about a result that lacks some axes of its operand."""
    batch = _axis(fact)
    if batch in axes:
        raise _Mixed("a reduction over examples")
    return Fact(batch - sum(a < batch for a in axes))


def _window(eqn: Any, operands: list[Fact]) -> Fact:
    axis, params = _axis(operands[0]), eqn.params
    sizes = {params[name][axis] for name in ("window_dimensions", "window_strides", "base_dilation")}
    if sizes != {1} or tuple(params["padding"][axis]) != (0, 0):
        raise _Mixed("a window over examples")
    return operands[0]


def _pad(eqn: Any, operands: list[Fact]) -> Fact:
    if operands[1].batch is not None or tuple(eqn.params["padding_config"][_axis(operands[0])]) != (0, 0, 0):
        raise _Mixed("examples are added")
    return operands[0]


def _slice(eqn: Any, operands: list[Fact]) -> Fact:
    axis, params = _axis(operands[0]), eqn.params
    start, limit = params["start_indices"][axis], params["limit_indices"][axis]
    stride = params["strides"][axis] if params["strides"] else 1
    if start != 0 or limit != eqn.invars[0].aval.shape[axis] or stride != 1:
        raise _Mixed("a slice of examples")
    return operands[0]


def _concatenate(eqn: Any, operands: list[Fact]) -> Fact:
    if eqn.params["dimension"] in {f.batch for f in operands}:
        raise _Mixed("examples are joined")
    return _elementwise(eqn, operands)


def _gather(eqn: Any, operands: list[Fact]) -> Fact:
    """A table look-up: the axes of the indices except the last become those axes of the result that are no offsets."""
    numbers, (table, indices) = eqn.params["dimension_numbers"], operands
    if table.batch is not None or indices.batch is None or indices.batch == len(eqn.invars[1].aval.shape) - 1:
        raise _Mixed("a look-up among examples")
    places = [d for d in range(len(eqn.outvars[0].aval.shape)) if d not in numbers.offset_dims]
    return Fact(places[indices.batch])


_ELEMENTWISE = ELEMENTWISE | {
    primitives.exp_p, primitives.log_p, primitives.tanh_p, primitives.logistic_p, primitives.erf_p, primitives.erfc_p,
    primitives.rsqrt_p, primitives.sqrt_p, primitives.integer_pow_p, primitives.pow_p, primitives.sign_p, primitives.round_p,
    primitives.floor_p, primitives.ceil_p, primitives.stop_gradient_p, primitives.rem_p,
    primitives.gt_p, primitives.ge_p, primitives.lt_p, primitives.le_p, primitives.eq_p, primitives.ne_p, primitives.and_p,
    primitives.or_p, primitives.not_p, primitives.square_p, primitives.is_finite_p,
}  # fmt: skip
_RULES: dict[Any, Callable[[Any, list[Fact]], Fact]] = {
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.conv_general_dilated_p: _convolution,
    primitives.dot_general_p: _dot,
    primitives.reshape_p: _reshape,
    primitives.transpose_p: _transpose,
    primitives.squeeze_p: _squeeze,
    **dict.fromkeys((primitives.reduce_sum_p, primitives.reduce_max_p, primitives.reduce_min_p), _reduction),
    **dict.fromkeys((primitives.argmax_p, primitives.argmin_p), _reduction),
    **dict.fromkeys((primitives.reduce_window_max_p, primitives.reduce_window_sum_p), _window),
    primitives.pad_p: _pad,
    primitives.slice_p: _slice,
    primitives.concatenate_p: _concatenate,
    primitives.gather_p: _gather,
}
