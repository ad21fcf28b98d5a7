"""ONNX nodes for whole Flax layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax import lax

from benchmarks.onnx_export.graph import Graph, Tensor, Value
from benchmarks.onnx_export.record import LayerCall


class UnsupportedLayerError(ValueError):
    """A layer has a setting that this exporter does not know."""


Layer = Callable[[Graph, LayerCall, Sequence[Value], tuple[int, ...]], Tensor]
MASKED = np.float32(np.finfo(np.float32).min)


def _params(call: LayerCall, collection: str = "params") -> dict[str, Any]:
    return {name: np.asarray(leaf) for name, leaf in call.variables.get(collection, {}).items()}


def explicit_padding(
    padding: Any, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Flax's padding as ONNX writes it: all starts, then all ends; `kernel` is the dilated one."""
    if isinstance(padding, int):
        padding = [padding] * len(size)
    if not isinstance(padding, str):
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    else:
        pairs = lax.padtype_to_pads(size, kernel, strides, padding)
    return [int(p[0]) for p in pairs] + [int(p[1]) for p in pairs]


def _per_axis(value: Any, rank: int) -> list[int]:
    return [1 if value is None else value] * rank if value is None or isinstance(value, int) else list(value)


def convolution(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """`nn.Conv`: kernel (..., in, out) to (out, in, ...)."""
    layer: Any = call.module
    params = _params(call)
    x = graph.first(inputs[0])
    kernel = params["kernel"]
    rank = kernel.ndim - 2
    strides, dilations = _per_axis(layer.strides, rank), _per_axis(layer.kernel_dilation, rank)
    dilated = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilations, strict=False)]
    names = [x.name, graph.constant(np.moveaxis(kernel, (-1, -2), (0, 1)), "kernel")]
    if "bias" in params:
        names.append(graph.constant(params["bias"], "bias"))
    output = graph.add(
        "Conv",
        names,
        strides=strides,
        dilations=dilations,
        group=layer.feature_group_count,
        kernel_shape=list(kernel.shape[:rank]),
        pads=explicit_padding(layer.padding, x.shape[1:-1], dilated, strides),
    )
    return Tensor(output, shape, first=True)


def transposed_convolution(
    graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]
) -> Tensor:
    """`nn.ConvTranspose` with padding SAME: kernel (..., in, out), which Flax does not flip, to (in, out, ...), flipped."""
    layer: Any = call.module
    params = _params(call)
    kernel = params["kernel"]
    rank = kernel.ndim - 2
    if layer.padding != "SAME" or layer.transpose_kernel or layer.kernel_dilation not in (None, 1):
        raise UnsupportedLayerError(
            "nn.ConvTranspose has an ONNX form here only with padding SAME, undilated"
        )
    x, strides = graph.first(inputs[0]), _per_axis(layer.strides, rank)
    low, high, more = [], [], []
    for size, stride in zip(kernel.shape, strides, strict=False):
        # Flax pads the dilated image; ONNX says how much of the full result is cut off.
        before = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
        after = size + stride - 2 - before
        low.append(size - 1 - before)
        high.append(max(0, size - 1 - after))
        more.append(max(0, after - size + 1))
    flipped = np.flip(kernel, tuple(range(rank)))
    names = [x.name, graph.constant(np.moveaxis(flipped, (-2, -1), (0, 1)), "kernel")]
    if "bias" in params:
        names.append(graph.constant(params["bias"], "bias"))
    output = graph.add(
        "ConvTranspose", names, strides=strides, kernel_shape=list(kernel.shape[:rank]), pads=[*low, *high],
        output_padding=more,
    )  # fmt: skip
    return Tensor(output, shape, first=True)


