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
KNOWN = "known"  # what a known number is a multiple of
_TOLERANCE = 1e-6  # of numbers up to 1, and relative beyond: that of constants in float32


@dataclasses.dataclass(frozen=True)
class Multiple:
    """``of * number + added``, where trees with equal `of` are multiples of the same."""

    of: Any
    number: float = 1.0
    added: float = 0.0

    def times(self, number: float) -> Multiple:
        return Multiple(self.of, self.number * number, self.added * number)

    def plus(self, number: float) -> Multiple:
        return Multiple(self.of, self.number, self.added + number)


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
    if len(leaves) != 1:
        return None
    factors = [multiple(next(iter(form.coefficients.values()))[1]) for form in forms]
    offsets = [multiple(form.constant) for form in forms]
    if len({factor.of for factor in factors}) != 1 or len({offset.of for offset in offsets}) != 1:
        return None
    pairs = list(zip(factors, offsets, strict=True))
    if any(f.number == 0 or f.added != 0 for f in factors):
        return None
    if offsets[0].of != KNOWN and not all(math.isclose(f.number, o.number, rel_tol=1e-6) for f, o in pairs):
        return None
    # The argument is one of the parts, or what they are multiples of, with or without a number added.
    whole = [(1.0, o.added / f.number) for f, o in pairs]
    for one, start in dict.fromkeys([(1.0, 0.0), *whole, *((f.number, o.added) for f, o in pairs)]):
        grid = {}
        for key, (factor, offset) in zip(parts, pairs, strict=True):
            number = factor.number / one
            grid[key] = _GRID * number + (offset.added - start * number)
        function, times = _named(core, grid)
        if function:
            number = factors[0].number / one
            form = _divided(forms[0], number, offsets[0].added - start * number)
            return Applied(function, form, ex.product(scale, ex.number(times)), shift)
    return None


def _collected(tree: Tree, channels: Channels, parts: dict[int, Linear]) -> bool:
    """Finds the largest linear parts of a tree; False if it reads anything else but known numbers."""
    form = linear(tree, channels)
    if form is not None and form.coefficients and not form.is_clipped:
        parts[id(tree)] = form
        return len(form.coefficients) == 1 and _reads_contraction(tree)
    if isinstance(tree, Node):
        return all(_collected(operand, channels, parts) for operand in tree.operands)
    return ex.known(tree) is not None


def _divided(form: Linear, number: float, added: float) -> Linear:
    """The linear form that, multiplied by a number and with another one added, is `form`."""
    factor = ex.number(1 / number)
    coefficients = {key: (leaf, ex.product(c, factor)) for key, (leaf, c) in form.coefficients.items()}
    constant = ex.total(form.constant, ex.number(-added))
    return Linear(coefficients, constant if ex.known(constant) == 0 else ex.product(constant, factor))


def _named(tree: Tree, parts: dict[int, np.ndarray]) -> tuple[str, float]:
    """The known function, and the number by which it has to be multiplied to make the same numbers; "" if there is none."""
    numbers = _evaluated(tree, parts)
    if numbers is None or not np.all(np.isfinite(numbers)):
        return "", 1.0
    for name, own in _functions().items():
        times = float(np.vdot(numbers, own) / np.vdot(own, own))
        if times and bool(np.all(np.abs(numbers / times - own) <= _TOLERANCE * (1 + np.abs(own)))):
            return name, 1.0 if abs(times - 1) < _TOLERANCE else times
    return "", 1.0


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
