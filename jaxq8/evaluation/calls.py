"""The evaluation of a traced call: as a whole, in blocks of examples, or as a function that has a derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.arguments import as_array
from jaxq8.analysis.batch_axis import same_on_block
from jaxq8.analysis.sites import Analysis
from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.evaluation import rules
from jaxq8.evaluation.batch_blocks import in_blocks
from jaxq8.evaluation.interpreter import Run, evaluate
from jaxq8.evaluation.native_evaluation import in_native_regions, runs_natively, why_not_native
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Array, Value, to_real
from jaxq8.evaluation.weight_encoding import encode_leaves
from jaxq8.numerics.codebook import as_codes
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder

assert rules  # importing them is what registers them


def evaluate_call(
    call: Call, leaves: Sequence[Any], config: Config, ranges: Ranges, recorder: Recorder, probe: Probe | None = None,
    exact: Callable[[str], Any] | None = None, repeats: int = 1,
) -> list[Any]:  # fmt: skip
    """The results of the call as a flat list of arrays; for `probe` and `exact` see `Run`."""
    run = Run(
        config, ranges, call.analyse(config), recorder, repeats=repeats, probe=probe or Probe(), exact=exact
    )
    ranges.check_sites(_range_names(run.analysis))
    if probe is not None or exact is not None:
        return evaluate_leaves(call, call.consts, leaves, run)
    recorder.why_not_native = lambda: why_not_native(config, leaves, ranges)
    if runs_natively(config, leaves):
        inputs = (list(call.consts), list(leaves))
        return in_native_regions(lambda x: evaluate_leaves(call, x[0], x[1], run), inputs, config, recorder)
    return evaluate_leaves(call, call.consts, leaves, run)


def evaluate_leaves(call: Call, consts: Sequence[Any], leaves: Sequence[Any], run: Run) -> list[Any]:
    """The results of the call as a flat list of arrays, by rules alone."""
    inputs, count = [*consts, *map(as_codes, leaves)], len(consts)
    encoded = inputs if run.exact else encode_leaves(inputs, run.analysis, run.config, count)
    _record_weights(run.recorder, run.analysis, encoded)
    constants = [_value(x, argument=False, data=False) for x in encoded[:count]]
    arguments = [
        _value(x, argument=True, data=not weight)
        for x, weight in zip(encoded[count:], call.arguments.weights, strict=True)
    ]
    outputs = evaluate(call.as_inputs, (), [*constants, *arguments], run, ())
    return [jnp.asarray(to_real(v), a.aval.dtype) for v, a in zip(outputs, call.jaxpr.outvars, strict=True)]


def evaluate_in_parts(
    call: Call, fn: Callable[..., Any], config: Config, ranges: Ranges, recorder: Recorder
) -> list[Any]:
    """`evaluate_call`; a large batch is evaluated in blocks, and weights are encoded once before the first block."""
    leaves, count = call.arguments.given, len(call.consts)
    # Native regions need no blocks: they keep what is temporary in one arena.
    size = None if runs_natively(config, leaves) else call.block_size(config)
    if size is None:
        return evaluate_call(call, leaves, config, ranges, recorder)
    recorder.blocks = leaves[call.examples[0]].shape[0] // size
    encoded = encode_leaves([*call.consts, *map(as_codes, leaves)], call.analyse(config), config, count)[
        count:
    ]

    def run(parts: list[Any]) -> list[Any]:
        args, kwargs = call.arguments.rebuild(parts)
        try:
            block = Call.trace(fn, args, kwargs)
        except Exception as error:  # whatever the function says to a batch of another size
            raise _KnowsBatchSize from error
        examples = [len(block.consts) + i for i in block.examples]
        if not same_on_block(call.as_inputs, block.as_inputs, examples):
            raise _KnowsBatchSize
        return evaluate_call(block, block.arguments.given, config, ranges, recorder, repeats=recorder.blocks)

    try:
        return in_blocks(run, encoded, call.examples, size)
    except _KnowsBatchSize:
        recorder.blocks = 1
        return evaluate_call(call, leaves, config, ranges, recorder)


class _KnowsBatchSize(Exception):
    """Raised for a function that computes something else for a block, because its code depends on the number of examples."""


def differentiable(call: Call, fn: Callable[..., Any], config: Config, ranges: Ranges) -> Any:
    """The results, with values by integer arithmetic, and derivatives by the float simulation of it (straight-through)."""
    leaves = tuple(as_array(leaf) for leaf in call.arguments.given)
    # JAX keeps these functions in its caches, so they must not close over the arguments of this trace.
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


def _record_weights(recorder: Recorder, analysis: Analysis, encoded: Sequence[Any]) -> None:
    """Notes the bytes of each weight at the first site that reads it, so that none is counted twice."""
    found: dict[str, tuple[int, int]] = {}
    for leaf, use in analysis.weights.items():
        x = encoded[leaf] if leaf < len(encoded) else None
        if x is None or not jnp.issubdtype(x.dtype, jnp.floating):  # a table of integers is no weight
            continue
        real = math.prod(jnp.shape(x)) * np.dtype(x.dtype).itemsize
        held, before = found.get(use.sites[0], (0, 0))
        found[use.sites[0]] = held + (x.nbytes if isinstance(x, QTensor) else real), before + real
    for site, (held, real) in found.items():
        recorder.add_weights(site, held, real)


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _value(x: Any, argument: bool, data: bool) -> Value:
    """An input as a value of the evaluator.

    Args:
      x: An array or a QTensor.
      argument: Whether the input is an argument of the function rather than a constant.
      data: Whether the input may hold NaN: data may, but weights and constants count as free of NaN.
    """
    if isinstance(x, QTensor):
        # No rule moves the scales of groups, so such weights are decoded where the function begins.
        return Array(x.dequantize(), origins=()) if x.is_grouped else x
    return Array(x, argument=argument, origins=None if data else ())


def _range_names(analysis: Analysis) -> set[str]:
    """The names under which ranges can be given for the sites of a function."""
    names = {site.name for site in analysis.sites.values()}
    return names | {f"{name}.rhs" for name in names}
