"""ONNX nodes for the JAX primitives between layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from benchmarks.onnx_export.graph import Tensor, Value

Primitive = Callable[..., Value]


def _binary(op: str) -> Primitive:
    def convert(converter: Any, eqn: Any, x: Value, y: Value) -> Value:
        graph, shape = converter.graph, np.broadcast_shapes(x.shape, y.shape)
        x, y = (_scales(graph, v, other) for v, other in ((x, y), (y, x)))
        tensors = [v for v in (x, y) if isinstance(v, Tensor)]
        if all(t.first for t in tensors) and len(shape) == max(len(t.shape) for t in tensors):
            names = [_first_operand(graph, v, len(shape)) for v in (x, y)]
            return Tensor(graph.add(op, names), shape, first=True)
        return Tensor(graph.add(op, [graph.operand(v) for v in (x, y)]), shape)

    return convert


def _scales(graph: Any, value: Value, other: Value) -> Value:
    """A number for each channel, as squeeze-excite makes them, in the layout of the images that it stands beside."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor) or value.first or not other.first:
        return value
    alike = len(value.shape) == len(other.shape) > 2 and all(n == 1 for n in value.shape[1:-1])
    return graph.first(value) if alike else value


def _first_operand(graph: Any, value: Value, rank: int) -> str:
    """An operand beside a tensor with channels first; constants are brought to that order."""
    if isinstance(value, Tensor):
        return value.name
    if value.ndim == 0:
        return graph.constant(value)
    return graph.first(value.reshape((1,) * (rank - value.ndim) + value.shape)).name


def _unary(op: str) -> Primitive:
    return lambda converter, eqn, x: converter.same(eqn, op, x)


def _keep(converter: Any, eqn: Any, x: Value) -> Value:
    return x


def divide(converter: Any, eqn: Any, x: Value, y: Value) -> Value:
    """Division; a sum over n elements divided by n is a mean, and exp(z) over its sum a softmax."""
    mean = converter.definition(eqn.invars[0], "reduce_window_sum", "reduce_sum")
    if mean is not None and isinstance(y, np.ndarray) and y.ndim == 0:
        source = converter.read(mean.invars[0])
        if mean.primitive.name == "reduce_sum" and y == _reduced_size(mean):
            return _mean(converter.graph, mean, source)
        if mean.primitive.name == "reduce_window_sum" and y == math.prod(mean.params["window_dimensions"]):
            return _pool(converter.graph, mean, source, "AveragePool", count_include_pad=1)
    logits = _softmax_input(converter, eqn)
    if logits is not None:
        z = converter.graph.operand(converter.read(logits))
        return Tensor(converter.graph.add("Softmax", [z], axis=-1), logits.aval.shape)
    return _binary("Div")(converter, eqn, x, y)


def _softmax_input(converter: Any, eqn: Any) -> Any:
    """z, if the equation is exp(z - max) / sum(exp(z - max)) over the last axis, as jax.nn.softmax writes it."""
    exp = converter.definition(eqn.invars[0], "exp")
    shifted = exp and converter.definition(exp.invars[0], "sub")
    spread = converter.definition(eqn.invars[1], "broadcast_in_dim", "reshape")
    total = spread and converter.definition(spread.invars[0], "reduce_sum")
    if not (shifted and total) or total.invars[0] is not eqn.invars[0]:
        return None
    last = len(exp.outvars[0].aval.shape) - 1
    return shifted.invars[0] if total.params["axes"] == (last,) else None


def _reduced_size(eqn: Any) -> int:
    return math.prod(eqn.invars[0].aval.shape[a] for a in eqn.params["axes"])


def _mean(graph: Any, eqn: Any, x: Value) -> Value:
    shape, axes = eqn.outvars[0].aval.shape, eqn.params["axes"]
    if isinstance(x, Tensor) and x.first and axes == tuple(range(1, len(x.shape) - 1)):
        pooled = graph.add("GlobalAveragePool", [x.name])
        return Tensor(graph.add("Flatten", [pooled], axis=1), shape)
    return Tensor(graph.add("ReduceMean", [graph.operand(x)], axes=list(axes), keepdims=0), shape)


def reduce_sum(converter: Any, eqn: Any, x: Value) -> Value:
    """Sum over axes."""
    axes = converter.graph.constant(np.asarray(eqn.params["axes"], np.int64), "axes")
    return _reduce(converter, eqn, "ReduceSum", [converter.graph.operand(x), axes])


def reduce_max(converter: Any, eqn: Any, x: Value) -> Value:
    """Maximum over axes."""
    return _reduce(converter, eqn, "ReduceMax", [converter.graph.operand(x)], axes=list(eqn.params["axes"]))


def _reduce(converter: Any, eqn: Any, op: str, names: list[str], **attributes: Any) -> Value:
    return Tensor(converter.graph.add(op, names, keepdims=0, **attributes), eqn.outvars[0].aval.shape)


