"""Calls and control flow: the functions inside equations are evaluated by the same rules.

A body is entered only if this can change the result: if it contains a site or an operation with known bounds, or if codes,
accumulators, small arrays or constants reach it. Otherwise the equation is evaluated as it stands, so that custom derivatives
and compiled calls stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8._compat import bind, open_jaxpr, primitives, stored
from jaxq8.analysis.inner_functions import (
    CLOSED,
    COND,
    CUSTOM_JVP,
    CUSTOM_VJP,
    JIT,
    SCAN,
    SHARD_MAP,
    WHILE,
    callees,
)
from jaxq8.analysis.scan_hoisting import parted
from jaxq8.analysis.sites import operation
from jaxq8.evaluation.interpreter import Context, evaluate, rule
from jaxq8.evaluation.native_evaluation import in_native_regions
from jaxq8.evaluation.probes import framed, shapes_seen
from jaxq8.evaluation.values import Accumulator, Array, Broadcast, Value, is_quantized, to_real
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.rounding import straight_through
from jaxq8.operations import is_collecting

# Operations whose results have known bounds, which save the next encoding a measurement.
BOUNDING = {primitives.max_p, primitives.min_p, primitives.clamp_p, primitives.logistic_p, primitives.tanh_p}


def _worth_entering(ctx: Context, values: Sequence[Value]) -> bool:
    """Whether evaluation of the functions inside an equation by the rules can change the result."""
    symbolic = any(is_quantized(v) or isinstance(v, Broadcast) for v in values)
    constants = any(isinstance(v, Array) and not isinstance(v.array, jax.Array) for v in values)
    return symbolic or constants or _callees_profit(ctx.eqn)


def _callees_profit(eqn: Any) -> bool:
    """Whether a function inside an equation has an operation that can run on codes or that bounds its result."""
    bodies = [open_jaxpr(callee.jaxpr)[0] for callee in callees(eqn)]
    return any(_profits(inner) for body in bodies for inner in body.eqns)


def _profits(eqn: Any) -> bool:
    """Whether an equation, or one in a function inside it, can run on codes or bounds its result."""
    return operation(eqn.primitive) is not None or eqn.primitive in BOUNDING or _callees_profit(eqn)


@rule(*(JIT | CLOSED | CUSTOM_JVP | CUSTOM_VJP))
def call(ctx: Context, *values: Value, **params: Any) -> Any:
    """A function that simply runs is evaluated in place."""
    if not _worth_entering(ctx, values):
        return NotImplemented
    (callee,) = callees(ctx.eqn)
    body, consts = open_jaxpr(callee.jaxpr)
    results = evaluate(body, consts, values, ctx.run, ctx.inner(callee.key))
    has_own_derivative = ctx.eqn.primitive in CUSTOM_JVP | CUSTOM_VJP
    if has_own_derivative and ctx.run.config.simulates:
        return _with_own_derivative(ctx, values, results)
    return results


def _with_own_derivative(ctx: Context, values: Sequence[Value], results: Sequence[Value]) -> list[Value]:
    """Results with the values of the simulation and the derivative of the user's rule.

    The equation is also computed as it stands, in float. Only its tangents are used, so outside of derivatives XLA removes the
    computation as dead code.
    """
    plain = bind(ctx.eqn, [to_real(v) for v in values])
    return [_tangents_of(r, p) for r, p in zip(results, plain, strict=True)]


def _tangents_of(value: Value, real: Any) -> Value:
    """A value with its own numbers and the derivative of `real`."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    zero = (real - jax.lax.stop_gradient(real)).astype(jnp.float32)  # 0, with the derivative of `real`
    if isinstance(value, QTensor):
        fixed = jax.tree.map(jax.lax.stop_gradient, value)
        return dataclasses.replace(fixed, values=fixed.values + zero / fixed.scale)
    if isinstance(value, Accumulator):
        fields = jax.lax.stop_gradient({"values": value.values, **value.smalls})
        fields["offset"] = fields["offset"] + zero
        return dataclasses.replace(value, **fields, straight=True)
    if isinstance(value, Array):
        return dataclasses.replace(value, array=straight_through(real, value.array), codes=None)
    return Array(straight_through(real, to_real(value)))


def _carried(value: Value) -> Any:
    """A value in the form in which it can enter a body: a QTensor as it is, everything else as an array."""
    return value if isinstance(value, QTensor) else to_real(value)


def _as_value(x: Any) -> Value:
    return x if isinstance(x, QTensor) else Array(x)


