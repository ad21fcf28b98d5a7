"""Matrix products and convolutions: int8 operands, an int32 accumulator, and the algebra of zero points."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import primitives, source_line
from jaxq8.analysis.sites import RAGGED_DOT, part_name, ragged_dimensions
from jaxq8.config import Config
from jaxq8.evaluation import float_modes
from jaxq8.evaluation.interpreter import Context, float_fallback, rule, shapes_of
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.rules.joined import Group, Join, cut, groups, join_of, places_within, together, unlike
from jaxq8.evaluation.values import Accumulator, Array, Value, bounds, decode, is_outer
from jaxq8.kernels.canonical import ConvLayout, DotLayout, conv_layout, dot_layout
from jaxq8.kernels.forms import DotForm, Form
from jaxq8.kernels.registry import KERNELS, Operand, run_with_sums
from jaxq8.kernels.select import select
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.spec import Spec
from jaxq8.plan import SHARED, Reason

# A parameter that is neither here nor None is one that this rule does not know the meaning of: the site stays float.
DOT_PARAMS = {"dimension_numbers", "precision", "preferred_element_type"}
CONV_PARAMS = {
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
    "batch_group_count", "precision", "preferred_element_type",
}  # fmt: skip


Shape = tuple[int, ...]
Layout = DotLayout | ConvLayout


@rule(primitives.dot_general_p)
def dot_general(ctx: Context, x: Value, y: Value, *, dimension_numbers: Any, **params: Any) -> Value:
    """Any dot: the weight (or, of two activations, the right operand) gets a scale per channel, the other one per tensor."""
    swapped = ctx.site.weight == 0
    is_weight = ctx.site.weight is not None

    def layout(activation: Shape, weight: Shape) -> DotLayout:
        left, right = (weight, activation) if swapped else (activation, weight)
        return dot_layout(dimension_numbers, left, right, swapped, is_weight)

    unhandled = _unhandled(params, DOT_PARAMS)
    return _contract(ctx, (y, x) if swapped else (x, y), layout, (x, y), unhandled, params)


@rule(primitives.conv_general_dilated_p)
def conv_general_dilated(ctx: Context, x: Value, w: Value, **params: Any) -> Value:
    """Any convolution: one scale per output channel; borders are padded with the zero point."""
    unhandled = _unhandled(params, CONV_PARAMS)
    if params["batch_group_count"] != 1:
        channels = w.shape[params["dimension_numbers"].rhs_spec[0]]
        macs = math.prod(ctx.eqn.outvars[0].aval.shape) * (math.prod(w.shape) // max(channels, 1))
        return _in_float(ctx, (x, w), Reason.BATCH_GROUPS, "", macs * ctx.run.repeats)
    layout = functools.partial(conv_layout, params)
    return _contract(ctx, (x, w), layout, (x, w), unhandled, params)


@rule(RAGGED_DOT)
def ragged_dot(ctx: Context, x: Value, w: Value, *sizes: Value, **params: Any) -> Value:
    """Groups of rows, each with a weight of its own (experts): float, counted as the contraction that it is."""
    (_, contracted), (_, batch) = ragged_dimensions(params)
    groups = params["ragged_dot_dimension_numbers"].rhs_group_dimensions
    free = [n for axis, n in enumerate(w.shape) if axis not in (*contracted, *batch, *groups)]
    macs = math.prod(x.shape) * math.prod(free) * ctx.run.repeats
    return _in_float(ctx, (x, w, *sizes), *_float_mode(ctx.config) or (Reason.NO_RULE, ""), macs)


def _float_mode(config: Config) -> tuple[Reason, str] | None:
    """The reason why no contraction of this configuration runs in eight bits, if there is one."""
    if config.mode == "off":
        return Reason.OFF, ""
    return (Reason.MODE, config.mode) if config.mode in float_modes.FLOAT_MODES else None


def _contract(
    ctx: Context, operands: tuple[Value, Value], layout_of: Callable[[Shape, Shape], Layout],
    original: tuple[Value, Value], unhandled: set[str], params: Any,
) -> Value:  # fmt: skip
    """Decides, encodes both operands, runs the kernel, and wraps the result as an Accumulator."""
    config = ctx.config
    activation, weight = operands
    layout = layout_of(activation.shape, weight.shape)
    obstacle = _obstacle(ctx, operands, config, unhandled, params)
    choice = select(layout.form, config.kernels if config.mode != "simulate" else "simulate")
    macs = layout.form.macs * ctx.run.repeats
    if obstacle is None and choice.kernel == "float":
        obstacle = (Reason.NOT_FASTER, choice.reason)
    if obstacle is not None:
        return _in_float(ctx, original, *obstacle, macs)
    w = ctx.eight_bit(weight, _weight_spec(config), _weight_axes(weight, config, layout), suffix=".rhs")
    join, axis = _join(ctx, activation, layout)
    found = groups(ctx, ctx.site.name, join.parts) if join else []
    facts: dict[str, Any] = {
        "shapes": shapes_of(ctx.eqn), "macs": macs, "kernel": f"{choice.kernel}: {choice.form}", "detail": choice.reason,
        "refused": choice.refused, "weights": _describe(w), "reads": _reads(activation),
        "joined": "" if join is None else _shared(ctx, join, found),
    }  # fmt: skip
    split = (
        None if join is None or len(found) < 2 else functools.partial(_of_parts, join, found, axis, layout_of)
    )
    if join is not None and split is not None and not ctx.run.exact:
        total, described = split(ctx, config, w, choice.kernel)
        reads = sorted(map(_reads, join.parts), key=lambda text: not text.startswith("float"))
        ctx.record(True, activations=described, range="of each part", **facts | {"reads": reads[0]})
        return Array(total.astype(ctx.eqn.outvars[0].aval.dtype), stored=False)
    spec = _activation_spec(ctx, config, layout)
    keep = layout.row_axes if spec.granularity == "row" else ()
    x = ctx.eight_bit(activation, spec, keep)
    ctx.record(True, activations=_describe(x), range=_origin(ctx, activation), **facts)
    if join is not None and ctx.run.probe.active:
        for i, (part, place) in enumerate(zip(join.parts, join.places, strict=True)):
            ctx.run.probe.part(part_name(ctx.site.name, i), part, cut(x, [place], join.dimension))
    if ctx.run.exact:
        ctx.run.probe.reads(ctx.site.name, layout, x, w)
    kernel = "simulate" if ctx.run.exact else choice.kernel
    _, *before = ctx.run.transposed.get(id(w.values), (None, w.values, tuple(range(w.values.ndim))))
    result = accumulate(layout, x, w, kernel, np.dtype(ctx.eqn.outvars[0].aval.dtype), before)
    if ctx.site.weight is None and math.prod(w.scale.shape) > 1:
        result = dataclasses.replace(result, everywhere=False)
    if ctx.run.exact:
        rounded = functools.partial(_rounded, ctx, operands, layout, spec, keep, split)
        ctx.run.probe.contracted(ctx.site.name, result, rounded)
    return result


def _join(ctx: Context, activation: Value, layout: Layout) -> tuple[Join | None, int]:
    """What the activation was joined from, and the axis of the weight that is summed along with the parts."""
    join = join_of(ctx, activation)
    axis = None if join is None else layout.summed(join.dimension)
    return (None, 0) if axis is None else (join, axis)


def _shared(ctx: Context, join: Join, found: Sequence[Group]) -> str:
    """What a site does with joined parts, for the Plan."""
    if len(found) > 1:
        return f"{len(found)} products: {unlike(found)}"
    names = (part_name(ctx.site.name, i) for i in range(len(join.parts)))
    alike = all(name in ctx.run.ranges for name in names)
    return "" if alike else f"{len(join.parts)} {SHARED}"


def _of_parts(
    join: Join, found: Sequence[Group], axis: int, layout_of: Callable[[Shape, Shape], Layout],
    ctx: Context, config: Config, w: QTensor, kernel: str,
) -> tuple[jax.Array, str]:  # fmt: skip
    """The sum of the products of parts that do not share a scale, in float32, and what their codes are."""
    total, described = jnp.float32(0), []
    for group in found:
        places = [join.places[i] for i in group.members]
        part, weight = together(join.parts, group, join.dimension), cut(w, places, axis)
        layout = layout_of(part.shape, weight.shape)
        spec = _activation_spec(ctx, config, layout)
        spec = spec if group.range is None else dataclasses.replace(spec, granularity="tensor")
        keep = layout.row_axes if spec.granularity == "row" else ()
        name = part_name(ctx.site.name, group.members[0])
        x = ctx.run_encode(part, name, config, spec, keep, fixed=group.range)
        total = total + decode(accumulate(layout, x, weight, kernel))
        described.append(_describe(x))
        for i, place in zip(group.members, places_within(join, group), strict=True):
            ctx.run.probe.part(part_name(ctx.site.name, i), join.parts[i], cut(x, [place], join.dimension))
    return total, "; ".join(described)


def _rounded(
    ctx: Context,
    operands: tuple[Value, Value],
    layout: Layout,
    spec: Spec,
    keep: tuple[int, ...],
    split: Callable[..., tuple[jax.Array, str]] | None,
) -> jax.Array:
    """A contraction from codes whose operands are exact, in float32: the error that this site alone adds."""
    inexact = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, exact=None, probe=Probe()))
    simulated = dataclasses.replace(inexact.config, kernels="simulate")
    activation, weight = operands
    axes = _weight_axes(weight, simulated, layout)
    w = inexact.run_encode(weight, ctx.site.name + ".rhs", simulated, _weight_spec(simulated), axes)
    if split is not None:
        return split(inexact, simulated, w, "simulate")[0]
    x = inexact.run_encode(activation, ctx.site.name, simulated, spec, keep)
    return decode(accumulate(layout, x, w, "simulate"))


def _obstacle(
    ctx: Context, operands: tuple[Value, Value], config: Config, unhandled: set[str], params: Any
) -> tuple[Reason, str] | None:
    """Why this contraction cannot or shall not run in eight bits, in the order in which it is decided."""
    x, w = operands
    by_mode = _float_mode(config)
    if by_mode is not None:
        return by_mode
    if unhandled:
        return Reason.UNSUPPORTED, f"parameters {', '.join(sorted(unhandled))}"
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in operands):
        return Reason.DTYPE, f"{x.dtype}, {w.dtype}"
    if 0 in x.shape or 0 in w.shape or 0 in ctx.eqn.outvars[0].aval.shape:
        return Reason.EMPTY, ""
    wanted = params.get("preferred_element_type")
    if wanted is not None and not jnp.issubdtype(wanted, jnp.floating):
        return Reason.DTYPE_REQUEST, str(wanted)
    if ctx.site.op == "dot" and ctx.site.weight is None and not config.attention and _is_batched(ctx):
        return Reason.ATTENTION, ""
    return None


def _unhandled(params: Any, known: set[str]) -> set[str]:
    return {name for name, value in params.items() if name not in known and value is not None}


def _is_batched(ctx: Context) -> bool:
    """Two activations with batch axes: the products of attention."""
    return bool(ctx.eqn.params["dimension_numbers"][1][0])


def _in_float(ctx: Context, operands: Sequence[Value], reason: Reason, detail: str, macs: int) -> Value:
    """The equation as it stands, by the better float form where there is one, with its reason in the plan."""
    values = float_modes.prepare(ctx, operands)
    if reason is Reason.DTYPE and _is_eight_bit_already(ctx, values):
        ctx.record(
            True, detail=detail, shapes=shapes_of(ctx.eqn), macs=macs, kernel="as written: integers already"
        )
    else:
        stored = next((_describe(v) for v in operands if isinstance(v, QTensor)), "")
        ctx.record(False, reason, detail=detail, shapes=shapes_of(ctx.eqn), macs=macs, weights=stored)
    result: Value | None = float_modes.better_float(ctx, values)
    if result is None:
        result = float_fallback(dataclasses.replace(ctx, quiet=True), values)[0]
    return float_modes.finish(ctx, result)


def _is_eight_bit_already(ctx: Context, values: Sequence[Value]) -> bool:
    """A product of bytes summed in int32: the user's own, or one of a function that is quantized twice."""
    narrow = all(jnp.issubdtype(v.dtype, jnp.integer) and v.dtype.itemsize == 1 for v in values)
    return narrow and ctx.eqn.outvars[0].aval.dtype == jnp.int32


