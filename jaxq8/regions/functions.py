"""Activation functions that a contraction's own step can apply, recognised by what they compute.

A framework writes gelu or swish as a dozen operations, and each in its own way. Here a tree is taken for such a function if it
computes the same numbers: it is evaluated on a grid, in float64, as a function of the contraction's real numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxq8.regions import expressions as ex
from jaxq8.regions.expressions import Known, Leaf, Node, Tree
from jaxq8.regions.linear import Channels, Linear, linear
from jaxq8.regions.steps import FUNCTIONS

_GRID = np.concatenate([np.linspace(-30, 30, 1201), np.linspace(-4, 4, 801)])
_TOLERANCE = 1e-6  # of numbers up to 1, and relative beyond: that of constants in float32


Multiple = tuple[Any, float]  # what a tree is a multiple of, and which


@dataclasses.dataclass(frozen=True)
class Applied:
    """``function(form) * scale + shift``; scale and shift are trees of one number."""

    function: str
    form: Linear
    scale: Tree
    shift: Tree


def applied(tree: Tree, channels: Channels, multiple: Callable[[Tree], Multiple]) -> Applied | None:
    """A tree as a known function of one contraction's real numbers; None if it is none.

    Numbers that a function multiplies its argument with are part of the contraction's vectors by now. So the tree reads several
    multiples of the real numbers, and these have to be multiples of the same.

    Args:
      tree: The tree.
      channels: The channels of the contraction.
      multiple: What a tree of few numbers is a multiple of: trees with equal first parts are multiples of the same.
    """
    core, scale, shift = _peeled(tree)
    parts: dict[int, Linear] = {}
    if not _collected(core, channels, parts):
        return None
    forms = list(parts.values())
    leaves = {id(leaf.variable) for form in forms for leaf, _ in form.coefficients.values()}
    if not forms or len(leaves) != 1 or any(form.is_clipped for form in forms):
        return None
    factors = [multiple(next(iter(form.coefficients.values()))[1]) for form in forms]
    offsets = [(None, n) if ex.known(form.constant) == 0 else multiple(form.constant)
               for form, (_, n) in zip(forms, factors, strict=True)]  # fmt: skip
    if len({key for key, _ in factors}) != 1 or len({key for key, _ in offsets}) != 1:
        return None
    if any(
        n == 0 or not math.isclose(n, m, rel_tol=1e-6)
        for (_, n), (_, m) in zip(factors, offsets, strict=True)
    ):
        return None
    for one in dict.fromkeys([1.0, *(n for _, n in factors)]):
        grid = {key: _GRID * (n / one) for key, (_, n) in zip(parts, factors, strict=True)}
        function = _named(core, grid)
        if function:
            return Applied(function, _divided(forms[0], factors[0][1] / one), scale, shift)
    return None


def _collected(tree: Tree, channels: Channels, parts: dict[int, Linear]) -> bool:
    """Finds the largest linear parts of a tree; False if it reads anything else but known numbers."""
    form = linear(tree, channels)
    if form is not None and form.coefficients:
        parts[id(tree)] = form
        return len(form.coefficients) == 1 and _reads_contraction(tree)
    if isinstance(tree, Node):
        return all(_collected(operand, channels, parts) for operand in tree.operands)
    return ex.known(tree) is not None


def _divided(form: Linear, number: float) -> Linear:
    """A linear form divided by a number."""
    factor = ex.number(1 / number)
    coefficients = {key: (leaf, ex.product(c, factor)) for key, (leaf, c) in form.coefficients.items()}
    constant = form.constant if ex.known(form.constant) == 0 else ex.product(form.constant, factor)
    return Linear(coefficients, constant)


def _named(tree: Tree, parts: dict[int, np.ndarray]) -> str:
    """The known function that makes the same numbers of the grid; "" if there is none."""
    numbers = _evaluated(tree, parts)
    for name, own in _functions().items():
        if numbers is not None and bool(np.all(np.abs(numbers - own) <= _TOLERANCE * (1 + np.abs(own)))):
            return name
    return ""


@functools.cache
def _functions() -> dict[str, np.ndarray]:
    """What the functions of `steps.FUNCTIONS` make of the grid."""
    x = _GRID
    logistic = 1 / (1 + np.exp(-x))
    made = {
        "gelu_erf": 0.5 * x * (1 + _erf(x / math.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "swish": x * logistic,
        "logistic": logistic,
        "tanh": np.tanh(x),
        "hard_swish": x * np.clip(x / 6 + 0.5, 0, 1),
    }
    return {name: made[name] for name in FUNCTIONS if name}


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in np.ravel(x)]).reshape(np.shape(x))


def _peeled(tree: Tree) -> tuple[Tree, Tree, Tree]:
    """A tree as ``core * scale + shift`` with as much as possible in scale and shift."""
    if isinstance(tree, Node) and tree.name in ("add", "sub", "mul", "div") and len(tree.operands) == 2:
        for number, (inner, other) in enumerate((tree.operands, tree.operands[::-1])):
            if _reads_contraction(other) or math.prod(ex.shape_of(other)) != 1 or not ex.is_small(other):
                continue
            if tree.name in ("sub", "div") and number == 1:
                continue  # a number minus or divided by the core
            core, scale, shift = _peeled(inner)
            if tree.name in ("add", "sub"):
                return core, scale, Node(tree.name, (shift, other))
            return core, Node(tree.name, (scale, other)), Node(tree.name, (shift, other))
    return tree, ex.ONE, ex.ZERO


def _reads_contraction(tree: Tree) -> bool:
    if isinstance(tree, Node):
        return any(map(_reads_contraction, tree.operands))
    return isinstance(tree, Leaf) and tree.contraction is not None


_NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "tanh": np.tanh, "erf": _erf, "sqrt": np.sqrt, "pow": np.power,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip


def _evaluated(tree: Tree, parts: dict[int, np.ndarray]) -> np.ndarray | None:
    """What a tree makes of numbers in place of its parts; None if it has an operation that no known function has."""
    made: dict[int, np.ndarray | None] = dict(parts)

    def value(node: Tree) -> np.ndarray | None:
        if id(node) not in made:
            made[id(node)] = (
                np.asarray(ex.known(node), np.float64) if isinstance(node, Known) else computed(node)
            )
        return made[id(node)]

    def computed(node: Tree) -> np.ndarray | None:
        if not isinstance(node, Node) or node.name not in _NUMPY:
            return None
        operands = [value(operand) for operand in node.operands]
        if any(operand is None for operand in operands):
            return None
        with np.errstate(all="ignore"):
            return _NUMPY[node.name](*operands)

    return value(tree)
