"""Calls and control flow: functions inside equations are evaluated by the same rules.

A body is entered only if that changes something: if it holds a site, or if codes or accumulators reach it. Otherwise the
equation is evaluated as it stands, so custom derivatives and compiled calls stay what they are.
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
from jaxq8.evaluation.probes import framed, shapes_seen
from jaxq8.evaluation.values import Accumulator, Array, Broadcast, Value, is_quantized, to_real
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.rounding import straight_through

# Operations whose results have bounds that the next encoding profits from.
BOUNDING = {primitives.max_p, primitives.min_p, primitives.clamp_p, primitives.logistic_p, primitives.tanh_p}


def _worth_entering(ctx: Context, values: Sequence[Value]) -> bool:
    symbolic = any(is_quantized(v) or isinstance(v, Broadcast) for v in values)
    scalars = any(isinstance(v, Array) and not isinstance(v.array, jax.Array) for v in values)
    return symbolic or scalars or any(_profits(open_jaxpr(c.jaxpr)[0]) for c in callees(ctx.eqn))


def _profits(jaxpr: Any) -> bool:
    """Whether a jaxpr, or any function inside it, has an operation that can run on codes or that bounds its result."""
    return any(
        operation(eqn.primitive) is not None
        or eqn.primitive in BOUNDING
        or any(_profits(open_jaxpr(c.jaxpr)[0]) for c in callees(eqn))
        for eqn in jaxpr.eqns
    )


@rule(*(JIT | CLOSED | CUSTOM_JVP | CUSTOM_VJP))
def call(ctx: Context, *values: Value, **params: Any) -> Any:
    """A function that simply runs is evaluated in place."""
    if not _worth_entering(ctx, values):
        return NotImplemented
    (callee,) = callees(ctx.eqn)
    body, consts = open_jaxpr(callee.jaxpr)
    results = evaluate(body, consts, values, ctx.run, ctx.inner(callee.key))
    custom = ctx.eqn.primitive in CUSTOM_JVP | CUSTOM_VJP
    return _with_own_derivative(ctx, values, results) if custom and ctx.run.config.simulates else results


def _with_own_derivative(ctx: Context, values: Sequence[Value], results: Sequence[Value]) -> list[Value]:
    """Results with the values of the simulation and the derivative that the user's rule gives.

    The equation is also computed as it stands, in float; only its tangents are used, so outside of derivatives it is removed as
    dead code.
    """
    plain = bind(ctx.eqn, [to_real(v) for v in values])
    return [_tangents_of(r, p) for r, p in zip(results, plain, strict=True)]


def _tangents_of(value: Value, real: Any) -> Value:
    """`value` in value, `real` in derivative."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    zero = (real - jax.lax.stop_gradient(real)).astype(jnp.float32)  # zero in value, all of the derivative
    if isinstance(value, QTensor):
        fixed = jax.tree.map(jax.lax.stop_gradient, value)
        return dataclasses.replace(fixed, values=fixed.values + zero / fixed.scale)
    if isinstance(value, Accumulator):
        still = jax.lax.stop_gradient({"values": value.values, **value.smalls})
        return dataclasses.replace(value, **{**still, "offset": still["offset"] + zero}, straight=True)
    if isinstance(value, Array):
        return dataclasses.replace(value, array=straight_through(real, value.array), codes=None)
    return Array(straight_through(real, to_real(value)))


def _carried(value: Value) -> Any:
    """What can pass into a body: QTensors as they are, everything else as arrays."""
    return value if isinstance(value, QTensor) else to_real(value)


def _as_value(x: Any) -> Value:
    return x if isinstance(x, QTensor) else Array(x)


def _body(ctx: Context, index: int, dtypes: Sequence[Any], repeats: int = 1, part: Any = None) -> Any:
    """The function ``f(*inputs) -> list of arrays`` of a body, or of a part of it; results have the dtypes that it declares."""
    callee = callees(ctx.eqn)[index]
    jaxpr, consts = open_jaxpr(callee.jaxpr)
    if part is not None:
        jaxpr = dataclasses.replace(part, constvars=jaxpr.constvars)
    inside = dataclasses.replace(ctx.run, repeats=ctx.run.repeats * repeats)

    def run(*inputs: Any) -> list[Any]:
        results = evaluate(jaxpr, consts, [_as_value(x) for x in inputs], inside, ctx.inner(callee.key))
        return [jnp.asarray(to_real(r), d) for r, d in zip(results, dtypes, strict=True)]

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
    body, moved = _moved_out(ctx, consts, stacked, params)
    run = _body(ctx, 0, _out_dtypes(params["jaxpr"]), params["length"], body)

    probe = ctx.run.probe

    def step(state: Any, slices: Any) -> Any:
        # Stored: XLA:CPU does not vectorise the activations of gates in one loop with the slicing.
        results, seen = framed(probe, run)(*consts, *state, *slices[0], *map(stored, slices[1]))
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
    """The body without the contractions that can run before the loop, and their results in all steps."""
    body, length, probe = open_jaxpr(params["jaxpr"])[0], params["length"], ctx.run.probe
    (callee,) = callees(ctx.eqn)
    path = ctx.inner(callee.key)

    def wanted(index: int) -> int | None:
        site = ctx.run.analysis.sites.get((*path, index))
        eight_bit = site is not None and ctx.run.site_config(site).mode in ("eightbit", "simulate")
        return site.weight if site is not None and eight_bit else None

    parts = parted(body, len(consts), params["num_carry"], length, wanted)
    if parts is None:
        return None, []
    before, rest = parts
    run = framed(probe, _body(ctx, 0, [v.aval.dtype for v in before.outvars], length, before))
    results, seen = jax.vmap(lambda slices: run(*consts, *slices))(stacked)
    probe.add({name: probe.fold(name, kept) for name, kept in seen.items()})
    return rest, results