def batch_norm(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """`nn.BatchNorm` in inference mode over the last axis; ONNX Runtime folds it into the convolution."""
    layer: Any = call.module
    params, stats = _params(call), _params(call, "batch_stats")
    x = graph.first(inputs[0])
    ones = np.ones_like(stats["mean"])
    arrays = [params.get("scale", ones), params.get("bias", 0 * ones), stats["mean"], stats["var"]]
    names = [x.name, *(graph.constant(a, "norm") for a in arrays)]
    return Tensor(graph.add("BatchNormalization", names, epsilon=layer.epsilon), shape, first=True)


def layer_norm(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """`nn.LayerNorm` over the last axis."""
    layer: Any = call.module
    params = _params(call)
    names = [graph.operand(inputs[0]), *(graph.constant(params[n], n) for n in ("scale", "bias"))]
    return Tensor(graph.add("LayerNormalization", names, axis=-1, epsilon=layer.epsilon), shape)


def dense(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """`nn.Dense`: Gemm for a matrix, else MatMul and Add."""
    params = _params(call)
    return Tensor(_affine(graph, graph.operand(inputs[0]), params, len(shape)), shape)


def _affine(graph: Graph, x: str, params: dict[str, np.ndarray], rank: int) -> str:
    kernel = graph.constant(params["kernel"], "kernel")
    if "bias" not in params:
        return graph.add("MatMul", [x, kernel])
    bias = graph.constant(params["bias"], "bias")
    if rank == 2:
        return graph.add("Gemm", [x, kernel, bias])
    return graph.add("Add", [graph.add("MatMul", [x, kernel]), bias])


def embedding(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """`nn.Embed`."""
    table = graph.constant(_params(call)["embedding"], "embedding")
    return Tensor(graph.add("Gather", [table, graph.operand(inputs[0])]), shape)


def attention(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """Self attention of `nn.MultiHeadDotProductAttention` as separate nodes."""
    heads, size, parts = _projections(call)
    x, (batch, length, _) = graph.operand(inputs[0]), shape
    split = graph.constant(np.asarray([batch, length, heads, size], np.int64), "shape")

    def project(name: str, perm: list[int]) -> str:
        y = graph.add("Reshape", [_affine(graph, x, parts[name], 3), split])
        return graph.add("Transpose", [y], perm=perm)

    query, key, value = (
        project(n, p) for n, p in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    )
    scores = graph.add("Div", [graph.add("MatMul", [query, key]), graph.constant(np.float32(size**0.5))])
    if len(inputs) > 1:
        scores = graph.add("Add", [scores, _mask_bias(graph, inputs[1])])
    mixed = graph.add("MatMul", [graph.add("Softmax", [scores], axis=-1), value])
    joined = graph.constant(np.asarray([batch, length, heads * size], np.int64), "shape")
    y = graph.add("Reshape", [graph.add("Transpose", [mixed], perm=[0, 2, 1, 3]), joined])
    return Tensor(_affine(graph, y, parts["out"], 3), shape)


def fused_attention(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """The same with ONNX Runtime's own Attention node, as its optimizer for transformers would write it."""
    heads, _, parts = _projections(call)
    three = [parts[name] for name in ("query", "key", "value")]
    names = [
        graph.operand(inputs[0]),
        graph.constant(np.concatenate([p["kernel"] for p in three], axis=1), "kernel"),
        graph.constant(np.concatenate([p["bias"] for p in three]), "bias"),
    ]
    if len(inputs) > 1:
        mask, (batch, length, _) = graph.last(inputs[1]), shape  # type: ignore[arg-type]
        mask = graph.expand(mask, (batch, 1, length, length))
        names += ["", "", _mask_bias(graph, mask)]
    y = graph.add("Attention", names, domain="com.microsoft", num_heads=heads)
    return Tensor(_affine(graph, y, parts["out"], 3), shape)


def _projections(call: LayerCall) -> tuple[int, int, dict[str, dict[str, np.ndarray]]]:
    """(heads, size of a head, the four projections as plain matrices and vectors)."""
    params = call.variables["params"]
    width, heads, size = params["query"]["kernel"].shape
    parts = {}
    for name in ("query", "key", "value", "out"):
        kernel = np.asarray(params[name]["kernel"])
        flat = kernel.reshape(heads * size, -1) if name == "out" else kernel.reshape(width, heads * size)
        parts[name] = {"kernel": flat, "bias": np.asarray(params[name]["bias"]).reshape(-1)}
    return heads, size, parts


def _mask_bias(graph: Graph, mask: Value) -> str:
    masked, zero = graph.constant(MASKED), graph.constant(np.float32(0))
    return graph.add("Where", [graph.operand(mask), zero, masked])


def recurrent(graph: Graph, call: LayerCall, inputs: Sequence[Value], shape: tuple[int, ...]) -> Tensor:
    """`nn.RNN` over `nn.OptimizedLSTMCell`: gates in ONNX's order (input, output, forget, cell)."""
    cell = call.variables["params"]
    order = ("i", "o", "f", "g")
    weights = np.concatenate([np.asarray(cell["i" + g]["kernel"]).T for g in order])
    states = np.concatenate([np.asarray(cell["h" + g]["kernel"]).T for g in order])
    bias = np.concatenate([np.asarray(cell["h" + g]["bias"]) for g in order])
    x = graph.add("Transpose", [graph.operand(inputs[0])], perm=[1, 0, 2])
    arrays = [weights, states, np.concatenate([0 * bias, bias])]
    names = [x, *(graph.constant(a[None], "lstm") for a in arrays)]
    y = graph.add("LSTM", names, hidden_size=shape[-1])
    y = graph.add("Squeeze", [y, graph.constant(np.asarray([1], np.int64))])
    return Tensor(graph.add("Transpose", [y], perm=[1, 0, 2]), shape)


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv: convolution,
    nn.ConvTranspose: transposed_convolution,
    nn.BatchNorm: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.Dense: dense,
    nn.Embed: embedding,
    nn.MultiHeadDotProductAttention: attention,
    nn.RNN: recurrent,
}
FUSED: dict[type[nn.Module], Layer] = {**LAYERS, nn.MultiHeadDotProductAttention: fused_attention}
