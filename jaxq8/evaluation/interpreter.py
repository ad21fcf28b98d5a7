"""The evaluator: ``quantize(f) :: (array | QTensor) -> array``.

A function is traced to a jaxpr, and its equations are evaluated in order with *values* (`jaxq8.evaluation.values`) in place of
arrays. What eight bits mean for an operation is a *rule*; this file knows none of them. For conv -> bias -> relu -> conv::

    conv   (QTensor, QTensor) -> Accumulator(int32, scale, offset)
    add    (Accumulator, Broadcast) -> Accumulator, its offset moved
    relu   (Accumulator) -> Accumulator, its lower clip at 0
    conv   asks for codes: one pass from int32 to eight bits, then as above

An equation without a rule, or whose rule returns NotImplemented, is evaluated in float as it stands, with all its parameters.

Sharp edges: a value with several readers, one of which needs codes, is encoded where it is made, and all readers see the
codes; so results depend on who reads a value, never on the order of reading.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, bind, name_stack, source_line, stored, user_source
from jaxq8.analysis.decoder_caches import Caches
from jaxq8.analysis.elementwise import ELEMENTWISE
from jaxq8.analysis.inner_functions import CONTROL, INLINED, callees
from jaxq8.analysis.sites import Analysis, Path, Site, moved_only, operation, site_op
from jaxq8.config import Config
from jaxq8.errors import QuantizationError, RuleError
from jaxq8.evaluation import encoding, nan_through_ranges
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Accumulator, Array, Broadcast, Value, is_quantized, to_real
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import LearnedRange, Range, Ranges
from jaxq8.numerics.rounding import get_rounding
from jaxq8.numerics.sizes import certainly_less
from jaxq8.numerics.spec import Spec
from jaxq8.plan import Reason, Recorder, SiteRecord

# ``rule(ctx, *values, **params) -> Value``, a list of them for a primitive with several results, or NotImplemented.
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def register_rule(*primitives: Any) -> Callable[[Rule], Rule]:
    """Registers what primitives mean for eight-bit values; use as a decorator.

    A rule is called as ``rule(ctx, *values, **params)`` with the equation's operands as values (`jaxq8.evaluation.values`) and
    its parameters. It returns a `Value` that stands for an array of the equation's shape and dtype (a list of them for a
    primitive with several results), or NotImplemented: then the equation is evaluated in float.

    Args:
      *primitives: JAX primitives (`jax.lax.add_p`, or one of your own), or the name of one that has no public handle.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      RuleError: A primitive has a rule already.

    Example:
      >>> @register_rule(my_primitive)
      ... def my_rule(ctx, x, **params):
      ...     return Array(my_function(ctx.real(x)))
    """

    def register(function: Rule) -> Rule:
        for primitive in primitives:
            taken = RULES.get(primitive)
            if taken is not None and taken is not function:
                raise RuleError(
                    f"primitive {primitive} already has the rule {_where(taken)}; {_where(function)} would replace it"
                )
            RULES[primitive] = function
        return function

    return register


rule = register_rule


@dataclasses.dataclass(frozen=True)
class Run:
    """What holds for one evaluation of a whole function."""

    config: Config
    ranges: Ranges
    analysis: Analysis
    recorder: Recorder
    repeats: int = 1  # how often the body being evaluated runs: the length of the scans around it
    probe: Probe = dataclasses.field(default_factory=Probe)
    exact: Callable[[str], Any] | None = None  # which encodings keep the real numbers: see `Encoding.exact`
    # Codes that are a transposition of others: id -> (they themselves, the others, the permutation).
    transposed: dict[int, tuple[Any, Any, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    joins: dict[int, Any] = dataclasses.field(default_factory=dict)  # what was joined: see `rules.joined`

    def site_config(self, site: Site) -> Config:
        return self.config.for_site(site.name, site.op)

    def is_static(self, name: str) -> bool:
        """Whether the range of a site does not depend on this run."""
        return name in self.ranges or self.probe.static


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may ask about its equation: the only way from float to integer, the site, and the recording."""

    run: Run
    eqn: Any
    path: Path
    quiet: bool = False  # the rule has recorded this equation itself
    # What readers of the same values have encoded already: (id, keep, how) -> (the value itself, its codes).
    encoded: dict[Any, tuple[Value, QTensor]] = dataclasses.field(default_factory=dict)

    @property
    def site(self) -> Site:
        """The equation's site; named by its scopes if the analysis gave it no name."""
        known = self.run.analysis.sites.get(self.path)
        if known is not None:
            return known
        if self.eqn is None:  # an input with several readers, encoded where the function or body begins
            return Site("", "")
        op = operation(self.eqn.primitive) or str(self.eqn.primitive)
        scope = name_stack(self.eqn)
        return Site(f"{scope}:{op}" if scope else op, op)

    @property
    def config(self) -> Config:
        """The configuration of this site, overrides applied."""
        return self.run.site_config(self.site)

    def real(self, value: Value) -> Any:
        """The float array that a value stands for."""
        return to_real(value)

    def eight_bit(
        self, value: Value, spec: Spec | None = None, keep: tuple[int, ...] | None = None, suffix: str = ""
    ) -> QTensor:
        """Codes of a value: those it has, or by a known, given or measured range.

        Args:
          value: Any value of float dtype.
          spec: Representation; default the site's activations.
          keep: Axes that keep scales of their own; default from the spec.
          suffix: Added to the site's name where one site has several activations.
        """
        name = self.site.name + suffix
        return self.run_encode(value, name, self.config, spec or self.config.activations, keep)

    def run_encode(
        self, value: Value, name: str, config: Config, spec: Spec, keep: tuple[int, ...] | None = None,
        fixed: Range | None = None,
    ) -> QTensor:  # fmt: skip
        """`eight_bit` under a given name, for values that are encoded on behalf of a later site; `fixed` is their range."""
        how = self._encoding(name, config, spec)
        how = how if fixed is None else dataclasses.replace(how, fixed=fixed)
        codes = self._encode_once(value, how, keep)
        here = self.run.analysis.sites.get(self.path)  # None where the argument of a function is encoded
        weight = here is not None and here.weight is not None and name.endswith(".rhs")
        if codes is not value and not weight:
            self.run.probe.see(name, value, codes)
        return codes

    def _encode_once(self, value: Value, how: encoding.Encoding, keep: tuple[int, ...] | None) -> QTensor:
        """Codes of a value, or those that another reader made of it in the same way (the projections of an attention)."""
        if how.rounding.keyed or how.exact is not False or isinstance(how.fixed, LearnedRange):
            return encoding.encode(value, how, keep)
        key = (id(value), keep, how)
        if key not in self.encoded:
            self.encoded[key] = value, encoding.encode(value, how, keep)
        return self.encoded[key][1]

    @property
    def reader(self) -> str | None:
        """The site that needs codes of the equation's result first, if one does."""
        return self.run.analysis.wanted.get(self.path[:-1], {}).get(self.eqn.outvars[0])

    def encode_for_reader(self, value: Value) -> QTensor | None:
        """Codes of an operand that this equation only moves, where a later site needs codes of the result; else None."""
        return None if self.reader is None else self.encode_for(value, self.reader)

    def encode_for(self, value: Value, site: str) -> QTensor | None:
        """Codes with one scale on behalf of a later site; None for rows: a dot sums over axes that are its own affair."""
        op = site_op(site)
        config = self.run.config.for_site(site, op)
        spec = config.activations
        if spec.granularity == "row" and op == "dot" and not self.run.is_static(site):
            return None
        return self.run_encode(value, site, config, dataclasses.replace(spec, granularity="tensor"))

    def eight_bit_together(self, values: Sequence[Value], dimension: int) -> QTensor:
        """Codes of several values with the one range that holds all of them, joined along an axis."""
        spec = dataclasses.replace(self.config.activations, granularity="tensor")
        how = self._encoding(self.site.name, self.config, spec)
        codes = encoding.encode_together(values, how, dimension)
        self.run.probe.see(self.site.name, codes, codes)
        return codes

    def _encoding(self, name: str, config: Config, spec: Spec) -> encoding.Encoding:
        scheme = get_rounding(config.rounding)
        key = (
            jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
            if scheme.keyed
            else None
        )
        return encoding.Encoding(
            spec=spec, fixed=self.run.ranges.get(name), rounding=scheme, key=key,
            simulate=config.kernels == "simulate" or config.mode == "simulate", saturate=config.nonfinite == "saturate",
            exact=self.run.exact(name) if self.run.exact else False,
        )  # fmt: skip

    def record(self, eight_bit: bool, reason: Reason = Reason.EIGHT_BIT, **fields: Any) -> None:
        """Notes in the plan what became of this equation."""
        site = self.site
        fields.setdefault("source", source_line(self.eqn))
        self.run.recorder.add(SiteRecord(site.name, site.op, eight_bit, reason, **fields))

    def inner(self, callee_key: str) -> Path:
        """The path of the scope of a function inside this equation."""
        return (*self.path, callee_key)


