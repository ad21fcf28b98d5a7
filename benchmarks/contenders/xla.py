"""The contenders that are JAX functions: XLA's float32 and jaxq8's forms of the same function."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxq8 as q8
from benchmarks.contenders.base import Prepared, UnavailableError
from benchmarks.models import Model
from benchmarks.regions import count


def compiled(
    fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...], options: Any = None
) -> Prepared:
    """`jit(fn)` compiled for these arguments; the weights are arguments, on the device before the timing."""
    arguments = jax.device_put((variables, *inputs))
    start = time.perf_counter()
    traced = jax.jit(fn).trace(*arguments)
    after_tracing = time.perf_counter()
    program = traced.lower().compile(compiler_options=options)
    end = time.perf_counter()
    memory = program.memory_analysis()
    return Prepared(
        run=lambda: jax.block_until_ready(program(*arguments)),
        outputs=lambda: [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(program(*arguments))],
        weight_bytes=sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(arguments[0])),
        compile_seconds=end - start,
        temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
        lower_seconds=end - after_tracing,
    )


def prepare_float(model: Model) -> Prepared:
    """The function as it is."""
    return compiled(model.apply, model.variables, model.inputs)


def prepare_float_wide(model: Model) -> Prepared:
    """The function as it is, with the options that jaxq8 recommends for its own programs."""
    return compiled(model.apply, model.variables, model.inputs, q8.compiler_options())


def prepare_float_forms(model: Model) -> Prepared:
    """jaxq8 with nothing quantized: what its better forms alone bring."""
    fn = q8.quantize(model.apply, q8.Config(mode="off"))
    return compiled(fn, model.variables, model.inputs, q8.compiler_options())


def prepare_dynamic(model: Model) -> Prepared:
    """jaxq8 with weights quantized in advance and ranges found in each run."""
    weights = q8.quantize_weights(model.apply, model.variables, *model.inputs, correct=None)
    return compiled(q8.quantize(model.apply), weights, model.inputs, q8.compiler_options())


def prepare_static(model: Model) -> Prepared:
    """jaxq8 with ranges from the calibration batches."""
    return _static(model, q8.Config(), q8.compiler_options())


def prepare_static_attention(model: Model) -> Prepared:
    """The same, the two products of attention in eight bits too."""
    return _static(model, q8.Config(attention=True), q8.compiler_options())


def prepare_static_plain(model: Model) -> Prepared:
    """The same as `prepare_static` without options for the compiler."""
    return _static(model, q8.Config(), None)


def prepare_native(model: Model) -> Prepared:
    """The same as `prepare_static` with weights packed for native regions.

    Raises:
        UnavailableError: there are no native regions on this machine, or none in this model.
    """
    _require_native()
    weights, fn, ranges = _quantized(model, q8.Config())
    return _native(model, weights, fn, ranges)


def prepare_native_dynamic(model: Model) -> Prepared:
    """The same as `prepare_dynamic` with weights packed for native regions.

    Raises:
        UnavailableError: there are no native regions on this machine, or none in this model.
    """
    _require_native()
    weights = q8.quantize_weights(model.apply, model.variables, *model.inputs, correct=None)
    return _native(model, weights, q8.quantize(model.apply), {})


def _require_native() -> None:
    status = q8.native_status()
    if not status.available:
        raise UnavailableError(f"no native regions on this machine: {status.reason}")


def _native(model: Model, weights: Any, fn: Callable[..., Any], ranges: Any) -> Prepared:
    packed = q8.pack(model.apply, weights, *model.inputs, ranges=ranges)
    leaves = jax.tree_util.tree_leaves(packed, is_leaf=lambda x: isinstance(x, q8.PackedTensor))
    if not any(isinstance(leaf, q8.PackedTensor) for leaf in leaves):
        raise UnavailableError("pack finds no weights that a native region can read")
    regions = count(model.apply, packed, model.inputs, ranges)
    return dataclasses.replace(compiled(fn, packed, model.inputs, q8.compiler_options()), regions=regions)


def _static(model: Model, config: q8.Config, options: Any) -> Prepared:
    weights, fn, _ = _quantized(model, config)
    return compiled(fn, weights, model.inputs, options)


def _quantized(model: Model, config: q8.Config) -> tuple[Any, Callable[..., Any], Any]:
    """(weights, function, ranges) of a model with ranges from the calibration batches."""
    batches = [batch if len(batch) > 1 else batch[0] for batch in model.calibration]
    ranges = q8.calibrate(model.apply, model.variables, batches, config=config)
    weights = q8.quantize_weights(model.apply, model.variables, *model.inputs, config=config, correct=None)
    return weights, q8.quantize(model.apply, config, ranges=ranges), ranges