def _activation_spec(ctx: Context, config: Config, layout: Layout) -> Spec:
    """Rows (tokens) have scales of their own only where rows are summed separately, in dots, and ranges are measured."""
    spec = config.activations
    rows = spec.granularity == "row" and bool(layout.row_axes) and not ctx.run.is_static(ctx.site.name)
    return spec if rows else dataclasses.replace(spec, granularity="tensor")


def _weight_spec(config: Config) -> Spec:
    """Weights in groups or with a code book are eight bits with even steps inside an integer contraction."""
    spec = config.weights
    if spec.granularity != "group" and not spec.has_book:
        return spec
    shared = spec.granularity if spec.has_book else "channel"
    return dataclasses.replace(spec, bits=8, granularity=shared, group=0, levels="even", symmetric=True)


def _weight_axes(weight: Value, config: Config, layout: Layout) -> tuple[int, ...]:
    """Scales per output channel; codes that come with the weight keep the scales they have."""
    if isinstance(weight, QTensor):
        return tuple(a for a in layout.channel_axes if weight.scale.shape[a] != 1)
    return () if config.weights.granularity == "tensor" else layout.channel_axes


def accumulate(
    layout: Layout,
    x: QTensor,
    w: QTensor,
    kernel: str,
    dtype: Any = np.float32,
    before: Any = None,
) -> Accumulator:
    """The product of two QTensors as an Accumulator.

    With ``x = sx (qx - zx)`` and ``w = sw (qw - zw)`` the sum over k of x w is::

        sx sw (sum qx qw - zx sum qw - zw sum qx + K zx zw)

    (Jacob et al. 2018, eq. 7). ``sum qw`` is one number per output channel, so the term with zx moves the offset and costs
    nothing per element; the terms with zw vanish for symmetric weights. Where rows have zero points of their own, the term with
    zx is taken from the integers.

    Args:
      layout: Which axes are summed, and the canonical form.
      x: Activation, one scale (or one per row).
      w: Weight, one scale per output channel.
      kernel: Name of the kernel that runs the form.
      dtype: Float dtype that the result stands for.
      before: The weight's codes before they were transposed, and the permutation; None if there is nothing to gain.
    """
    form: Form
    form, lying = _weight_as_it_lies(layout, before) or (layout.form, layout.weight(w.values))
    left, right = Operand.of(x, layout.activation(x.values)), Operand.of(w, lying).as_signed()
    run = KERNELS[kernel].run
    if left.zero is None:
        raw, sums = run(form, left, right), None
    else:
        raw, sums = run_with_sums(kernel, form, left, right)
    values = layout.result(raw)
    rows, scale = layout.row_scale(x.scale), layout.channel_scale(w.scale)
    if all(n == 1 for n in jnp.shape(rows)):
        rows, scale = None, rows * scale
    offset = jnp.zeros((1,) * values.ndim, jnp.float32)
    if right.zero is not None:
        w_zero = layout.channel_scale(right.zero) if jnp.ndim(right.zero) else right.zero
        ones = Operand(jnp.ones_like(right.codes), signed=True)
        values = values - w_zero * layout.result(run(form, left, ones))
    if left.zero is not None:
        x_zero, sums = layout.row_scale(left.zero), layout.channel_sum(sums)
        sums = sums if right.zero is None else sums - w_zero * layout.form_terms
        # Rows have zero points and scales of their own: the integers are corrected, an offset would be as large as they are.
        if rows is not None or is_outer(x_zero, sums):
            values = values - x_zero.astype(values.dtype) * sums
        else:
            offset = -scale * (x_zero.astype(jnp.float32) * sums.astype(jnp.float32))
    return Accumulator(values, scale, offset, dtype=dtype, rows=rows)