def window_max(converter: Any, eqn: Any, x: Value) -> Value:
    """Max pooling; JAX and ONNX both leave the border out."""
    return _pool(converter.graph, eqn, x, "MaxPool")


def window_sum(converter: Any, eqn: Any, x: Value) -> Value:
    """A sum over windows: the average pooling times the size of the window."""
    mean = _pool(converter.graph, eqn, x, "AveragePool", count_include_pad=1)
    size = converter.graph.constant(np.float32(math.prod(eqn.params["window_dimensions"])))
    return Tensor(converter.graph.add("Mul", [mean.name, size]), mean.shape, first=True)


def _pool(graph: Any, eqn: Any, x: Value, op: str, **attributes: Any) -> Tensor:
    pads = eqn.params["padding"][1:-1]
    name = graph.add(
        op,
        [graph.first(x).name],
        kernel_shape=list(eqn.params["window_dimensions"][1:-1]),
        strides=list(eqn.params["window_strides"][1:-1]),
        pads=[p[0] for p in pads] + [p[1] for p in pads],
        **attributes,
    )
    return Tensor(name, eqn.outvars[0].aval.shape, first=True)


def erfc(converter: Any, eqn: Any, x: Value) -> Value:
    """1 - erf(x); for x = -u / sqrt(2), as in the exact gelu, 1 + erf(u / sqrt(2)) as the fusions expect it."""
    graph, one = converter.graph, converter.graph.constant(np.float32(1))
    scaled = converter.definition(eqn.invars[0], "mul")
    negated = scaled and converter.definition(scaled.invars[0], "neg")
    if negated:
        u, factor = converter.read(negated.invars[0]), converter.read(scaled.invars[1])
        root = graph.constant(np.float32(1 / factor))
        erf = graph.add("Erf", [graph.add("Div", [graph.operand(u), root])])
        return Tensor(graph.add("Add", [erf, one]), u.shape)
    return Tensor(graph.add("Sub", [one, graph.add("Erf", [graph.operand(x)])]), x.shape)


def integer_pow(converter: Any, eqn: Any, x: Value) -> Value:
    """x to a constant power."""
    return converter.same(eqn, "Pow", x, converter.graph.constant(np.float32(eqn.params["y"])))


def square(converter: Any, eqn: Any, x: Tensor) -> Value:
    """x * x."""
    return converter.same(eqn, "Mul", x, x.name)


def rsqrt(converter: Any, eqn: Any, x: Tensor) -> Value:
    """1 / sqrt(x)."""
    return converter.same(eqn, "Reciprocal", converter.same(eqn, "Sqrt", x))


def cast(converter: Any, eqn: Any, x: Tensor) -> Value:
    """Conversion of type."""
    to = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return Tensor(converter.graph.add("Cast", [x.name], to=to), x.shape, x.first)


def concatenate(converter: Any, eqn: Any, *parts: Value) -> Value:
    """Concatenation, in the layout of the parts."""
    graph, axis, shape = converter.graph, eqn.params["dimension"], eqn.outvars[0].aval.shape
    firsts = [p for p in parts if isinstance(p, Tensor) and p.first]
    if len(firsts) == len(parts):
        place = {0: 0, len(shape) - 1: 1}.get(axis, axis + 1)  # where the graph has JAX's axis
        return Tensor(graph.add("Concat", [p.name for p in firsts], axis=place), shape, first=True)
    full = [
        graph.expand(p, a.aval.shape) if isinstance(p, Tensor) else p
        for p, a in zip(parts, eqn.invars, strict=True)
    ]
    return Tensor(graph.add("Concat", [graph.operand(p) for p in full], axis=axis), shape)


def stack(converter: Any, eqn: Any, *parts: Value) -> Value:
    """Parts along a new axis."""
    graph, axis = converter.graph, eqn.params["axis"]
    axes = graph.constant(np.asarray([axis], np.int64), "axes")
    names = [graph.add("Unsqueeze", [graph.operand(p), axes]) for p in parts]
    return Tensor(graph.add("Concat", names, axis=axis), eqn.outvars[0].aval.shape)


def reshape(converter: Any, eqn: Any, x: Tensor) -> Value:
    """Reshape, squeeze and expand_dims."""
    graph, source = converter.graph, eqn.invars[0].aval.shape
    return graph.reshape(graph.expand(x, source), eqn.outvars[0].aval.shape)


def broadcast(converter: Any, eqn: Any, x: Tensor) -> Value:
    """New axes have size 1 until an operation that does not broadcast needs the whole."""
    shape = [1] * len(eqn.params["shape"])
    for axis, target in enumerate(eqn.params["broadcast_dimensions"]):
        shape[target] = x.shape[axis]
    return converter.graph.reshape(x, shape)


def transpose(converter: Any, eqn: Any, x: Tensor) -> Value:
    """Permutation of axes."""
    perm = list(eqn.params["permutation"])
    name = converter.graph.add("Transpose", [converter.graph.operand(x)], perm=perm)
    return Tensor(name, tuple(x.shape[p] for p in perm))