def _body(
    ctx: Context, index: int, dtypes: Sequence[Any], repeats: int = 1, part: Any = None, whole: bool = False
) -> Any:
    """A body, or a part of it, as a function ``f(*inputs) -> list of arrays``.

    Args:
      ctx: The equation.
      index: Which of its bodies.
      dtypes: The dtypes of the results.
      repeats: How often the equation runs the body.
      part: The part of the body that is evaluated (`scan_hoisting.Part`); None for all of it.
      whole: Whether operations that are collected stay whole in it, so that `jaxq8.regions` finds them in the equation;
        otherwise the body becomes a program of its own, which has regions of its own.
    """
    callee = callees(ctx.eqn)[index]
    jaxpr, consts = open_jaxpr(callee.jaxpr)
    if part is not None:
        jaxpr = dataclasses.replace(part, constvars=jaxpr.constvars)
    inside = dataclasses.replace(ctx.run, repeats=ctx.run.repeats * repeats)

    def evaluated(inputs: Any) -> list[Any]:
        results = evaluate(jaxpr, consts, [_as_value(x) for x in inputs], inside, ctx.inner(callee.key))
        return [jnp.asarray(to_real(r), d) for r, d in zip(results, dtypes, strict=True)]

    def run(*inputs: Any) -> list[Any]:
        if is_collecting() and not whole:
            return in_native_regions(evaluated, list(inputs), ctx.run.config, ctx.run.recorder)
        return evaluated(inputs)

    return run


def _out_dtypes(jaxpr: Any) -> list[Any]:
    return [v.aval.dtype for v in open_jaxpr(jaxpr)[0].outvars]


@rule(SCAN)
def scan(ctx: Context, *values: Value, **params: Any) -> Any:
    """Weights enter as codes, whole or stacked; the carry and the stacked results are arrays."""
    if not _worth_entering(ctx, values):
        return NotImplemented
    nconsts, ncarry = params["num_consts"], params["num_carry"]
    consts = [_carried(v) for v in values[:nconsts]]
    carry = [_materialised(v) for v in values[nconsts : nconsts + ncarry]]
    stacked = [_stackable(v) for v in values[nconsts + ncarry :]]
    rest, moved = _moved_out(ctx, consts, stacked, params)
    body = _body(ctx, 0, _out_dtypes(params["jaxpr"]), params["length"], rest, whole=True)
    probe = ctx.run.probe

    def step(state: Any, slices: Any) -> Any:
        stacked_slices, moved_slices = slices
        # Stored, because XLA:CPU does not vectorise the activations of gates in one loop with the slicing.
        results, seen = framed(probe, body)(*consts, *state, *stacked_slices, *map(stored, moved_slices))
        return results[:ncarry], (results[ncarry:], seen)

    final, (outputs, seen) = jax.lax.scan(
        step, carry, (stacked, moved), length=params["length"], reverse=params["reverse"], unroll=params["unroll"],
        _split_transpose=params.get("_split_transpose", False),
    )  # fmt: skip
    probe.add({name: probe.fold(name, kept) for name, kept in seen.items()})
    return [Array(x) for x in (*final, *outputs)]


def _moved_out(
    ctx: Context, consts: Sequence[Any], stacked: Sequence[Any], params: Any
) -> tuple[Any, list[Any]]:
    """The body without the contractions that can run before the loop, and their results in all steps.

    The contractions are evaluated here. If there are none, the body is None, which stands for all of it.
    """
    body, length, probe = open_jaxpr(params["jaxpr"])[0], params["length"], ctx.run.probe
    (callee,) = callees(ctx.eqn)
    path = ctx.inner(callee.key)

    def wanted(index: int) -> int | None:
        site = ctx.run.analysis.sites.get((*path, index))
        if site is None or ctx.run.site_config(site).mode not in ("eightbit", "simulate"):
            return None
        return site.weight

    parts = parted(body, len(consts), params["num_carry"], length, wanted)
    if parts is None:
        return None, []
    before, rest = parts
    dtypes = [v.aval.dtype for v in before.outvars]
    run = framed(probe, _body(ctx, 0, dtypes, length, before, whole=True))
    results, seen = jax.vmap(lambda slices: run(*consts, *slices))(stacked)
    probe.add({name: probe.fold(name, kept) for name, kept in seen.items()})
    return rest, results


def _materialised(value: Value) -> Any:
    return jnp.asarray(to_real(value))


def _stackable(value: Value) -> Any:
    """A value that a scan slices along its first axis: the scale and zero point of codes get that axis too."""
    if not isinstance(value, QTensor):
        return to_real(value)
    length = value.shape[0]
    scale, zero = (jnp.broadcast_to(a, (length, *a.shape[1:])) for a in (value.scale, value.zero_point))
    return dataclasses.replace(value, scale=scale, zero_point=zero)


