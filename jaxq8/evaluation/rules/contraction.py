"""Matrix products and convolutions: int8 operands, an int32 accumulator, and the algebra of zero points."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import primitives
from jaxq8.analysis.sites import RAGGED_DOT, part_name, ragged_dimensions
from jaxq8.config import Config
from jaxq8.evaluation import float_modes
from jaxq8.evaluation.equations import shapes_of
from jaxq8.evaluation.interpreter import Context, float_fallback, rule
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.rules.joined import Group, Join, cut, groups, join_of, places_within, together
from jaxq8.evaluation.rules.obstacles import (
    CONV_PARAMS,
    DOT_PARAMS,
    float_mode,
    unknown_parameters,
    why_float,
)
from jaxq8.evaluation.rules.plan_texts import described, range_source, reads, shared
from jaxq8.evaluation.values import Accumulator, Array, Value, decode, is_outer
from jaxq8.kernels.canonical import ConvLayout, DotLayout, conv_layout, dot_layout
from jaxq8.kernels.forms import Form
from jaxq8.kernels.registry import KERNELS, Operand, run_with_sums
from jaxq8.kernels.select import select
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.spec import Spec
from jaxq8.operations import at_site
from jaxq8.plan import Reason

Shape = tuple[int, ...]
Layout = DotLayout | ConvLayout


@rule(primitives.dot_general_p)
def dot_general(ctx: Context, x: Value, y: Value, *, dimension_numbers: Any, **params: Any) -> Value:
    """Any dot: the weight has a scale per channel, and the activation has one per tensor or per row.

    In a product of two activations the right operand takes the place of the weight.
    """
    swapped = ctx.site.weight == 0
    is_weight = ctx.site.weight is not None

    def layout(activation: Shape, weight: Shape) -> DotLayout:
        left, right = (weight, activation) if swapped else (activation, weight)
        return dot_layout(dimension_numbers, left, right, swapped, is_weight)

    unknown = unknown_parameters(params, DOT_PARAMS)
    return _contract(ctx, (y, x) if swapped else (x, y), layout, (x, y), unknown, params)


@rule(primitives.conv_general_dilated_p)
def conv_general_dilated(ctx: Context, x: Value, w: Value, **params: Any) -> Value:
    """Any convolution: one scale per output channel; borders are padded with the zero point."""
    unknown = unknown_parameters(params, CONV_PARAMS)
    if params["batch_group_count"] != 1:
        channels = w.shape[params["dimension_numbers"].rhs_spec[0]]
        macs = math.prod(ctx.eqn.outvars[0].aval.shape) * (math.prod(w.shape) // max(channels, 1))
        return _in_float(ctx, (x, w), Reason.BATCH_GROUPS, "", macs * ctx.run.repeats)
    layout = functools.partial(conv_layout, params)
    return _contract(ctx, (x, w), layout, (x, w), unknown, params)


@rule(RAGGED_DOT)
def ragged_dot(ctx: Context, x: Value, w: Value, *sizes: Value, **params: Any) -> Value:
    """Groups of rows, each with its own weight (experts): evaluated in float, and listed in the plan as a contraction."""
    (_, contracted), (_, batch) = ragged_dimensions(params)
    group_axes = params["ragged_dot_dimension_numbers"].rhs_group_dimensions
    free = [n for axis, n in enumerate(w.shape) if axis not in (*contracted, *batch, *group_axes)]
    macs = math.prod(x.shape) * math.prod(free) * ctx.run.repeats
    reason, detail = float_mode(ctx.config) or (Reason.NO_RULE, "")
    return _in_float(ctx, (x, w, *sizes), reason, detail, macs)


def _contract(
    ctx: Context, operands: tuple[Value, Value], layout_of: Callable[[Shape, Shape], Layout],
    original: tuple[Value, Value], unknown: set[str], params: Any,
) -> Value:  # fmt: skip
    """Evaluates a contraction in eight bits, or in float where eight bits are impossible or do not pay.

    Args:
      ctx: The equation.
      operands: (activation, weight).
      layout_of: ``(activation shape, weight shape) -> layout``.
      original: The operands in the order of the equation.
      unknown: Names of parameters whose meaning the rule does not know.
      params: All parameters.
    """
    config = ctx.config
    activation, weight = operands
    layout = layout_of(activation.shape, weight.shape)
    obstacle = why_float(ctx, operands, config, unknown, params)
    choice = select(layout.form, config.kernels if config.mode != "simulate" else "simulate")
    macs = layout.form.macs * ctx.run.repeats
    if obstacle is None and choice.kernel == "float":
        obstacle = (Reason.NOT_FASTER, choice.reason)
    if obstacle is not None:
        return _in_float(ctx, original, *obstacle, macs)

    w = ctx.eight_bit(weight, _weight_spec(config), _weight_axes(weight, config, layout), suffix=".rhs")
    facts: dict[str, Any] = {
        "shapes": shapes_of(ctx.eqn), "macs": macs, "kernel": f"{choice.kernel}: {choice.form}", "detail": choice.reason,
        "refused": choice.refused, "weights": described(w), "reads": reads(activation),
    }  # fmt: skip
    parts = _parts_of(ctx, activation, layout, layout_of)
    if parts is not None:
        facts["joined"] = shared(ctx, parts.join, parts.groups)
        if parts.are_unlike and not ctx.run.exact:
            return _sum_of_parts(ctx, parts, w, choice.kernel, facts)

    spec, keep = _activation_spec(ctx, config, layout)
    if parts is not None and parts.are_unlike and ctx.run.exact and ctx.run.exact(ctx.site.name) is not True:
        x = parts.numbers(ctx, config, layout)
    else:
        x = ctx.eight_bit(activation, spec, keep)
    ctx.record(True, activations=described(x), range=range_source(ctx, activation), **facts)
    if parts is not None and ctx.run.probe.active:
        parts.show(ctx, x, range(len(parts.join.parts)), parts.join.places)
    if ctx.run.exact:
        return _of_exact_operands(ctx, operands, layout, x, w, parts)
    return _product(ctx, layout, x, w, choice.kernel)


def _product(ctx: Context, layout: Layout, x: QTensor, w: QTensor, kernel: str) -> Accumulator:
    """The product of two QTensors as the result of the equation."""
    transposition = ctx.run.transposed.get(id(w.values))
    if transposition is None:
        before = (w.values, tuple(range(w.values.ndim)))
    else:
        _, codes, permutation = transposition
        before = (codes, permutation)
    with at_site(ctx.site.name):
        result = accumulate(layout, x, w, kernel, np.dtype(ctx.eqn.outvars[0].aval.dtype), before)
    if ctx.site.weight is None and math.prod(w.scale.shape) > 1:
        return dataclasses.replace(result, everywhere=False)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    """An activation that was joined from parts along an axis that the contraction sums.

    Attributes:
      join: What the activation was joined from.
      groups: Which parts share a scale.
      axis: The axis of the weight that is summed along with the parts.
      layout_of: ``(activation shape, weight shape) -> layout``.
    """

    join: Join
    groups: list[Group]
    axis: int
    layout_of: Callable[[Shape, Shape], Layout]

    @property
    def are_unlike(self) -> bool:
        """Whether the parts need several products."""
        return len(self.groups) > 1

    def show(
        self, ctx: Context, x: QTensor, members: Iterable[int], places: Sequence[tuple[int, int]]
    ) -> None:
        """Shows the probe each of some parts with its codes, which lie at `places` in `x`."""
        for i, place in zip(members, places, strict=True):
            codes = cut(x, [place], self.join.dimension)
            ctx.run.probe.part(part_name(ctx.site.name, i), self.join.parts[i], codes)

    def encoded(self, ctx: Context, config: Config, group: Group, layout: Layout) -> QTensor:
        """The parts of a group, side by side, as codes of their common range; `layout` is that of their product."""
        spec, keep = _activation_spec(ctx, config, layout)
        if group.range is not None:
            spec, keep = dataclasses.replace(spec, granularity="tensor"), ()
        part = together(self.join.parts, group, self.join.dimension)
        name = part_name(ctx.site.name, group.members[0])
        return ctx.run_encode(part, name, config, spec, keep, fixed=group.range)

    def numbers(self, ctx: Context, config: Config, layout: Layout) -> QTensor:
        """The whole value while all values are exact: itself, or the numbers that the codes of its parts stand for."""
        pieces: list[Any] = [None] * len(self.join.parts)
        for group in self.groups:
            codes = self.encoded(ctx, config, group, layout)
            for i, (start, end) in zip(group.members, places_within(self.join, group), strict=True):
                pieces[i] = jax.lax.slice_in_dim(codes.values, start, end, axis=self.join.dimension)
        return dataclasses.replace(codes, values=jnp.concatenate(pieces, self.join.dimension))

    def products(self, ctx: Context, config: Config, w: QTensor, kernel: str) -> tuple[jax.Array, str]:
        """The sum of one product for each group, in float32, and a description of the codes of each group."""
        total, texts = jnp.float32(0), []
        for group in self.groups:
            places = [self.join.places[i] for i in group.members]
            weight = cut(w, places, self.axis)
            shape = list(self.join.data.shape)
            shape[self.join.dimension] = sum(end - start for start, end in places)
            layout = self.layout_of(tuple(shape), weight.shape)
            x = self.encoded(ctx, config, group, layout)
            total = total + decode(accumulate(layout, x, weight, kernel))
            texts.append(described(x))
            self.show(ctx, x, group.members, places_within(self.join, group))
        return total, "; ".join(texts)


def _parts_of(
    ctx: Context, activation: Value, layout: Layout, layout_of: Callable[[Shape, Shape], Layout]
) -> _Parts | None:
    """The parts of a joined activation; None if it is no join, or the joined axis is not summed."""
    join = join_of(ctx, activation)
    if join is None:
        return None
    axis = layout.summed(join.dimension)
    if axis is None:
        return None
    return _Parts(join, groups(ctx, ctx.site.name, join.parts), axis, layout_of)


def _sum_of_parts(ctx: Context, parts: _Parts, w: QTensor, kernel: str, facts: dict[str, Any]) -> Array:
    """A contraction as the sum of the products of parts that do not share a scale."""
    total, activations = parts.products(ctx, ctx.config, w, kernel)
    forms = [reads(part) for part in parts.join.parts]
    # If a part is found in float, the plan says so.
    facts["reads"] = next((form for form in forms if form.startswith("float")), forms[0])
    ctx.record(True, activations=activations, range="of each part", **facts)
    return Array(total.astype(ctx.eqn.outvars[0].aval.dtype), stored=False)


def _of_exact_operands(
    ctx: Context, operands: tuple[Value, Value], layout: Layout, x: QTensor, w: QTensor, parts: _Parts | None
) -> Accumulator:
    """A contraction of exact values. The probe sees it, and can ask for the same contraction of their codes."""

    def of_codes() -> jax.Array:
        return _rounded(ctx, operands, layout, parts)

    ctx.run.probe.reads(ctx.site.name, layout, x, w)
    result = _product(ctx, layout, x, w, "simulate")
    ctx.run.probe.contracted(ctx.site.name, result, of_codes)
    return result


def _rounded(ctx: Context, operands: tuple[Value, Value], layout: Layout, parts: _Parts | None) -> jax.Array:
    """The contraction of the codes of exact operands, in float32: it differs by the error that this site alone adds."""
    inexact = dataclasses.replace(ctx, run=dataclasses.replace(ctx.run, exact=None, probe=Probe()))
    simulated = dataclasses.replace(inexact.config, kernels="simulate")
    activation, weight = operands
    axes = _weight_axes(weight, simulated, layout)
    w = inexact.run_encode(weight, ctx.site.name + ".rhs", simulated, _weight_spec(simulated), axes)
    if parts is not None and parts.are_unlike:
        return parts.products(inexact, simulated, w, "simulate")[0]
    # Whether rows have scales of their own is decided as in the exact evaluation, whose probe may be static.
    spec, keep = _activation_spec(ctx, ctx.config, layout)
    x = inexact.run_encode(activation, ctx.site.name, simulated, spec, keep)
    return decode(accumulate(layout, x, w, "simulate"))


def _in_float(ctx: Context, operands: Sequence[Value], reason: Reason, detail: str, macs: int) -> Value:
    """Evaluates the equation in float, in a faster float form where there is one, and notes the reason in the plan."""
    values = float_modes.prepare(ctx, operands)
    if reason is Reason.DTYPE and _is_eight_bit_already(ctx, values):
        ctx.record(
            True, detail=detail, shapes=shapes_of(ctx.eqn), macs=macs, kernel="as written: integers already"
        )
    else:
        codes = next((described(v) for v in operands if isinstance(v, QTensor)), "")
        ctx.record(False, reason, detail=detail, shapes=shapes_of(ctx.eqn), macs=macs, weights=codes)
    result: Value | None = float_modes.better_float(ctx, values)
    if result is None:
        result = float_fallback(dataclasses.replace(ctx, quiet=True), values)[0]
    return float_modes.finish(ctx, result)


def _is_eight_bit_already(ctx: Context, values: Sequence[Value]) -> bool:
    """Whether this is a product of bytes summed in int32: one that the user wrote, or of a function quantized twice."""
    narrow = all(jnp.issubdtype(v.dtype, jnp.integer) and v.dtype.itemsize == 1 for v in values)
    return narrow and ctx.eqn.outvars[0].aval.dtype == jnp.int32


def _activation_spec(ctx: Context, config: Config, layout: Layout) -> tuple[Spec, Shape]:
    """The representation of an activation, and the axes that keep scales of their own.

    Rows (tokens) keep scales of their own only in dots, which sum each row separately, and only where ranges are measured.
    """
    spec = config.activations
    by_row = spec.granularity == "row" and bool(layout.row_axes) and not ctx.run.is_static(ctx.site.name)
    if by_row:
        return spec, layout.row_axes
    return dataclasses.replace(spec, granularity="tensor"), ()


def _weight_spec(config: Config) -> Spec:
    """The representation of a weight in an integer contraction.

    Weights in groups or with a code book become eight-bit codes with even steps there.
    """
    spec = config.weights
    if spec.granularity != "group" and not spec.has_book:
        return spec
    granularity = spec.granularity if spec.has_book else "channel"
    return dataclasses.replace(spec, bits=8, granularity=granularity, group=0, levels="even", symmetric=True)


def _weight_axes(weight: Value, config: Config, layout: Layout) -> tuple[int, ...]:
    """The axes of a weight that keep scales: the output channels. A weight that is given as codes keeps its scales."""
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
    nothing per element. The terms with zw vanish for symmetric weights. Where rows have zero points of their own, the term
    with zx is subtracted from the integers.

    Args:
      layout: Which axes are summed, and the canonical form.
      x: Activation with one scale, or one per row.
      w: Weight with one scale per output channel.
      kernel: Name of the kernel that runs the form.
      dtype: Float dtype that the result stands for.
      before: The weight's codes before they were transposed, and the permutation; None if the kernel should read `w` itself.
    """
    form, weight_codes = _weight_operand(layout, w, before)
    left = Operand.of(x, layout.activation(x.values))
    right = Operand.of(w, weight_codes).as_signed()
    run = KERNELS[kernel].run
    if left.zero is None:
        raw, weight_sums = run(form, left, right), None
    else:
        raw, weight_sums = run_with_sums(kernel, form, left, right)
    values = layout.result(raw)
    rows, scale = layout.row_scale(x.scale), layout.channel_scale(w.scale)
    if all(n == 1 for n in jnp.shape(rows)):
        rows, scale = None, rows * scale
    offset = jnp.zeros((1,) * values.ndim, jnp.float32)

    w_zero: Any = None
    if right.zero is not None:  # the term with zw and sum qx
        w_zero = layout.channel_scale(right.zero) if jnp.ndim(right.zero) else right.zero
        ones = Operand(jnp.ones_like(right.codes), signed=True)
        activation_sums = layout.result(run(form, left, ones))
        values = values - w_zero * activation_sums
    if left.zero is not None:  # the term with zx and sum qw, and the one with both zero points
        x_zero, sums = layout.row_scale(left.zero), layout.channel_sum(weight_sums)
        if w_zero is not None:
            sums = sums - w_zero * layout.form_terms
        # Where rows have zero points of their own, an offset would be as large as the integers: the integers are corrected.
        if rows is not None or is_outer(x_zero, sums):
            values = values - x_zero.astype(values.dtype) * sums
        else:
            offset = -scale * (x_zero.astype(jnp.float32) * sums.astype(jnp.float32))
    return Accumulator(values, scale, offset, dtype=dtype, rows=rows)


def _weight_operand(layout: Layout, w: QTensor, before: Any) -> tuple[Form, Any]:
    """The form that runs, and the weight's codes as it takes them: as they lie in memory where a kernel can read them so."""
    if before is not None and isinstance(layout, DotLayout):
        as_it_lies = layout.operand(*before)
        if as_it_lies is not None:
            return as_it_lies
    return layout.form, layout.weight(w.values)
