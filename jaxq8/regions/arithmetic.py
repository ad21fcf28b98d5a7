"""Which equations are arithmetic on elements that a region's steps can do, and the trees that they make of their operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxq8._compat import primitive_named, primitives
from jaxq8.kernels.epilogue import codes_between, codes_of, nan_if, numbers_of_codes, real_numbers
from jaxq8.regions import expressions as ex
from jaxq8.regions.expressions import Node, Tree, as_float, as_int

CONVERT, BROADCAST = primitives.convert_element_type_p, primitives.broadcast_in_dim_p
COPIES = set(primitive_named("stop_gradient_p", "copy_p"))
ENCODINGS = {codes_of.primitive, codes_between.primitive}
EXPRESSIONS = {real_numbers.primitive, numbers_of_codes.primitive, nan_if.primitive, *ENCODINGS}
MOST_FACTORS = 8  # of x ** n


def _by_primitive(*names: str) -> dict[Any, str]:
    return {p: name for name in names for p in primitive_named(f"{name}_p")}


FLOAT = _by_primitive(
    "add", "sub", "mul", "div", "max", "min", "neg", "abs", "exp", "logistic", "tanh", "erf", "sqrt", "rsqrt", "pow", "floor",
    "ceil", "sign", "log", "log1p", "expm1",
)  # fmt: skip
INT = _by_primitive("add", "sub", "mul", "max", "min")
COMPARE = _by_primitive("eq", "ne", "lt", "le", "gt", "ge")
LOGIC = _by_primitive("and", "or", "not")
EXTREMES = _by_primitive("max", "min")
SQUARE, INTEGER_POWER = primitive_named("square_p"), primitives.integer_pow_p
ROUND, FINITE = primitives.round_p, primitives.is_finite_p
SELECT, CLAMP, ERFC = primitives.select_n_p, primitives.clamp_p, primitives.erfc_p


def kind(atom: Any) -> str:
    """What an array holds: "float", "int", "bool" or "codes"; "" for dtypes that regions do not know."""
    names = {"float32": "float", "int32": "int", "bool": "bool", "uint8": "codes", "int8": "codes"}
    return names.get(jnp.dtype(atom.aval.dtype).name, "")


def is_arithmetic(eqn: Any) -> bool:
    """Whether an equation computes each element of its result from single elements of its operands, and a step can do it."""
    p = eqn.primitive
    if p in EXPRESSIONS:
        return True
    if len(eqn.outvars) != 1:
        return False
    made, reads = kind(eqn.outvars[0]), [kind(v) for v in eqn.invars]
    if p is CONVERT:
        return reads[0] != "" and (
            made in ("float", "int") or made == reads[0] or (reads[0], made) == ("float", "codes")
        )
    if p is BROADCAST:
        return len(reads) == 1 and made in ("float", "int", "bool")
    if p in COPIES:
        return made != ""
    if p is SELECT:
        return reads == ["bool", made, made] and made in ("float", "int")
    if p in COMPARE and made == "bool":
        return all(k in ("float", "bool", "codes") for k in reads)
    if p in LOGIC and made == "bool":
        return all(k == "bool" for k in reads)
    if p is FINITE:
        return reads == ["float"]
    if made == "codes":
        return p in EXTREMES and reads == ["codes", "codes"]
    if any(k != made for k in reads):
        return False
    if made == "int":
        return p in INT
    return made == "float" and _is_float_function(eqn)


def _is_float_function(eqn: Any) -> bool:
    p = eqn.primitive
    if p is INTEGER_POWER:
        return abs(eqn.params["y"]) <= MOST_FACTORS
    if p is ROUND:
        return bool(eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN)
    return p in FLOAT or p in (*SQUARE, CLAMP, ERFC)


def tree_of(eqn: Any, operands: Sequence[Tree]) -> Tree:
    """The tree of an equation for which `is_arithmetic` holds, without the clips and the rounding of `codes_of`."""
    p = eqn.primitive
    if p in _SPECIAL:
        return _SPECIAL[p](eqn, operands)
    if p in COPIES:
        return operands[0]
    made = kind(eqn.outvars[0])
    if made == "int" and p in INT:
        return Node(f"int_{INT[p]}", tuple(map(as_int, operands)))
    floats = [as_float(operand) for operand in operands]
    if p in COMPARE and made == "bool":
        return Node(COMPARE[p], tuple(floats))
    if p in LOGIC:
        return Node(LOGIC[p], tuple(floats))
    if p is FINITE:
        return Node("is_finite", tuple(floats))
    if p is primitives.mul_p:
        return ex.product(floats[0], floats[1])
    if p is primitives.add_p:
        return ex.total(floats[0], floats[1])
    return Node(FLOAT[p], tuple(floats))


def _real_numbers(eqn: Any, operands: Sequence[Tree]) -> Tree:
    values, scale, offset = map(as_float, operands)
    return clipped(ex.total(ex.product(values, scale), offset), eqn.params["lo"], eqn.params["hi"])


def _codes(eqn: Any, operands: Sequence[Tree]) -> Tree:
    values, multiplier, offset, *bounds = map(as_float, operands)
    # The multiplier of real numbers is the reciprocal of a scale.
    positive = kind(eqn.invars[0]) == "float"
    tree = ex.total(ex.product(values, multiplier, positive), offset)
    for name, bound in zip(("max", "min"), bounds, strict=False):
        tree = Node(name, (tree, bound))
    return tree


def _numbers_of_codes(eqn: Any, operands: Sequence[Tree]) -> Tree:
    values, scale, zero = map(as_float, operands)
    return ex.product(values if ex.known(zero) == 0 else Node("sub", (values, zero)), scale)


def _nan_if(eqn: Any, operands: Sequence[Tree]) -> Tree:
    scale, witness = map(as_float, operands)
    return Node("nan_if", (witness, scale))


def _converted(eqn: Any, operands: Sequence[Tree]) -> Tree:
    made = kind(eqn.outvars[0])
    if made == "int":
        return as_int(operands[0])
    if made == "codes" and kind(eqn.invars[0]) == "float":
        # Truncated and saturated as XLA does it; NaN becomes 0.
        info = jnp.iinfo(eqn.outvars[0].aval.dtype)
        return clipped(as_float(as_int(operands[0])), info.min, info.max)
    return as_float(operands[0])


def _broadcast(eqn: Any, operands: Sequence[Tree]) -> Tree:
    return ex.placed(operands[0], eqn.params["broadcast_dimensions"], len(eqn.params["shape"]))


def _selected(eqn: Any, operands: Sequence[Tree]) -> Tree:
    choice, where_false, where_true = operands
    return Node("select", (as_float(choice), where_true, where_false))


def _clamped(eqn: Any, operands: Sequence[Tree]) -> Tree:
    low, values, high = operands
    return Node("min", (Node("max", (values, low)), high))


def _power(eqn: Any, operands: Sequence[Tree]) -> Tree:
    exponent = eqn.params["y"]
    if exponent == 0:
        return ex.ONE
    result, square, left = None, operands[0], abs(exponent)
    while left:
        if left & 1:
            result = square if result is None else Node("mul", (result, square))
        left >>= 1
        square = Node("mul", (square, square))
    assert result is not None
    return Node("div", (ex.ONE, result)) if exponent < 0 else result


_SPECIAL: dict[Any, Callable[[Any, Sequence[Tree]], Tree]] = {
    real_numbers.primitive: _real_numbers,
    codes_of.primitive: _codes,
    codes_between.primitive: _codes,
    numbers_of_codes.primitive: _numbers_of_codes,
    nan_if.primitive: _nan_if,
    CONVERT: _converted,
    BROADCAST: _broadcast,
    SELECT: _selected,
    CLAMP: _clamped,
    INTEGER_POWER: _power,
    ROUND: lambda eqn, operands: Node("round", tuple(operands)),
    # Its error is that of 1 - erf(x): absolute, not relative. That is what gelu needs, which multiplies it by x.
    ERFC: lambda eqn, operands: Node("sub", (ex.ONE, Node("erf", tuple(operands)))),
    **{p: lambda eqn, operands: Node("mul", (operands[0], operands[0])) for p in SQUARE},
}


def clipped(tree: Tree, lo: float, hi: float) -> Tree:
    """``clip(tree, lo, hi)``, where infinite bounds stand for none."""
    if lo > -math.inf:
        tree = Node("max", (tree, ex.number(lo)))
    return Node("min", (tree, ex.number(hi))) if hi < math.inf else tree
