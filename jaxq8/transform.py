"""`quantize` turns a function into the same function in eight bits; `explain` says what that does to each operation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config, matches
from jaxq8.errors import ArgumentError, SpecError
from jaxq8.evaluation.calls import differentiable, evaluate_in_parts
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.plan import Plan, Recorder

Result = TypeVar("Result")


# The types of the arguments are not kept: a QTensor may stand where `fn` wants an array.
def quantize(
    fn: Callable[..., Result], config: Config | None = None, *, ranges: Mapping[str, Range] | None = None
) -> Callable[..., Result]:
    """Returns `fn` with its contractions and table look-ups in eight-bit integers, accumulated in int32.

    The result has the signature of `fn`. It composes with JAX's other transformations, both those applied to it and those used
    inside `fn`. Its derivatives are those of the same arithmetic in float with the straight-through estimator for rounding;
    custom derivatives inside `fn` are kept. A range that is found in the run covers what one call sees: under `jax.vmap` each
    example separately, inside `jax.shard_map` the part of each device, but the whole array where the arguments are sharded
    under `jax.jit`.

    Every leaf of the arguments may be a `QTensor`: weights from `quantize_weights`, or data that are eight bits wide already
    (`QTensor.from_uint8`). Python numbers, booleans, strings and other objects among the arguments stay static.

    Args:
      fn: Any function that JAX can trace: ``model.apply``, or plain JAX. The first argument, if it is a container, holds the
        weights; arrays that `fn` closes over are weights too.
      config: What to quantize and how; default `Config()`.
      ranges: Static ranges by site name; every other site finds its range in each run.

    Returns:
      A function of the same arguments. Its float results have the same dtypes as those of `fn`. If nothing in `fn` can be
      quantized, the results are those of `fn`, bit for bit.

    Raises:
      SpecError: `config` is not a `Config`.
      ArgumentError: `fn` is not a function, or (when called) an argument cannot be traced.
      RangesError: (when called) `ranges` names sites that `fn` does not have.

    Example:
      >>> fast = jax.jit(q8.quantize(model.apply))
      >>> fast(variables, images).shape
      (4, 10)
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
    """Configuration and ranges of a function that `quantize` returned, also if it was compiled or wrapped; else None."""
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
    """Describes what `quantize(fn, config, ranges=ranges)` does with these arguments, without computing anything.

    Args:
      fn: The function as it is given to `quantize` (not quantized yet).
      *args: Its arguments: arrays, QTensors or `jax.ShapeDtypeStruct`.
      config: As for `quantize`.
      ranges: As for `quantize`.
      **kwargs: Its keyword arguments.

    Returns:
      A `Plan`; print it, or read its `sites`.

    Raises:
      SpecError: `config` is not a `Config`.
      ArgumentError: `fn` is not a function, or an argument cannot be traced.
      RangesError: `ranges` names sites that `fn` does not have.

    Example:
      >>> print(q8.explain(model.apply, variables, images))
      100.0% of 0.1 million multiply-adds in eight bits (2 of 2 contractions)
      ...
    """
    config = checked_config(fn, config)
    call = Call.trace(fn, args, kwargs)
    recorder = Recorder()
    given = ranges if isinstance(ranges, Ranges) else Ranges(ranges)
    jax.eval_shape(
        lambda leaves: evaluate_in_parts(call.replaced(leaves), fn, config, given, recorder),
        call.arguments.given,
    )
    plan = recorder.plan()
    unused = []
    for pattern, _ in config.overrides:
        if not any(matches(pattern, site.name, site.op) for site in plan.sites):
            unused.append(pattern)
    return dataclasses.replace(plan, unused_overrides=tuple(unused))


def checked_config(fn: Any, config: Config | None) -> Config:
    """The configuration, `Config()` if it is None.

    Raises:
      ArgumentError: `fn` is not a function.
      SpecError: `config` is not a `Config`.
    """
    if not callable(fn):
        raise ArgumentError(
            f"quantize expects a function, got {type(fn).__name__}; for a Flax model pass model.apply"
        )
    if config is not None and not isinstance(config, Config):
        raise SpecError(f"config must be a q8.Config, got {type(config).__name__}")
    return config or Config()
