"""From the recorded jaxpr to an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from onnx import helper

from benchmarks.onnx_export.graph import Graph, Tensor, Value, channels_first
from benchmarks.onnx_export.layers import FUSED, LAYERS, UnsupportedLayerError
from benchmarks.onnx_export.primitives import PRIMITIVES
from benchmarks.onnx_export.record import MARK, LayerCall, record


class UnsupportedModelError(ValueError):
    """The model has an operation that this exporter does not know."""


def export(module: nn.Module, variables: Any, inputs: Sequence[Any], *, fused: bool = False) -> Any:
    """The model as an `onnx.ModelProto` with the shapes of `inputs`.

    Inputs of rank 4 are images, which the graph takes channels first: (b, c, h, w) for (b, h, w, c). Inputs are
    named input_0, input_1, ... in the order of the flattened `inputs`, outputs output_0, ...

    Args:
        module: a Linen module.
        variables: its variables.
        inputs: arguments after the variables: arrays, or trees of arrays.
        fused: write attention as ONNX Runtime's own node.

    Raises:
        UnsupportedModelError: the model has an operation that this exporter does not know.
    """
    layers = FUSED if fused else LAYERS
    closed, calls = record(module, variables, inputs, tuple(layers))
    graph = Graph()
    values, infos = [], []
    for index, var in enumerate(closed.jaxpr.invars):
        name, shape = f"input_{index}", var.aval.shape
        first = len(shape) == 4
        values.append(Tensor(name, shape, first))
        infos.append(_info(name, var.aval.dtype, channels_first(shape) if first else shape))
    converter = Converter(graph, calls, layers)
    consts = [np.asarray(c) for c in closed.consts]
    try:
        results = converter.run(closed.jaxpr, [*consts, *values])
    except UnsupportedLayerError as error:
        raise UnsupportedModelError(str(error)) from error
    avals = [var.aval for var in closed.jaxpr.outvars]
    outputs = [_output(graph, i, r, a) for i, (r, a) in enumerate(zip(results, avals, strict=True))]
    return graph.model(infos, outputs)


def _info(name: str, dtype: Any, shape: Sequence[int]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _output(graph: Graph, index: int, value: Value, aval: Any) -> Any:
    name = f"output_{index}"
    tensor = value if isinstance(value, Tensor) else Tensor(graph.constant(value), value.shape)
    tensor = graph.expand(graph.last(tensor), aval.shape)
    graph.nodes.append(helper.make_node("Identity", [tensor.name], [name], name=name))
    return _info(name, aval.dtype, aval.shape)


class Converter:
    """Evaluates a jaxpr on `Tensor`s and numpy constants, one equation after the other."""

    def __init__(self, graph: Graph, calls: Sequence[LayerCall], layers: dict[Any, Any]) -> None:
        self.graph, self.calls, self.layers = graph, calls, layers
        self.definitions: dict[Any, Any] = {}  # the equation that made a variable, for patterns
        self.values: dict[Any, Value] = {}

    def run(self, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        """The outputs for `inputs`: the values of the constants, then of the arguments."""
        self.values.update(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
        for eqn in _needed(jaxpr):
            self.definitions.update(dict.fromkeys(eqn.outvars, eqn))
            self.values.update(zip(eqn.outvars, self.convert(eqn), strict=True))
        return [self.read(var) for var in jaxpr.outvars]

    def read(self, atom: Any) -> Value:
        """The value of a variable or a literal."""
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else self.values[atom]

    def definition(self, atom: Any, *primitives: str) -> Any:
        """The equation that made `atom` if it is of one of these primitives, else None."""
        eqn = None if hasattr(atom, "val") else self.definitions.get(atom)
        return eqn if eqn is not None and eqn.primitive.name in primitives else None

    def convert(self, eqn: Any) -> Sequence[Value]:
        """The outputs of one equation."""
        called = _callee_name(eqn)
        if called.startswith(MARK):
            return [self.layer(int(called.removeprefix(MARK)), eqn)]
        inputs = [self.read(atom) for atom in eqn.invars]
        if all(isinstance(x, np.ndarray) for x in inputs):
            return _fold(eqn, inputs)
        if called == "relu":
            return [self.same(eqn, "Relu", inputs[0])]
        if called == "relu6":
            limits = [self.graph.constant(np.float32(v)) for v in (0, 6)]
            return [self.same(eqn, "Clip", inputs[0], *limits)]
        if called:
            return self.run(_callee(eqn), [*_constants(eqn), *inputs])
        name = eqn.primitive.name
        if name not in PRIMITIVES:
            raise UnsupportedModelError(f"no ONNX form for the JAX primitive {name}: {eqn}")
        return [PRIMITIVES[name](self, eqn, *inputs)]

    def same(self, eqn: Any, op: str, x: Value, *more: str) -> Tensor:
        """An elementwise operation that keeps the layout."""
        assert isinstance(x, Tensor)
        return Tensor(self.graph.add(op, [x.name, *more]), x.shape, x.first)

    def layer(self, number: int, eqn: Any) -> Tensor:
        """A whole layer; its first operand is the result of the float layer, which is not used."""
        call = self.calls[number]
        inputs = [self.read(atom) for atom in eqn.invars[1:]]
        full = [
            self.graph.expand(x, a.aval.shape) if isinstance(x, Tensor) and not x.first and i == 0 else x
            for i, (x, a) in enumerate(zip(inputs, eqn.invars[1:], strict=True))
        ]
        return self.layers[type(call.module)](self.graph, call, full, eqn.outvars[0].aval.shape)


def _callee_name(eqn: Any) -> str:
    """The name of the function that the equation calls, "?" if it has none, "" if it calls nothing."""
    if not any(key in eqn.params for key in ("jaxpr", "call_jaxpr")) or eqn.primitive.name == "scan":
        return ""
    return str(eqn.params.get("name") or "?")


def _callee(eqn: Any) -> Any:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return getattr(inner, "jaxpr", inner)


def _constants(eqn: Any) -> list[np.ndarray]:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return [np.asarray(c) for c in getattr(inner, "consts", ())]


def _fold(eqn: Any, inputs: Sequence[Any]) -> list[Value]:
    results = eqn.primitive.bind(*map(jax.numpy.asarray, inputs), **eqn.params)
    return [np.asarray(r) for r in (results if eqn.primitive.multiple_results else [results])]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the outputs need, without what only computes the (unused) results of marked layers."""
    wanted = {var for var in jaxpr.outvars if not hasattr(var, "val")}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.isdisjoint(eqn.outvars):
            continue
        kept.append(eqn)
        inputs = eqn.invars[1:] if _callee_name(eqn).startswith(MARK) else eqn.invars
        wanted.update(var for var in inputs if not hasattr(var, "val"))
    return kept[::-1]
