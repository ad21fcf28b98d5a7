"""ONNX Runtime on the CPU: float32, dynamic and static int8 (uint8 activations, int8 weights per channel).

The settings are those that were best among the ones tried, in time and error together: pre-processed graphs (batch norm
folded into convolutions) for convolutional nets; for the others the raw graph, on which the session makes its own
fusions (pre-processing turns products of rank 3 into Gemm with reshapes, and took longer); in static graphs only
the products with weights are quantized where there are no convolutions (quantizing softmax and layer norm too has
four times the error and is slower).
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.contenders.base import Prepared, UnavailableError
from benchmarks.models import Model

Step = Callable[[Path, Path, Model], None]
WITH_WEIGHTS = ("MatMul", "Gemm", "Gather")


def prepare_float(model: Model) -> Prepared:
    """Float32, attention as ONNX Runtime's own node."""
    return _prepare(model, None, fused=True)


def prepare_dynamic(model: Model) -> Prepared:
    """Ranges in each run. Attention as separate nodes: as one node it has over four times the error."""
    return _prepare(model, _dynamic, fused=False)


def prepare_dynamic_fused(model: Model) -> Prepared:
    """The same with attention as one node: about a tenth faster, at that error."""
    return _prepare(model, _dynamic, fused=True)


def prepare_static(model: Model) -> Prepared:
    """Ranges from the calibration batches."""
    return _prepare(model, _static, fused=False)


def _prepare(model: Model, quantize: Step | None, fused: bool) -> Prepared:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UnavailableError(
            f"ONNX Runtime is not installed: pip install onnx onnxruntime ({error})"
        ) from error
    from benchmarks.onnx_export import UnsupportedModelError, export

    onnxruntime.set_default_logger_severity(3)
    try:
        graph = export(model.module, model.variables, model.inputs, fused=fused)
    except UnsupportedModelError as error:
        raise UnavailableError(str(error)) from error
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "float.onnx"
        onnx.save(graph, path)
        if quantize is not None:
            path, source = Path(folder) / "eight_bit.onnx", path
            quantize(_pre_processed(source), path, model)
        return _session(path, model)


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantizer warns through the root logger about every graph that is not pre-processed."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _pre_processed(path: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_name("ready.onnx")
    quant_pre_process(path, ready, skip_symbolic_shape=True, skip_optimization=not _has(path, "Conv"))
    return ready


def _has(path: Path, op: str) -> bool:
    import onnx

    return any(node.op_type == op for node in onnx.load(path).graph.node)


def _dynamic(source: Path, target: Path, model: Model) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def _static(source: Path, target: Path, model: Model) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([feeds(inputs) for inputs in model.calibration])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    convolutional = _has(source, "Conv")
    quantize_static(
        source,
        target,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=None if convolutional else list(WITH_WEIGHTS),
        nodes_to_exclude=None if convolutional else _products_of_activations(source),
    )


def _products_of_activations(path: Path) -> list[str]:
    import onnx

    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]


def feeds(inputs: Any) -> dict[str, np.ndarray]:
    """The inputs under the names that the exporter gives them, images channels first."""
    arrays = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(inputs)]
    ordered = [a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in arrays]
    return {f"input_{i}": np.ascontiguousarray(a) for i, a in enumerate(ordered)}


def _session(path: Path, model: Model) -> Prepared:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    binding = session.io_binding()
    known = {node.name for node in session.get_inputs()}
    for name, array in feeds(model.inputs).items():
        if name in known:
            binding.bind_cpu_input(name, array)
    for node in session.get_outputs():
        binding.bind_output(node.name)
    run = lambda: session.run_with_iobinding(binding)  # noqa: E731

    def outputs() -> list[np.ndarray]:
        run()
        return [np.array(array) for array in binding.copy_outputs_to_cpu()]

    return Prepared(run, outputs, path.stat().st_size, seconds)