def evaluate(jaxpr: Any, consts: Sequence[Any], values: Sequence[Value], run: Run, path: Path) -> list[Value]:
    """Evaluates a jaxpr, or a part of one, on values; `path` says where it stands in the whole function."""
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(Array, consts), strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    readers: Any = run.analysis.readers.get(path, {})
    wanted = run.analysis.wanted.get(path, {})
    encoded: dict[Any, tuple[Value, QTensor]] = {}

    def read(atom: Any) -> Value:
        return Array(np.asarray(atom.val)) if isinstance(atom, Literal) else env[atom]

    for variable in jaxpr.invars:
        env[variable] = _settle(env[variable], variable, readers, wanted, run, path)
    caches = Caches(jaxpr)
    for index, eqn in enumerate(jaxpr.eqns):
        if eqn is None:  # left out of this part
            continue
        here = (*path, index)
        context = Context(run, eqn, here, encoded=encoded)
        operands = [read(v) for v in eqn.invars]
        source = caches.source(index)
        if source is None or not _is_traced(env[source]):
            results = _apply(context, operands)
        else:
            results = _updated(context, operands, caches, env[source])
        for variable, value in zip(eqn.outvars, results, strict=True):
            env[variable] = _settle(value, variable, readers, wanted, run, here, context)
    return [read(v) for v in jaxpr.outvars]


