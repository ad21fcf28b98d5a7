"""The contenders that are JAX functions: XLA's float32 and jaxq8's forms of the same function."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxq8 as q8
from benchmarks.contenders.base import Prepared
from benchmarks.models import Model


def compiled(
    fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...], options: Any = None
) -> Prepared:
    """`jit(fn)` compiled for these arguments; the weights are arguments, on the device before the timing."""
    arguments = jax.device_put((variables, *inputs))
    start = time.perf_counter()
    program = jax.jit(fn).lower(*arguments).compile(compiler_options=options)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return Prepared(
        run=lambda: jax.block_until_ready(program(*arguments)),
        outputs=lambda: [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(program(*arguments))],
        weight_bytes=sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(arguments[0])),
        compile_seconds=seconds,
        temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
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
    weights = q8.quantize_weights(model.apply, model.variables, *model.inputs)
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


def _static(model: Model, config: q8.Config, options: Any) -> Prepared:
    batches = [batch if len(batch) > 1 else batch[0] for batch in model.calibration]
    ranges = q8.calibrate(model.apply, model.variables, batches, config=config)
    weights = q8.quantize_weights(model.apply, model.variables, *model.inputs, config=config)
    fn = q8.quantize(model.apply, config, ranges=ranges)
    return compiled(fn, weights, model.inputs, options)
