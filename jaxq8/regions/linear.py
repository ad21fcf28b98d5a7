"""The linear form of a tree: where a tree is linear in a contraction's result, the contraction's own step computes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxq8.regions.expressions import ONE, ZERO, Leaf, Node, Tree, known, number, product, total


@dataclasses.dataclass
class Linear:
    """``clip(sum of coefficient * leaf + constant, lo, hi)``; coefficients and constant are small trees."""

    coefficients: dict[int, tuple[Leaf, Tree]]
    constant: Tree
    lo: float = -math.inf
    hi: float = math.inf

    @property
    def is_clipped(self) -> bool:
        return self.lo > -math.inf or self.hi < math.inf


@dataclasses.dataclass(frozen=True)
class Channels:
    """The channels of a contraction as a tree reads its result: `count` of them, along the last `axes` axes."""

    count: int
    axes: int

    def has(self, tree: Tree) -> bool:
        """Whether a tree is one number, or one number for each channel, of numbers that are no result of a contraction."""
        if isinstance(tree, Node):
            return all(map(self.has, tree.operands))
        size = math.prod(tree.shape)
        if isinstance(tree, Leaf) and tree.contraction is not None:
            return False
        return size == 1 or (size == self.count and math.prod(tree.shape[-self.axes :]) == size)


def channels_of(leaf: Leaf) -> Channels | None:
    """The channels of the contraction whose result a leaf is; None if these are not the last axes of the leaf."""
    count = leaf.variable.aval.shape[-1]
    axes = trailing(leaf.shape, count)
    return None if axes is None else Channels(count, axes)


def trailing(shape: Sequence[int], count: int) -> int | None:
    """How many last axes of a shape have together so many elements."""
    fitting = (axes for axes in range(1, len(shape) + 1) if math.prod(shape[-axes:]) == count)
    return next(fitting, None)


def linear(tree: Tree, channels: Channels) -> Linear | None:
    """The linear form of a tree; None if it has none. Its coefficients are numbers, or one number for each channel."""
    if channels.has(tree):
        return Linear({}, tree)
    if tree.is_int:
        return None
    if isinstance(tree, Leaf):
        return Linear({id(tree.variable): (tree, ONE)}, ZERO)
    assert isinstance(tree, Node)
    forms = [linear(operand, channels) for operand in tree.operands]
    if any(form is None for form in forms):
        return None
    if tree.name == "neg":
        return _scaled(forms[0], number(-1.0), False)  # type: ignore[arg-type]
    if len(forms) != 2:
        return None
    first, second = forms
    assert first is not None
    assert second is not None
    if tree.name in ("add", "sub"):
        return _summed(first, second if tree.name == "add" else _scaled(second, number(-1.0), False))
    if tree.name == "mul":
        for form, factor in ((first, second), (second, first)):
            if not factor.coefficients:
                return _scaled(form, factor.constant, tree.positive)
    if tree.name == "div" and not second.coefficients:
        return _scaled(first, Node("div", (ONE, second.constant)), False)
    if tree.name in ("max", "min"):
        for form, bound in ((first, second), (second, first)):
            clip = None if bound.coefficients else known(bound.constant)
            if clip is not None:
                return _clipped(form, clip, tree.name == "max")
    return None


def _summed(first: Linear, second: Linear | None) -> Linear | None:
    if second is None:
        return None
    if first.is_clipped or second.is_clipped:
        # A number can be added behind clips that it leaves where they are.
        for form, other in ((first, second), (second, first)):
            if not other.coefficients and known(other.constant) == 0:
                return form
        return None
    coefficients = dict(first.coefficients)
    for key, (leaf, factor) in second.coefficients.items():
        before = coefficients.get(key)
        coefficients[key] = (leaf, factor if before is None else total(before[1], factor))
    return Linear(coefficients, total(first.constant, second.constant))


def _scaled(form: Linear, factor: Tree, positive: bool) -> Linear | None:
    lo, hi = form.lo, form.hi
    if form.is_clipped:
        fixed = known(factor)
        if fixed is not None and fixed > 0:
            lo, hi = lo * fixed, hi * fixed
        elif not (positive and lo == 0 and hi == math.inf):  # the clip at 0 stays where it is
            return None
    coefficients = {key: (leaf, product(c, factor)) for key, (leaf, c) in form.coefficients.items()}
    constant = form.constant if known(form.constant) == 0 else product(form.constant, factor)
    return Linear(coefficients, constant, lo, hi)


def _clipped(form: Linear, bound: float, lower: bool) -> Linear:
    if lower:
        lo, hi = max(form.lo, bound), max(form.hi, bound)
    else:
        lo, hi = min(form.lo, bound), min(form.hi, bound)
    return dataclasses.replace(form, lo=lo, hi=hi)
