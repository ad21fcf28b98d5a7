"""`quantize`: a function in, the same function in eight bits out; and `explain`, which records what that means."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8 import rules, weights
from jaxq8._compat import open_jaxpr
from jaxq8.arguments import Arguments, as_array, stand_in, take_apart, take_results_apart
from jaxq8.batching import block_size, in_blocks
from jaxq8.config import Config, matches
from jaxq8.errors import ArgumentError, SpecError
from jaxq8.interpreter import Run, evaluate
from jaxq8.plan import Plan, Recorder
from jaxq8.probes import Probe
from jaxq8.qtensor import QTensor
from jaxq8.ranges import Range, Ranges
from jaxq8.sites import Analysis, analyse
from jaxq8.values import Array, Value, to_real

assert rules  # importing them is what registers them


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
        return call.differentiable(fn, config, given)

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
        lambda leaves: call.replaced(leaves).in_parts(fn, config, given, recorder), call.arguments.leaves
    )
    plan = recorder.plan()
    unused = [
        pattern
        for pattern, _ in config.overrides
        if not any(matches(pattern, s.name, s.op) for s in plan.sites)
    ]
    return dataclasses.replace(plan, unused_overrides=tuple(unused))


@dataclasses.dataclass(frozen=True)
class Call:
    """One traced call: the jaxpr of the function, its constants made inputs, and its arguments taken apart."""

    arguments: Arguments
    jaxpr: Any
    consts: tuple[Any, ...]
    out_tree: Any
    _analyses: dict[Config, Analysis] = dataclasses.field(default_factory=dict, init=False, compare=False)

    @classmethod
    def trace(cls, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Traces `fn` on the float arrays that the arguments stand for."""
        arguments = take_apart(args, kwargs)
        rebuild, trees = arguments.rebuild, []

        def flat(*leaves: Any) -> list[Any]:
            new_args, new_kwargs = rebuild(leaves)
            results, tree = take_results_apart(fn(*new_args, **new_kwargs))
            trees.append(tree)
            return results

        closed = jax.make_jaxpr(flat)(*map(stand_in, arguments.leaves))
        jaxpr, consts = open_jaxpr(closed)
        return cls(arguments, jaxpr, tuple(consts), trees[-1])

    def analyse(self, config: Config) -> Analysis:
        """Sites and weights of the traced function; constants that reach a contraction are weights."""
        if config not in self._analyses:
            self._analyses[config] = self._analyse(config)
        return self._analyses[config]

    def _analyse(self, config: Config) -> Analysis:
        names = [p if w else None for p, w in zip(self.arguments.paths, self.arguments.weights, strict=True)]
        consts = [f"constant/{i}" if np.ndim(c) > 0 else None for i, c in enumerate(self.consts)]

        def accepts(name: str, op: str) -> bool:
            return config.for_site(name, op).mode in ("eightbit", "simulate")

        return analyse(self.as_inputs, [*consts, *names], accepts)

    def plain(self, fn: Callable[..., Any]) -> Any:
        """The function itself, for one that has no site: nothing is evaluated in another way than the user wrote it."""
        leaves = [x.dequantize() if isinstance(x, QTensor) else x for x in self.arguments.leaves]
        args, kwargs = self.arguments.rebuild(leaves)
        return fn(*args, **kwargs)

    @property
    def as_inputs(self) -> Any:
        """The jaxpr with its constants as first inputs, so that weights are found among them in the same way."""
        return _InputsJaxpr(self.jaxpr)

    def evaluate(
        self, leaves: Sequence[Any], config: Config, ranges: Ranges, recorder: Recorder, probe: Probe | None = None,
        exact: Callable[[str], Any] | None = None, repeats: int = 1,
    ) -> list[Any]:  # fmt: skip
        """The results, flat, as arrays; for `probe` and `exact` see `Run`."""
        analysis = self.analyse(config)
        ranges.check_sites(_range_names(analysis))
        run = Run(config, ranges, analysis, recorder, repeats=repeats, probe=probe or Probe(), exact=exact)
        inputs = [*self.consts, *leaves]
        encoded = inputs if exact else weights.encode_leaves(inputs, analysis, config, len(self.consts))
        data = [*(False for _ in self.consts), *(not weight for weight in self.arguments.weights)]
        values = [_value(x, i >= len(self.consts), data[i]) for i, x in enumerate(encoded)]
        outputs = evaluate(self.as_inputs, (), values, run, ())
        return [
            jnp.asarray(to_real(v), a.aval.dtype) for v, a in zip(outputs, self.jaxpr.outvars, strict=True)
        ]

    @property
    def examples(self) -> list[int]:
        """Positions of the argument leaves that hold data rather than weights."""
        arguments = self.arguments
        data = [
            i for i, weight in enumerate(arguments.weights) if not weight and np.ndim(arguments.leaves[i]) > 0
        ]
        return data if any(arguments.weights) else []

    def block_size(self, config: Config) -> int | None:
        """How many examples run at a time; None for all of them."""
        if not config.batch_blocks or config.mode != "eightbit":
            return None
        return block_size(self.as_inputs, [len(self.consts) + i for i in self.examples])

    def replaced(self, leaves: Sequence[Any]) -> Call:
        """The same call with other leaves."""
        return dataclasses.replace(self, arguments=dataclasses.replace(self.arguments, leaves=tuple(leaves)))

    def in_parts(
        self, fn: Callable[..., Any], config: Config, ranges: Ranges, recorder: Recorder
    ) -> list[Any]:
        """`evaluate`; a large batch in blocks, its weights encoded once before them."""
        leaves, count = self.arguments.leaves, len(self.consts)
        size = self.block_size(config)
        if size is None:
            return self.evaluate(leaves, config, ranges, recorder)
        recorder.blocks = leaves[self.examples[0]].shape[0] // size
        encoded = weights.encode_leaves([*self.consts, *leaves], self.analyse(config), config, count)[count:]

        def run(parts: list[Any]) -> list[Any]:
            args, kwargs = self.arguments.rebuild(parts)
            block = Call.trace(fn, args, kwargs)
            return block.evaluate(block.arguments.leaves, config, ranges, recorder, repeats=recorder.blocks)

        return in_blocks(run, encoded, self.examples, size)

    def differentiable(self, fn: Callable[..., Any], config: Config, ranges: Ranges) -> Any:
        """Integer arithmetic in value; in derivative the simulation of the same codes in float (straight-through)."""
        leaves = tuple(as_array(leaf) for leaf in self.arguments.leaves)
        # JAX keeps these functions in its caches: what they close over must not hold this trace's arguments.
        call = self.replaced([jax.tree.map(_shape_of, leaf) for leaf in leaves])

        @jax.custom_jvp
        def forward(leaves: Any) -> list[Any]:
            return call.replaced(leaves).in_parts(fn, config, ranges, Recorder())

        @forward.defjvp
        def forward_jvp(primals: Any, tangents: Any) -> Any:
            simulated = config.simulated()
            _, out = jax.jvp(lambda x: call.evaluate(x, simulated, ranges, Recorder()), primals, tangents)
            return forward(*primals), out

        smooth = config == config.simulated() or (config.mode == "off" and not config.overrides)
        results = self.evaluate(leaves, config, ranges, Recorder()) if smooth else forward(leaves)
        return jax.tree_util.tree_unflatten(self.out_tree, results)


