"""Flax Linen models as clean ONNX graphs: whole layers, channels first, weights as initializers."""

from benchmarks.onnx_export.convert import UnsupportedModelError, export

__all__ = ["UnsupportedModelError", "export"]