def select(converter: Any, eqn: Any, which: Value, no: Value, yes: Value) -> Value:
    """Elementwise choice between two arrays by booleans."""
    names = [converter.graph.operand(v) for v in (which, yes, no)]
    shape = np.broadcast_shapes(which.shape, no.shape, yes.shape)
    return Tensor(converter.graph.add("Where", names), shape)


def slice_(converter: Any, eqn: Any, x: Value) -> Value:
    """A static slice."""
    start, limit, strides = (eqn.params[k] for k in ("start_indices", "limit_indices", "strides"))
    steps = strides or [1] * len(start)
    arrays = [start, limit, range(len(start)), steps]
    names = [converter.graph.constant(np.asarray(list(a), np.int64), "slice") for a in arrays]
    name = converter.graph.add("Slice", [converter.graph.operand(x), *names])
    return Tensor(name, eqn.outvars[0].aval.shape)


def update_slice(converter: Any, eqn: Any, x: Value, update: Value, *starts: Value) -> Value:
    """One row written at a position along the second axis, as into the cache of a decoder."""
    batch, length = update.shape[:2]
    fixed = [s for i, s in enumerate(starts) if i != 1]
    if length != 1 or not all(isinstance(s, np.ndarray) and s == 0 for s in fixed):
        raise ValueError("dynamic_update_slice: only one row along the second axis has an ONNX form here")
    graph = converter.graph
    position = graph.add(
        "Cast", [graph.operand(starts[1])], to=helper.np_dtype_to_tensor_dtype(np.dtype("int64"))
    )
    shape = graph.constant(np.asarray([batch, 1, 1], np.int64), "shape")
    rows = graph.constant(np.arange(batch, dtype=np.int64).reshape(batch, 1, 1))
    indices = graph.add("Concat", [rows, graph.add("Expand", [position, shape])], axis=2)
    name = graph.add("ScatterND", [graph.operand(x), indices, graph.operand(update)])
    return Tensor(name, x.shape)


def dot_general(converter: Any, eqn: Any, x: Value, y: Value) -> Value:
    """MatMul, with the axes brought to (batch, m, k) and (batch, k, n) where they are not."""
    graph = converter.graph
    (cx, cy), (bx, by) = eqn.params["dimension_numbers"]
    if not bx and len(cx) == 1 and cx[0] == len(x.shape) - 1 and len(y.shape) == 2:
        matrix = (
            graph.constant(y.T if cy[0] else y) if isinstance(y, np.ndarray) else _matrix(graph, y, cy[0])
        )
        return Tensor(graph.add("MatMul", [graph.operand(x), matrix]), eqn.outvars[0].aval.shape)
    left = _matrices(graph, x, bx, cx, contracted_last=True)
    right = _matrices(graph, y, by, cy, contracted_last=False)
    product = graph.add("MatMul", [left, right])
    return graph.reshape(Tensor(product, ()), eqn.outvars[0].aval.shape)


def _matrix(graph: Any, y: Tensor, contracted: int) -> str:
    return graph.add("Transpose", [graph.operand(y)], perm=[1, 0]) if contracted else graph.operand(y)


def _matrices(graph: Any, x: Value, batch: Any, contracted: Any, contracted_last: bool) -> str:
    """`x` as (*batch, free, contracted), or the last two swapped."""
    free = [a for a in range(len(x.shape)) if a not in batch and a not in contracted]
    groups = [free, list(contracted)] if contracted_last else [list(contracted), free]
    perm = [*batch, *groups[0], *groups[1]]
    name = graph.operand(x)
    if perm != sorted(perm):
        name = graph.add("Transpose", [name], perm=perm)
    sizes = [x.shape[a] for a in batch] + [math.prod(x.shape[a] for a in g) for g in groups]
    if len(sizes) == len(perm):
        return name
    return graph.add("Reshape", [name, graph.constant(np.asarray(sizes, np.int64), "shape")])


BINARY = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "max": "Max", "min": "Min", "pow": "Pow",
    "and": "And", "or": "Or", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    "eq": "Equal",
}  # fmt: skip
UNARY = {
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "neg": "Neg",
    "abs": "Abs", "erf": "Erf", "not": "Not",
}  # fmt: skip
PRIMITIVES: dict[str, Primitive] = {
    **{name: _binary(op) for name, op in BINARY.items()},
    **{name: _unary(op) for name, op in UNARY.items()},
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "optimization_barrier"), _keep),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), reshape),
    "div": divide,
    "reduce_sum": reduce_sum,
    "reduce_max": reduce_max,
    "reduce_window_max": window_max,
    "reduce_window_sum": window_sum,
    "erfc": erfc,
    "integer_pow": integer_pow,
    "square": square,
    "rsqrt": rsqrt,
    "convert_element_type": cast,
    "concatenate": concatenate,
    "stack": stack,
    "broadcast_in_dim": broadcast,
    "transpose": transpose,
    "select_n": select,
    "slice": slice_,
    "dynamic_update_slice": update_slice,
    "dot_general": dot_general,
}