class _InputsJaxpr:
    """A view of a jaxpr in which constants are inputs."""

    def __init__(self, jaxpr: Any):
        self.constvars: tuple[Any, ...] = ()
        self.invars = (*jaxpr.constvars, *jaxpr.invars)
        self.eqns, self.outvars = jaxpr.eqns, jaxpr.outvars


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _value(x: Any, argument: bool, data: bool) -> Value:
    """What an input is for the evaluator; `data` may hold NaN, weights were looked at where that is possible."""
    if (
        isinstance(x, QTensor) and x.is_grouped
    ):  # no rule moves such scales: decoded once, where the function begins
        return Array(x.dequantize(), origins=())
    return x if isinstance(x, QTensor) else Array(x, argument=argument, origins=None if data else ())


def _range_names(analysis: Analysis) -> set[str]:
    names = {site.name for site in analysis.sites.values()}
    return names | {f"{name}.rhs" for name in names}


def checked_config(fn: Any, config: Config | None) -> Config:
    """The configuration, default filled in; refuses what is not a function or not a configuration."""
    if not callable(fn):
        raise ArgumentError(
            f"quantize expects a function, got {type(fn).__name__}; for a Flax model pass model.apply"
        )
    if config is not None and not isinstance(config, Config):
        raise SpecError(f"config must be a q8.Config, got {type(config).__name__}")
    return config or Config()
