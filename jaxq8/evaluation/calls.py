"""A traced call evaluated: whole, in blocks of examples, or as a function that has a derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8.analysis.arguments import as_array
from jaxq8.analysis.sites import Analysis
from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.evaluation import rules
from jaxq8.evaluation.batch_blocks import in_blocks
from jaxq8.evaluation.interpreter import Run, evaluate
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Array, Value, to_real
from jaxq8.evaluation.weight_encoding import encode_leaves
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder

assert rules  # importing them is what registers them


def evaluate_call(
    call: Call, leaves: Sequence[Any], config: Config, ranges: Ranges, recorder: Recorder, probe: Probe | None = None,
    exact: Callable[[str], Any] | None = None, repeats: int = 1,
) -> list[Any]:  # fmt: skip
    """The results, flat, as arrays; for `probe` and `exact` see `Run`."""
    analysis = call.analyse(config)
    ranges.check_sites(_range_names(analysis))
    run = Run(config, ranges, analysis, recorder, repeats=repeats, probe=probe or Probe(), exact=exact)
    inputs = [*call.consts, *leaves]
    encoded = inputs if exact else encode_leaves(inputs, analysis, config, len(call.consts))
    data = [*(False for _ in call.consts), *(not weight for weight in call.arguments.weights)]
    values = [_value(x, i >= len(call.consts), data[i]) for i, x in enumerate(encoded)]
    outputs = evaluate(call.as_inputs, (), values, run, ())
    return [jnp.asarray(to_real(v), a.aval.dtype) for v, a in zip(outputs, call.jaxpr.outvars, strict=True)]


def evaluate_in_parts(
    call: Call, fn: Callable[..., Any], config: Config, ranges: Ranges, recorder: Recorder
) -> list[Any]:
    """`evaluate_call`; a large batch in blocks, its weights encoded once before them."""
    leaves, count = call.arguments.leaves, len(call.consts)
    size = call.block_size(config)
    if size is None:
        return evaluate_call(call, leaves, config, ranges, recorder)
    recorder.blocks = leaves[call.examples[0]].shape[0] // size
    encoded = encode_leaves([*call.consts, *leaves], call.analyse(config), config, count)[count:]

    def run(parts: list[Any]) -> list[Any]:
        args, kwargs = call.arguments.rebuild(parts)
        block = Call.trace(fn, args, kwargs)
        return evaluate_call(block, block.arguments.leaves, config, ranges, recorder, repeats=recorder.blocks)

    return in_blocks(run, encoded, call.examples, size)


def differentiable(call: Call, fn: Callable[..., Any], config: Config, ranges: Ranges) -> Any:
    """Integer arithmetic in value; in derivative the simulation of the same codes in float (straight-through)."""
    leaves = tuple(as_array(leaf) for leaf in call.arguments.leaves)
    # JAX keeps these functions in its caches: what they close over must not hold this trace's arguments.
    abstract = call.replaced([jax.tree.map(_shape_of, leaf) for leaf in leaves])

    @jax.custom_jvp
    def forward(leaves: Any) -> list[Any]:
        return evaluate_in_parts(abstract.replaced(leaves), fn, config, ranges, Recorder())

    @forward.defjvp
    def forward_jvp(primals: Any, tangents: Any) -> Any:
        simulated = config.simulated()
        _, out = jax.jvp(
            lambda x: evaluate_call(abstract, x, simulated, ranges, Recorder()), primals, tangents
        )
        return forward(*primals), out

    smooth = config == config.simulated() or (config.mode == "off" and not config.overrides)
    results = evaluate_call(call, leaves, config, ranges, Recorder()) if smooth else forward(leaves)
    return jax.tree_util.tree_unflatten(call.out_tree, results)


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
