"""Training of the steps of weights and of the ranges of activations, for `quantize` under `jax.grad`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.errors import SpecError
from jaxq8.numerics.qtensor import QTensor, is_concrete, is_qtensor
from jaxq8.numerics.ranges import LearnedRange, Range, Ranges
from jaxq8.numerics.rounding import straight_through
from jaxq8.numerics.spec import Spec


def initial_step(weight: jax.Array, spec: Spec, axis: tuple[int, ...] = ()) -> jax.Array:
    """The step to start training from: ``2 mean|w| / sqrt(qmax)`` (Esser et al. 2020, section 2.1).

    Args:
      weight: Float array.
      spec: Symmetric representation.
      axis: Axes that keep steps of their own.

    Returns:
      Positive float32 of the rank of `weight`, with size 1 on all other axes.

    Example:
      >>> kernel = variables["params"]["Dense_0"]["kernel"]  # float32 (256, 128)
      >>> q8.initial_step(kernel, q8.Spec(bits=3, symmetric=True), axis=(1,)).shape
      (1, 128)
    """
    others = tuple(a for a in range(weight.ndim) if a not in axis)
    mean = jnp.mean(jnp.abs(weight), axis=others, keepdims=True).astype(jnp.float32)
    return jnp.maximum(2 * mean / np.sqrt(spec.qmax), jnp.finfo(jnp.float32).tiny * 4)


def learned_step(weight: jax.Array, step: jax.Array, spec: Spec) -> QTensor:
    """A weight as codes of a learned step (LSQ, Esser et al. 2020), differentiable in the weight and in the step.

    The result stands for ``step * clip(round(weight / step), qmin, qmax)`` and is passed to the quantized function in place of
    the weight. Rounding uses the straight-through estimator, so the derivative with respect to the step is the paper's
    equation 3: ``round(w / s) - w / s`` inside the range, and qmin or qmax beyond it. It is scaled by ``1 / sqrt(n qmax)`` for
    the n weights that share the step (section 2.2).

    Args:
      weight: Float array.
      step: Positive float32 of the rank of `weight`, with size 1 on the axes that share a step.
      spec: A symmetric `Spec`, 2 to 8 bits.

    Returns:
      A QTensor with codes in float32; `integer_codes` makes integers of them after training.

    Raises:
      SpecError: `spec` is not symmetric.

    Example:
      >>> spec = q8.Spec(bits=4, symmetric=True)
      >>> kernel = variables["params"]["Dense_0"]["kernel"]
      >>> simulated = q8.quantize(lambda kernel, x: x @ kernel, q8.Config(kernels="simulate"))
      >>> def loss(params, x):
      ...     return (simulated(q8.learned_step(params["kernel"], params["step"], spec), x) ** 2).mean()
      >>> params = {"kernel": kernel, "step": q8.initial_step(kernel, spec)}
      >>> slopes = jax.jit(jax.grad(loss))(params, images.reshape(4, -1))
      >>> slopes["kernel"].shape, slopes["step"].shape
      ((256, 128), (1, 1))
    """
    if not spec.is_symmetric or not spec.is_signed:
        raise SpecError(f"learned_step: needs a signed symmetric Spec, got {spec}; pass Spec(symmetric=True)")
    sharing = weight.size / step.size
    slower = 1 / np.sqrt(sharing * spec.qmax)
    step = step * slower + jax.lax.stop_gradient(step * (1 - slower))
    steps = jnp.clip(weight / step, spec.qmin, spec.qmax)
    codes = straight_through(steps, jnp.round(steps))
    zero = jnp.zeros(step.shape, jnp.int32)
    return QTensor(codes, step, zero, spec.bits, True, np.dtype(weight.dtype))


def initial_ranges(ranges: Mapping[str, Range]) -> dict[str, jax.Array]:
    """Calibrated ranges as parameters to train: site name -> float32 (2,), which holds minimum and maximum.

    Example:
      >>> ends = q8.initial_ranges(ranges)
      >>> ends["params/Dense_0/kernel:dot"].shape
      (2,)
    """
    return {name: jnp.array(list(r), jnp.float32) for name, r in ranges.items()}


def learned_ranges(ends: Mapping[str, jax.Array]) -> Ranges:
    """Ranges of activations that are trained, for ``quantize(..., ranges=...)``.

    Inside `jax.grad` (or `jax.jit`), with ``Config(kernels="simulate")``, the ends have derivatives. Those of the rounding
    errors change the step (LSQ, Esser et al. 2020), and those of clipped values change the end that clips them (PACT, Choi et
    al. 2018). From plain numbers, after training, the result is like that of `calibrate`, for integer kernels and files.

    Args:
      ends: Site name -> (minimum, maximum), as from `initial_ranges`.

    Returns:
      `Ranges`, to be given to `quantize(..., ranges=...)`.

    Raises:
      RangesError: (for plain numbers) A minimum exceeds its maximum, or an end is not finite.

    Example:
      >>> simulate = q8.Config(kernels="simulate")
      >>> def loss(ends, images, labels):
      ...     fast = q8.quantize(model.apply, simulate, ranges=q8.learned_ranges(ends))
      ...     logits = jax.nn.log_softmax(fast(variables, images))
      ...     return -jnp.take_along_axis(logits, labels[:, None], 1).mean()
      >>> slopes = jax.jit(jax.grad(loss))(q8.initial_ranges(ranges), images, labels)
      >>> slopes["params/Dense_0/kernel:dot"].shape
      (2,)
    """
    entries: dict[str, Any] = {}
    for name, pair in ends.items():
        if is_concrete(pair):
            entries[name] = (float(pair[0]), float(pair[1]))
        else:
            entries[name] = LearnedRange(pair[0], pair[1])
    return Ranges(entries)


def integer_codes(variables: Any) -> Any:
    """Turns simulated codes, which are float32, into integers again, for files and integer kernels.

    Args:
      variables: Any tree; leaves that are not simulated QTensors stay as they are.

    Returns:
      The tree with integer codes in its QTensors.

    Example:
      >>> spec = q8.Spec(bits=4, symmetric=True)
      >>> kernel = variables["params"]["Dense_0"]["kernel"]
      >>> trained = {"kernel": q8.learned_step(kernel, q8.initial_step(kernel, spec), spec)}
      >>> trained["kernel"].values.dtype, q8.integer_codes(trained)["kernel"].values.dtype
      (dtype('float32'), dtype('int8'))
    """
    return jax.tree.map(_integer, variables, is_leaf=is_qtensor)


def _integer(q: Any) -> Any:
    if not isinstance(q, QTensor) or not jnp.issubdtype(q.values.dtype, jnp.floating):
        return q
    return dataclasses.replace(q, values=jnp.round(q.values).astype(q.spec.storage))