def _materialised(value: Value) -> Any:
    return jnp.asarray(to_real(value))


def _stackable(value: Value) -> Any:
    """Codes can be sliced along their first axis if scale and zero point have that axis too."""
    if not isinstance(value, QTensor):
        return to_real(value)
    length = value.shape[0]
    scale, zero = (jnp.broadcast_to(a, (length, *a.shape[1:])) for a in (value.scale, value.zero_point))
    return dataclasses.replace(value, scale=scale, zero_point=zero)


def _where_going(going: Any, new: Any, old: Any) -> Any:
    """The carry of a loop under `jax.vmap`, whose condition has a batch axis: examples that are done keep theirs."""
    return jnp.where(jnp.reshape(going, going.shape + (1,) * (jnp.ndim(new) - going.ndim)), new, old)


@rule(WHILE)
def while_(ctx: Context, *values: Value, **params: Any) -> Any:
    """Condition and body are evaluated by the rules; the carry is arrays."""
    if not _worth_entering(ctx, values):
        return NotImplemented
    nc, nb = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = [_carried(v) for v in values[:nc]], [_carried(v) for v in values[nc : nc + nb]]
    condition = _body(ctx, 0, _out_dtypes(params["cond_jaxpr"]))
    body = _body(ctx, 1, _out_dtypes(params["body_jaxpr"]))
    batched = open_jaxpr(params["cond_jaxpr"])[0].outvars[0].aval.shape != ()
    probe, start = ctx.run.probe, [_materialised(v) for v in values[nc + nb :]]
    seen = {name: probe.empty(name, s) for name, s in shapes_seen(probe, body, *body_consts, *start).items()}

    def step(carry: Any) -> Any:
        results, new = framed(probe, body)(*body_consts, *carry[0])
        if batched:
            with probe.frame():
                going = condition(*cond_consts, *carry[0])[0]
            results = [_where_going(going, n, o) for n, o in zip(results, carry[0], strict=True)]
        return results, {name: probe.join(name, carry[1][name], new[name]) for name in seen}

    def goes_on(carry: Any) -> Any:
        with probe.frame():
            return jnp.any(condition(*cond_consts, *carry[0])[0])

    final, seen = jax.lax.while_loop(goes_on, step, (start, seen))
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
    union = {n: s for b in branches for n, s in shapes_seen(probe, b, *operands).items()}

    def completed(branch: Any) -> Any:
        def run(*inputs: Any) -> Any:
            results, seen = framed(probe, branch)(*inputs)
            return results, {n: seen.get(n, probe.empty(n, s)) for n, s in union.items()}

        return run

    where = jnp.asarray(to_real(index), jnp.int32)
    results, seen = jax.lax.switch(where, [completed(b) for b in branches], *operands)
    probe.add(seen)
    return [Array(x) for x in results]


@rule(SHARD_MAP)
def shard_map(ctx: Context, *values: Value, mesh: Any, in_specs: Any, out_specs: Any, **params: Any) -> Any:
    """The body is evaluated on each device's part: ranges that are found in the run are those of the part."""
    manual = params.get("newly_manual_axes", params.get("manual_axes"))
    if manual is None or not _worth_entering(ctx, values):
        return NotImplemented
    operands = [_carried(v) for v in values]
    body, probe = _body(ctx, 0, _out_dtypes(params["jaxpr"])), ctx.run.probe

    def part(*inputs: Any) -> list[Any]:
        with probe.frame():  # what is seen on one device is no observation of the whole
            return body(*inputs)

    mapped = jax.shard_map(
        part, mesh=mesh, in_specs=tuple(map(_part_specs, operands, in_specs)), out_specs=list(out_specs),
        axis_names=set(manual), check_vma=params["check_vma"],
    )  # fmt: skip
    return [Array(x) for x in mapped(*operands)]


def _part_specs(operand: Any, spec: Any) -> Any:
    """How an operand is cut: scales and zero points like their codes, but for the axes on which they have one entry."""
    if not isinstance(operand, QTensor):
        return spec
    axes = (*spec, *[None] * (operand.ndim - len(spec)))
    small = jax.P(*(None if n == 1 else axis for n, axis in zip(operand.scale.shape, axes, strict=True)))
    return dataclasses.replace(operand, values=spec, scale=small, zero_point=small)
