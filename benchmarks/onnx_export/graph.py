"""An ONNX graph under construction, and its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17  # the first with LayerNormalization, and one that all of ONNX Runtime's quantization tools know
IR_VERSION = 10  # onnx writes its newest by default, which runtimes learn to read later


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of the graph.

    Attributes:
        name: in the graph.
        shape: in JAX's order of dimensions; an axis that is only broadcast has size 1.
        first: the graph holds it as (batch, channels, ...) where JAX has (batch, ..., channels).
    """

    name: str
    shape: tuple[int, ...]
    first: bool = False


Value = Tensor | np.ndarray


def channels_first(shape: Sequence[Any]) -> tuple[Any, ...]:
    """(batch, ..., channels) to (batch, channels, ...)."""
    return (shape[0], shape[-1], *shape[1:-1])


class Graph:
    """Nodes and initializers; every method that adds a node returns its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.count = 0

    def name(self, hint: str) -> str:
        """A name that nothing else in the graph has."""
        self.count += 1
        return f"{hint}_{self.count}"

    def constant(self, array: Any, hint: str = "constant") -> str:
        """The name of an initializer."""
        name = self.name(hint)
        self.initializers[name] = np.ascontiguousarray(array)
        return name

    def add(self, op: str, inputs: Sequence[str], hint: str = "", domain: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        output = self.name(hint or op)
        node = helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def operand(self, value: Value) -> str:
        """The name of a tensor in JAX's order, or of a constant; scalars stay scalars."""
        if isinstance(value, np.ndarray):
            return self.constant(value)
        return self.last(value).name

    def last(self, tensor: Tensor) -> Tensor:
        """The tensor in JAX's order of dimensions."""
        if not tensor.first:
            return tensor
        rank = len(tensor.shape)
        name = self.add("Transpose", [tensor.name], perm=[0, *range(2, rank), 1])
        return Tensor(name, tensor.shape)

    def first(self, value: Value) -> Tensor:
        """The tensor with its channels first."""
        if isinstance(value, np.ndarray):
            return Tensor(self.constant(np.moveaxis(value, -1, 1)), value.shape, first=True)
        if value.first:
            return value
        rank = len(value.shape)
        if all(n == 1 for n in value.shape[1:-1]):  # the same numbers in the same order
            target = self.constant(np.asarray(channels_first(value.shape), np.int64), "shape")
            return Tensor(self.add("Reshape", [value.name, target]), value.shape, first=True)
        name = self.add("Transpose", [value.name], perm=[0, rank - 1, *range(1, rank - 1)])
        return Tensor(name, value.shape, first=True)

    def reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor with another shape of as many elements, both in JAX's order."""
        if tensor.shape == tuple(shape):
            return tensor
        target = self.constant(np.asarray(shape, np.int64), "shape")
        return Tensor(self.add("Reshape", [self.last(tensor).name, target]), tuple(shape))

    def expand(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor with its axes of size 1 repeated up to `shape`."""
        if tensor.shape == tuple(shape):
            return tensor
        target = self.constant(np.asarray(shape, np.int64), "shape")
        return Tensor(self.add("Expand", [self.last(tensor).name, target]), tuple(shape))

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> Any:
        """The finished, checked `onnx.ModelProto`, without nodes that no output needs."""
        nodes = _needed(self.nodes, {output.name for output in outputs})
        used = {name for node in nodes for name in node.input}
        weights = [numpy_helper.from_array(a, n) for n, a in self.initializers.items() if n in used]
        graph = helper.make_graph(nodes, "jax", list(inputs), list(outputs), weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted = wanted.union(node.input)
    return kept[::-1]