def _settle(
    value: Value,
    variable: Any,
    readers: Any,
    wanted: Any,
    run: Run,
    path: Path,
    context: Context | None = None,
) -> Value:
    """Encodes a value where it is made if several equations read it and one of them needs its codes.

    Integer data that every reader would decode again is replaced by its codes; a float array keeps both forms.
    """
    site = wanted.get(variable)
    if site is None or readers.get(variable, 0) < 2 or isinstance(value, QTensor) or not _is_float(value):
        return value
    codes = (context or Context(run, None, path)).encode_for(value, site)
    if codes is None:
        return value
    # In memory: each reader would otherwise compute the chain behind them again, through one residual sum after another.
    codes = dataclasses.replace(codes, values=stored(codes.values))
    if isinstance(value, Accumulator) or (isinstance(value, Array) and not value.stored):
        return codes
    return dataclasses.replace(value, codes=codes) if isinstance(value, Array) else value


def _is_float(value: Value) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _apply(ctx: Context, values: list[Value]) -> list[Value]:
    """Evaluates one equation: by folding constants, by its rule, or in float."""
    eqn = ctx.eqn
    with user_source(eqn):
        if _foldable(eqn, values):
            with jax.ensure_compile_time_eval():
                return [Array(np.asarray(a)) for a in bind(eqn, [v.array for v in values])]  # type: ignore[union-attr]
        function = RULES.get(eqn.primitive) or RULES.get(eqn.primitive.name)
        try:
            result = NotImplemented if function is None else function(ctx, *values, **eqn.params)
        except QuantizationError as error:
            raise _located(error, ctx) from error
        if result is NotImplemented:
            return [_with_origins(eqn, values, r) for r in float_fallback(ctx, values)]
    results = list(result) if eqn.primitive.multiple_results else [result]
    for value, variable in zip(results, eqn.outvars, strict=True):
        if tuple(value.shape) != tuple(variable.aval.shape):
            raise RuleError(
                f"the rule {_where(function)} for {eqn.primitive} returned shape {tuple(value.shape)} at {ctx.site.name}; "
                f"the equation has {tuple(variable.aval.shape)}"
            )
    return [_with_origins(ctx.eqn, values, result) for result in results]


