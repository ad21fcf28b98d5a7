"""Where factors per channel may move: through operations that commute with them.

Between the weights that make a tensor and the weights that read it there may be biases, batch norm, relu, pooling, residual
sums and concatenations. A positive factor per channel passes through all of them. The tensors that must share their factors
form a *component*. At the borders of a component, weights, biases and scales are multiplied or divided by the factors.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.analysis.flat_function import Chains, Node, Ref, channel_axis
from jaxq8.analysis.sites import CONTRACTIONS


class _Stuck(Exception):
    """Raised if a component reaches an operation that does not commute with factors per channel."""


@dataclasses.dataclass
class Component:
    """Tensors that share factors, and the leaves at their borders that are multiplied or divided by the factors.

    Channels of the component are numbered; channels that were found to be the same are joined in a tree (union-find).

    Attributes:
      ids: Tensor -> (its channel axis, the number of the component's channel for each of its channels).
      changes: (leaf, axis of the leaf, power of the factors: 1 to multiply, -1 to divide, channels).
      consumers: (site name, leaf, axis of the leaf, channels) of the weights that read the component.
      parents: For each channel its parent in the tree; the root of a tree is its own parent.
    """

    ids: dict[Ref, tuple[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    changes: list[tuple[int, int, int, np.ndarray]] = dataclasses.field(default_factory=list)
    consumers: list[tuple[str, int, int, np.ndarray]] = dataclasses.field(default_factory=list)
    parents: list[int] = dataclasses.field(default_factory=list)

    def fresh(self, count: int) -> np.ndarray:
        """New channels, each of its own."""
        start = len(self.parents)
        self.parents += range(start, start + count)
        return np.arange(start, start + count)

    def root(self, channel: int) -> int:
        """The channel that stands for all channels joined with one."""
        while self.parents[channel] != channel:
            channel = self.parents[channel]
        return channel

    def roots(self, channels: np.ndarray) -> np.ndarray:
        return np.array([self.root(int(c)) for c in channels])


class _Flood:
    """Grows one component from a tensor until every border is a weight or a vector.

    Growth fails with `_Stuck` where the component reaches anything else that does not commute with the factors.
    """

    def __init__(self, chains: Chains):
        self.chains = chains
        self.sites = dict(chains.contractions())
        self.component = Component()
        self._queue: list[Ref] = []
        self._done: set[tuple[Node, Ref]] = set()
        self._changed: set[tuple[Node, int]] = set()

    def grow(self, start: Ref, axis: int) -> Component:
        """The component of a tensor whose channels lie on an axis."""
        self._tie(start, axis, self.component.fresh(start[1].aval.shape[axis]))
        while self._queue:
            ref = self._queue.pop()
            if ref in self.chains.outputs or ref not in self.chains.makers:
                raise _Stuck("an argument or a result")
            for node in [self.chains.makers[ref], *self.chains.readers[ref]]:
                if (node, ref) not in self._done:
                    self._done.add((node, ref))
                    self._visit(node, ref)
        return self.component

    def _tie(self, ref: Ref | None, axis: int, ids: np.ndarray) -> None:
        """Declares the channels of a tensor; if it has channels already, both are joined."""
        if ref is None:
            raise _Stuck("a constant")
        known = self.component.ids.get(ref)
        if known is None:
            self.component.ids[ref] = (axis, ids)
            self._queue.append(ref)
            return
        if known[0] != axis:
            raise _Stuck("two axes of one tensor")
        for a, b in zip(known[1], ids, strict=True):
            self.component.parents[self.component.root(int(a))] = self.component.root(int(b))

    def _visit(self, node: Node, ref: Ref) -> None:
        axis, ids = self.component.ids[ref]
        visit = _VISITS.get(node.primitive)
        if visit is None:
            raise _Stuck(str(node.primitive))
        visit(self, node, ref, axis, ids)

    def change(self, node: Node, leaf: int | None, axis: int, power: int, ids: np.ndarray) -> None:
        if leaf is None:
            raise _Stuck("a vector that is no leaf")
        if (node, leaf) not in self._changed:  # a sum is visited from both of its sides
            self._changed.add((node, leaf))
            self.component.changes.append((leaf, axis, power, ids))

    def others(self, node: Node, ref: Ref) -> list[Ref | None]:
        return [r for r in (*node.inputs, *node.outputs) if r != ref]

    # One method for each kind of operation.

    def contraction(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        """The weight of a contraction takes the factors of its activation (times s) or of its result (divided by s)."""
        site = self.sites.get(node)
        if site is None or site.weight is None:
            raise _Stuck("a product of two activations")
        trail = self.chains.trails[node.inputs[site.weight]]  # type: ignore[index]
        if len(trail.sources) != 1:
            raise _Stuck("joined weights")
        leaf, axes = trail.sources[0]
        out = node.outputs[0] == ref
        if out and axis != channel_axis(node):
            raise _Stuck("not the channel axis")
        dim = weight_axis(node, site.weight, axis, out)
        if dim is None or len(axes[dim]) != 1:
            raise _Stuck("grouped or merged channels")
        self.change(node, leaf, axes[dim][0], -1 if out else 1, ids)
        if not out:
            self.component.consumers.append((site.name, leaf, axes[dim][0], ids))

    def sum(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        """A vector leaf in a sum takes the factors; a tensor must have the same factors as the sum."""
        for other in self.others(node, ref):
            leaf = self.chains.vector(other, axis) if other is not None else None
            if leaf is not None:
                self.change(node, leaf, 0, -1, ids)
            else:
                self._tie(other, axis, ids)

    def product(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        """A product with a constant passes factors on; in a product with a vector leaf the vector takes them."""
        if any(isinstance(v, Literal) for v in node.eqn.invars):
            self.same(node, ref, axis, ids)
            return
        if node.primitive is primitives.div_p:
            raise _Stuck("a quotient")
        made = node.outputs[0] == ref
        candidates = node.inputs if made else [r for r in node.inputs if r != ref]
        leaf = self.first_factor(candidates, axis, len(ids))
        self.change(node, leaf, 0, -1 if made else 1, ids)

    def first_factor(self, refs: Sequence[Ref | None], axis: int, size: int) -> int | None:
        """The `factor` of the first tensor that has one."""
        for ref in refs:
            leaf = self.factor(ref, axis, size)
            if leaf is not None:
                return leaf
        return None

    def factor(self, ref: Ref | None, axis: int, size: int) -> int | None:
        """The vector leaf along the channel axis that a tensor is proportional to; None if there is none."""
        if ref is None:
            return None
        if ref in self.chains.trails:
            return self.chains.vector(ref, axis)
        node = self.chains.makers.get(ref)
        if node is None or self.chains.only_reader(ref) is None:
            return None
        if node.primitive is primitives.mul_p:  # scale * rsqrt(variance) of a layer norm
            return self.first_factor(node.inputs, axis, size)
        if node.primitive not in _BROADCASTS:
            return None
        shape = _small_shape(node)
        if np.prod(shape) != size:  # anything but a vector, such as that of a batch norm
            return None
        axes = [d for d, n in enumerate(shape) if n == size]
        return self.factor(node.inputs[0], axes[0], size) if axes else None

    def clip(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        literals = [v for v in node.eqn.invars if isinstance(v, Literal)]
        if len(literals) == 1 and np.all(np.asarray(literals[0].val) == 0):
            self.same(node, ref, axis, ids)
        else:
            raise _Stuck("a clip at a number other than zero")

    def same(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        self._tie(next(r for r in self.others(node, ref) if r is not None), axis, ids)

    def window(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        if node.eqn.params["window_dimensions"][axis] != 1:
            raise _Stuck("a window over channels")
        self.same(node, ref, axis, ids)

    def pad(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        fill = node.eqn.invars[1]
        zero = isinstance(fill, Literal) and np.all(np.asarray(fill.val) == 0)
        if not zero or node.eqn.params["padding_config"][axis] != (0, 0, 0):
            raise _Stuck("a border that is not zero")
        self.same(node, ref, axis, ids)

    def reduction(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        axes = node.eqn.params["axes"]
        kept = [a for a in range(len(node.inputs[0][1].aval.shape)) if a not in axes]  # type: ignore[index]
        if node.outputs[0] == ref:
            self._tie(node.inputs[0], kept[axis], ids)
        elif axis in kept:
            self._tie(node.outputs[0], kept.index(axis), ids)
        else:
            raise _Stuck("a reduction over channels")

    def layout(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        """A reshape passes factors on if the channels are the whole last axis before and after it."""
        shapes = [r[1].aval.shape for r in (node.inputs[0], node.outputs[0])]  # type: ignore[index]
        made = node.outputs[0] == ref
        own, other = shapes[made], shapes[not made]
        if axis != len(own) - 1 or own[-1] != other[-1]:
            raise _Stuck("channels that are reshaped")
        self._tie(node.inputs[0] if made else node.outputs[0], len(other) - 1, ids)

    def concatenation(self, node: Node, ref: Ref, axis: int, ids: np.ndarray) -> None:
        """Parts that are joined along the channels have their own channels of the whole; else all have the same channels."""
        dimension, out = node.eqn.params["dimension"], node.outputs[0]
        if dimension != axis:
            for other in self.others(node, ref):
                self._tie(other, axis, ids)
            return
        if out not in self.component.ids:
            self._tie(out, axis, self.component.fresh(out[1].aval.shape[axis]))
        whole, start = self.component.ids[out][1], 0
        for part in node.inputs:
            if part is None:
                raise _Stuck("a constant part")
            size = part[1].aval.shape[axis]
            self._tie(part, axis, whole[start : start + size])
            start += size


def _small_shape(node: Node) -> tuple[int, ...]:
    """The shape that a broadcast starts from."""
    return tuple(node.inputs[0][1].aval.shape) if node.inputs[0] is not None else ()


def weight_axis(node: Node, weight: int, axis: int, out: bool) -> int | None:
    """The axis of a contraction's weight operand that corresponds to a channel axis.

    Args:
      node: The contraction.
      weight: The position of its weight operand.
      axis: The channel axis of its result or of its activation.
      out: Whether `axis` belongs to the result.

    Returns:
      The axis of the weight; None if there is none.
    """
    params = node.eqn.params
    if node.primitive is primitives.conv_general_dilated_p:
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        if out:
            return int(numbers.rhs_spec[0])
        if axis != numbers.lhs_spec[1] or params["batch_group_count"] != 1:
            return None
        if groups == 1:
            return int(numbers.rhs_spec[1])
        shape = node.inputs[1][1].aval.shape  # type: ignore[index]
        depthwise = shape[numbers.rhs_spec[1]] == 1 and shape[numbers.rhs_spec[0]] == groups
        return int(numbers.rhs_spec[0]) if depthwise else None
    contracted, batched = params["dimension_numbers"]
    rank = len(node.inputs[weight][1].aval.shape)  # type: ignore[index]
    if batched[0]:
        return None
    if not out:
        own = tuple(contracted[1 - weight])
        return int(contracted[weight][own.index(axis)]) if axis in own else None
    free = [d for d in range(rank) if d not in contracted[weight]]
    return free[-1] if weight == 1 and free else None


_BROADCASTS = (primitives.broadcast_in_dim_p, primitives.reshape_p, primitives.convert_element_type_p)
_VISITS: dict[Any, Callable[..., None]] = {
    **dict.fromkeys(CONTRACTIONS, _Flood.contraction),
    **dict.fromkeys((primitives.add_p, primitives.sub_p), _Flood.sum),
    **dict.fromkeys((primitives.mul_p, primitives.div_p), _Flood.product),
    **dict.fromkeys((primitives.max_p, primitives.min_p), _Flood.clip),
    **dict.fromkeys((primitives.convert_element_type_p, primitives.copy_p, primitives.neg_p), _Flood.same),
    **dict.fromkeys((primitives.reduce_window_max_p, primitives.reduce_window_sum_p), _Flood.window),
    **dict.fromkeys((primitives.reduce_sum_p, primitives.reduce_max_p), _Flood.reduction),
    primitives.pad_p: _Flood.pad,
    primitives.reshape_p: _Flood.layout,
    primitives.concatenate_p: _Flood.concatenation,
}


def activation_axis(node: Node, weight: int | None) -> int | None:
    """The axis of its activation that a contraction sums over; None for a dot that sums over several or has no weight."""
    if node.primitive is primitives.conv_general_dilated_p:
        return int(node.eqn.params["dimension_numbers"].lhs_spec[1])
    contracted = node.eqn.params["dimension_numbers"][0][1 - (weight or 0)]
    return int(contracted[0]) if len(contracted) == 1 and weight is not None else None


def components(chains: Chains) -> list[Component]:
    """Every component that ends in weights on all sides, each once."""
    found: list[Component] = []
    seen: set[Ref] = set()
    for node, site in chains.contractions():
        axis = activation_axis(node, site.weight)
        ref = node.inputs[1 - (site.weight or 0)] if axis is not None else None
        if ref is None or axis is None or ref in seen:
            continue
        flood = _Flood(chains)
        try:
            found.append(flood.grow(ref, axis))
        except _Stuck:
            continue
        finally:
            seen.update(flood.component.ids)
    return [c for c in found if _unshared(c, found, leaf_readers(chains))]


def leaf_readers(chains: Chains) -> dict[int, set[Node]]:
    """The operations that compute with each leaf. Layout operations pass a leaf on, and are not counted."""
    readers: dict[int, set[Node]] = collections.defaultdict(set)
    for ref, trail in chains.trails.items():
        for node in chains.readers.get(ref, []):
            if node.outputs[0] not in chains.trails:
                for leaf, _ in trail.sources:
                    readers[leaf].add(node)
    return readers


def _unshared(component: Component, all_of_them: list[Component], readers: dict[int, set[Node]]) -> bool:
    """Whether each leaf at the borders has one reader (a tied weight has two), and no other component changes it likewise.

    A leaf may end one component and begin another: then it is multiplied by the factors of one, and divided by the other's.
    """
    uses: collections.Counter[tuple[int, int, int]] = collections.Counter()
    for other in all_of_them:
        uses.update(change[:3] for change in other.changes)
    one_use = all(uses[change[:3]] == 1 for change in component.changes)
    one_reader = all(len(readers[leaf]) == 1 for leaf, *_ in component.changes)
    return one_use and one_reader
