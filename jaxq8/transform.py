"""`quantize`: a function in, the same function in eight bits out; and `explain`, which records what that means."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config, matches
from jaxq8.errors import ArgumentError, SpecError
from jaxq8.evaluation.calls import differentiable, evaluate_in_parts
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.plan import Plan, Recorder


def quantize(
    fn: Callable[..., Any], config: Config | None = None, *, ranges: Mapping[str, Range] | None = None
) -> Callable[..., Any]:
    """Returns `fn` with its heavy arithmetic in eight-bit integers, accumulated in int32.

    The result has the signature of `fn` and composes with JAX's other transformations, around it and inside `fn`. Its
    derivatives are those of the same arithmetic in float with straight-through rounding; custom derivatives inside `fn` are
    kept. Ranges that are found in the run are found over what one call sees: under `jax.vmap` in each example for itself,
    inside `jax.shard_map` in each device's part, but with sharded arguments under `jax.jit` over the whole array.

    Every argument leaf may be a `QTensor`: weights from `quantize_weights`, or data that is eight-bit
    already (`QTensor.from_uint8`). Python numbers, booleans, strings and other objects among the arguments stay static.

    Args:
      fn: Any function that JAX can trace: ``model.apply``, or plain JAX. The first argument, if it is a container, holds the
        weights; arrays that `fn` closes over are weights too.
      config: What to quantize and how; default `Config()`.
      ranges: Static ranges by site name; sites that it does not name find their range in each run.

    Returns:
      A function of the same arguments. Float results have the dtypes of `fn`; one with nothing to quantize returns what `fn`
      returns, bit for bit.

    Raises:
      SpecError: `config` is not a `Config`.
      ArgumentError: (when called) an argument cannot be traced.
      RangesError: (when called) `ranges` names sites that `fn` does not have.

    Example:
      >>> fast = jax.jit(q8.quantize(model.apply))
      >>> logits = fast(variables, images)
    """
    config = checked_config(fn, config)
    given = ranges if isinstance(ranges, Ranges) else Ranges(ranges)

    @functools.wraps(fn)
    def quantized(*args: Any, **kwargs: Any) -> Any:
        call = Call.trace(fn, args, kwargs)
        if not call.analyse(config).sites and not given:
            return call.plain(fn)
        return differentiable(call, fn, config, given)

    quantized.quantization = (config, given)  # type: ignore[attr-defined]
    return quantized


def settings_of(function: Any) -> tuple[Config, Ranges] | None:
    """Configuration and ranges of what `quantize` returned, compiled or wrapped or not; None for any other function."""
    while function is not None:
        found = getattr(function, "quantization", None)
        if found is not None:
            return found
        function = getattr(function, "__wrapped__", None)
    return None


def explain(
    fn: Callable[..., Any], *args: Any, config: Config | None = None, ranges: Mapping[str, Range] | None = None,
    **kwargs: Any,
) -> Plan:  # fmt: skip
    """What `quantize(fn, config, ranges=ranges)` does with these arguments, without computing anything.

    Args:
      fn: The function as it is given to `quantize` (not quantized yet).
      *args: Its arguments: arrays, QTensors or `jax.ShapeDtypeStruct`.
      config: As for `quantize`.
      ranges: As for `quantize`.
      **kwargs: Its keyword arguments.

    Returns:
      A `Plan`; print it, or read its `sites`.

    Example:
      >>> print(q8.explain(model.apply, variables, images))
    """
    config = checked_config(fn, config)
    call = Call.trace(fn, args, kwargs)
    recorder = Recorder()
    given = ranges if isinstance(ranges, Ranges) else Ranges(ranges)
    jax.eval_shape(
        lambda leaves: evaluate_in_parts(call.replaced(leaves), fn, config, given, recorder),
        call.arguments.leaves,
    )
    plan = recorder.plan()
    unused = [
        pattern
        for pattern, _ in config.overrides
        if not any(matches(pattern, s.name, s.op) for s in plan.sites)
    ]
    return dataclasses.replace(plan, unused_overrides=tuple(unused))


def checked_config(fn: Any, config: Config | None) -> Config:
    """The configuration, default filled in; refuses what is not a function or not a configuration."""
    if not callable(fn):
        raise ArgumentError(
            f"quantize expects a function, got {type(fn).__name__}; for a Flax model pass model.apply"
        )
    if config is not None and not isinstance(config, Config):
        raise SpecError(f"config must be a q8.Config, got {type(config).__name__}")
    return config or Config()