def _weight_as_it_lies(layout: Layout, before: Any) -> tuple[DotForm, Any] | None:
    return layout.operand(*before) if before is not None and isinstance(layout, DotLayout) else None


def _describe(q: QTensor) -> str:
    sign = "s" if q.signed else "u"
    scales = math.prod(q.scale.shape)
    return f"{sign}{q.bits}{' symmetric' if q.symmetric else ''}, {scales} scale{'s' if scales != 1 else ''}"


def _reads(activation: Value) -> str:
    """In which form a contraction finds its activation: `SiteRecord.reads`."""
    if isinstance(activation, QTensor):
        return "codes"
    if isinstance(activation, Accumulator):
        return "int32"
    if not isinstance(activation, Array) or not activation.stored:
        return "int32, with elementwise arithmetic"
    if activation.argument:
        return "float: an argument"
    if activation.maker is None:
        return "float: a constant, or carried by a loop"
    line = source_line(activation.maker)
    return f"float: {activation.maker.primitive}" + (f" at {line}" if line else "")


def _origin(ctx: Context, activation: Value) -> str:
    """Where the range of the activation comes from."""
    if isinstance(activation, QTensor) or getattr(activation, "codes", None) is not None:
        return "codes of its producer"
    if ctx.site.name in ctx.run.ranges:
        return "given"
    low, high = bounds(activation)
    if np.isfinite(low) and np.isfinite(high):
        return f"known {low:g}..{high:g}"
    return "this run" + (f", from {low:g}" if np.isfinite(low) else "")