def _where_going(going: Any, new: Any, old: Any) -> Any:
    """The carry of a loop under `jax.vmap`, whose condition has a batch axis: examples that are done keep the old one."""
    mask = jnp.reshape(going, going.shape + (1,) * (jnp.ndim(new) - going.ndim))
    return jnp.where(mask, new, old)


@rule(WHILE)
def while_(ctx: Context, *values: Value, **params: Any) -> Any:
    """Condition and body are evaluated by the rules; the carry consists of arrays.

    What the probe sees in the body is carried beside the state of the loop.
    """
    if not _worth_entering(ctx, values):
        return NotImplemented
    nc, nb = params["cond_nconsts"], params["body_nconsts"]
    cond_consts = [_carried(v) for v in values[:nc]]
    body_consts = [_carried(v) for v in values[nc : nc + nb]]
    condition = _body(ctx, 0, _out_dtypes(params["cond_jaxpr"]))
    body = _body(ctx, 1, _out_dtypes(params["body_jaxpr"]))
    is_batched = open_jaxpr(params["cond_jaxpr"])[0].outvars[0].aval.shape != ()
    probe, start = ctx.run.probe, [_materialised(v) for v in values[nc + nb :]]
    shapes = shapes_seen(probe, body, *body_consts, *start)
    nothing_seen = {name: probe.empty(name, shape) for name, shape in shapes.items()}

    def going(state: Any) -> Any:
        with probe.frame():  # what is seen in the condition is dropped
            return condition(*cond_consts, *state)[0]

    def step(carry: Any) -> Any:
        state, seen = carry
        results, new = framed(probe, body)(*body_consts, *state)
        if is_batched:
            mask = going(state)
            results = [_where_going(mask, n, o) for n, o in zip(results, state, strict=True)]
        return results, {name: probe.join(name, seen[name], new[name]) for name in nothing_seen}

    final, seen = jax.lax.while_loop(lambda carry: jnp.any(going(carry[0])), step, (start, nothing_seen))
    probe.add(seen)
    return [Array(x) for x in final]


@rule(COND)
def cond(ctx: Context, index: Value, *values: Value, **params: Any) -> Any:
    """Every branch is evaluated by the rules; results are arrays."""
    if not _worth_entering(ctx, values):
        return NotImplemented
    operands = [_carried(v) for v in values]
    branches = [_body(ctx, i, _out_dtypes(b)) for i, b in enumerate(params["branches"])]
    probe = ctx.run.probe
    shapes: dict[str, Any] = {}  # of what is seen in any branch
    for branch in branches:
        shapes.update(shapes_seen(probe, branch, *operands))

    def completed(branch: Any) -> Any:
        """The branch, with something in its frame for every name that is seen in any branch."""

        def run(*inputs: Any) -> Any:
            results, seen = framed(probe, branch)(*inputs)
            return results, {n: seen.get(n, probe.empty(n, s)) for n, s in shapes.items()}

        return run

    where = jnp.asarray(to_real(index), jnp.int32)
    results, seen = jax.lax.switch(where, [completed(b) for b in branches], *operands)
    probe.add(seen)
    return [Array(x) for x in results]


@rule(SHARD_MAP)
def shard_map(ctx: Context, *values: Value, mesh: Any, in_specs: Any, out_specs: Any, **params: Any) -> Any:
    """The body is evaluated on each device's part, so ranges that are measured in the run are those of the part."""
    manual = params.get("newly_manual_axes", params.get("manual_axes"))
    if manual is None or not _worth_entering(ctx, values):
        return NotImplemented
    operands = [_carried(v) for v in values]
    body, probe = _body(ctx, 0, _out_dtypes(params["jaxpr"])), ctx.run.probe

    def part(*inputs: Any) -> list[Any]:
        with probe.frame():  # what is seen on one device is dropped: it does not describe the whole
            return body(*inputs)

    mapped = jax.shard_map(
        part, mesh=mesh, in_specs=tuple(map(_part_specs, operands, in_specs)), out_specs=list(out_specs),
        axis_names=set(manual), check_vma=params["check_vma"],
    )  # fmt: skip
    return [Array(x) for x in mapped(*operands)]


def _part_specs(operand: Any, spec: Any) -> Any:
    """How an operand is distributed over devices.

    Scales and zero points are distributed like their codes, except along axes on which they have a single entry.
    """
    if not isinstance(operand, QTensor):
        return spec
    axes = (*spec, *[None] * (operand.ndim - len(spec)))
    small_axes = [None if n == 1 else axis for n, axis in zip(operand.scale.shape, axes, strict=True)]
    small = jax.P(*small_axes)
    return dataclasses.replace(operand, values=spec, scale=small, zero_point=small)