def _with_origins(eqn: Any, operands: Sequence[Value], result: Value) -> Value:
    """A float result with what is known of NaN in it: see `jaxq8.evaluation.nan_through_ranges`."""
    if not isinstance(result, Array | Broadcast) or eqn.primitive in INLINED:
        return result
    data = result.small if isinstance(result, Broadcast) else result.array
    return dataclasses.replace(result, origins=nan_through_ranges.inherited(eqn.primitive, operands, data))


def _is_traced(value: Value) -> bool:
    """Whether a value is an array that is only known while tracing: with real ones each update would be a copy."""
    return isinstance(value, Array) and isinstance(value.array, jax.core.Tracer)


def _updated(ctx: Context, values: list[Value], caches: Caches, source: Value) -> list[Value]:
    """Evaluates an update of a slice, or the stack of all slices, as an update of the array that they came from."""
    eqn = ctx.eqn
    _record_decoded(ctx, values, Reason.NO_RULE)
    with user_source(eqn):
        result = caches.result(ctx.path[-1], eqn, [to_real(v) for v in values], to_real(source))
    return [Array(result, maker=eqn)]


def float_fallback(ctx: Context, values: Sequence[Value], reason: Reason = Reason.NO_RULE) -> list[Value]:
    """Evaluates an equation in float, all parameters kept; records it if eight-bit data is decoded for it."""
    eqn = ctx.eqn
    arrays = [to_real(v) for v in values]
    _record_decoded(ctx, values, reason)
    elementwise = eqn.primitive in ELEMENTWISE
    views = (
        elementwise
        and any(_is_view(v) for v in values)
        and all(_is_view(v) or _is_small(v, eqn) for v in values)
    )
    maker = values[0].maker if moved_only(eqn) and isinstance(values[0], Array) else eqn
    return [Array(a, stored=not views, maker=maker) for a in bind(eqn, arrays)]


def _record_decoded(ctx: Context, values: Sequence[Value], reason: Reason) -> None:
    if not ctx.quiet and any(is_quantized(v) for v in values):
        ctx.record(False, reason, shapes=shapes_of(ctx.eqn))


def _is_view(value: Value) -> bool:
    return is_quantized(value) or (isinstance(value, Array) and not value.stored)


def _is_small(value: Value, eqn: Any) -> bool:
    """A per-channel vector or a scalar; a mean over channels (layer norm) is not: its result is worth keeping in float."""
    if not isinstance(value, Array):
        return True
    return certainly_less(math.prod(value.shape), (value.shape[-1] if value.shape else 1) + 1)


def _foldable(eqn: Any, values: Sequence[Value]) -> bool:
    """Scalars that are known while tracing stay known: a rule may need to see that a clip is at 6."""
    if not values or eqn.primitive in INLINED | CONTROL or eqn.effects or eqn.primitive.multiple_results:
        return False
    known = all(
        isinstance(v, Array) and isinstance(v.array, np.ndarray) and v.array.size == 1 for v in values
    )
    out = eqn.outvars[0].aval
    plain = jnp.issubdtype(out.dtype, jnp.number) or jnp.issubdtype(out.dtype, jnp.bool_)
    return known and plain and math.prod(out.shape) == 1 and not callees(eqn)


def shapes_of(eqn: Any) -> str:
    """Shapes of operands and first result, for the Plan: ``16x32, 32x64 -> 16x64``."""
    ins = ", ".join("x".join(map(str, v.aval.shape)) or "()" for v in eqn.invars if hasattr(v.aval, "shape"))
    return f"{ins} -> {'x'.join(map(str, eqn.outvars[0].aval.shape)) or '()'}" if eqn.outvars else ins


def _located(error: QuantizationError, ctx: Context) -> QuantizationError:
    """The same error with the site and the user's line in its text (once, however deep the site lies)."""
    if getattr(error, "located", False):
        return error
    line = source_line(ctx.eqn)
    located = type(error)(f"{error} [site {ctx.site.name}{', ' + line if line else ''}]")
    located.located = True  # type: ignore[attr-defined]
    return located


def _where(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
