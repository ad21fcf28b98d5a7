"""The evaluator: ``quantize(f) :: (array | QTensor) -> array``.

A function is traced to a jaxpr, and its equations are evaluated in order with *values* (`jaxq8.evaluation.values`) in place of
arrays. A *rule* says what an operation does with eight-bit values; this file has no rules. For conv -> bias -> relu -> conv::

    conv   (QTensor, QTensor) -> Accumulator(int32, scale, offset)
    add    (Accumulator, Broadcast) -> Accumulator, its offset moved
    relu   (Accumulator) -> Accumulator, its lower clip at 0
    conv   asks for codes: one pass from int32 to eight bits, then as above

An equation that has no rule, or whose rule returns NotImplemented, is evaluated in float as it stands, with all its parameters.

Sharp edge: a value with several readers, one of which needs codes, is encoded where it is made, and all readers see the codes.
So results depend on which equations read a value, but never on the order in which they read it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, bind, name_stack, source_line, stored, user_source
from jaxq8.analysis.decoder_caches import Caches
from jaxq8.analysis.sites import Analysis, Path, Site, operation, site_op
from jaxq8.analysis.trails import moved_only
from jaxq8.config import Config
from jaxq8.errors import QuantizationError, RuleError
from jaxq8.evaluation import encoding
from jaxq8.evaluation.equations import is_foldable, makes_view, shapes_of, with_origins
from jaxq8.evaluation.one_pass import Encoding
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Accumulator, Array, Value, is_quantized, to_real
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import LearnedRange, Range, Ranges
from jaxq8.numerics.rounding import get_rounding
from jaxq8.numerics.spec import Spec
from jaxq8.plan import Reason, Recorder, SiteRecord

# ``rule(ctx, *values, **params) -> Value``, a list of them for a primitive with several results, or NotImplemented.
Rule = Callable[..., Any]
Registered = TypeVar("Registered", bound=Rule)
RULES: dict[Any, Rule] = {}


def register_rule(*primitives: Any) -> Callable[[Registered], Registered]:
    """Registers what primitives mean for eight-bit values; use as a decorator.

    A rule is called as ``rule(ctx, *values, **params)`` with the equation's operands as values (`jaxq8.values`) and its
    parameters. It returns a `Value` that stands for an array of the equation's shape and dtype, or a list of values for a
    primitive with several results. If it returns NotImplemented, the equation is evaluated in float.

    Args:
      *primitives: JAX primitives (`jax.lax.add_p`, or one of your own), or the name of one that has no public handle.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      RuleError: A primitive has a rule already.

    Example:
      >>> from jax.extend.core import primitives
      >>> from jaxq8.values import Array
      >>> @q8.register_rule(primitives.erfc_p)  # never below 0 or above 2, so its range need not be measured
      ... def erfc(ctx, x, **params):
      ...     return Array(primitives.erfc_p.bind(ctx.real(x), **params), lo=0.0, hi=2.0)
    """

    def register(function: Registered) -> Registered:
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
    """What stays the same during one evaluation of a whole function.

    Attributes:
      config: The configuration.
      ranges: The given ranges.
      analysis: The sites and weights of the function.
      recorder: Collects the plan.
      repeats: How often the body that is evaluated runs: the product of the lengths of the scans around it.
      probe: Looks at the values.
      exact: ``name of a range -> Encoding.exact``; None if all values become codes.
      transposed: id of transposed codes -> (the transposed codes, the codes before, the permutation). The codes are kept here
        so that no other array gets their id.
      joins: id of joined data -> `rules.joined.Join`.
    """

    config: Config
    ranges: Ranges
    analysis: Analysis
    recorder: Recorder
    repeats: int = 1
    probe: Probe = dataclasses.field(default_factory=Probe)
    exact: Callable[[str], Any] | None = None
    transposed: dict[int, tuple[Any, Any, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    joins: dict[int, Any] = dataclasses.field(default_factory=dict)

    def site_config(self, site: Site) -> Config:
        return self.config.for_site(site.name, site.op)

    def is_static(self, name: str) -> bool:
        """Whether the range of a site does not depend on this run."""
        return name in self.ranges or self.probe.static


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule is given beside its operands: the equation, its site, the ways to encode a value, and the plan.

    Attributes:
      run: The evaluation that the equation belongs to.
      eqn: The equation.
      path: Its place in the whole function.
      quiet: Whether the rule has already recorded this equation.
      encoded: Codes that other readers of a value have made: (id of the value, keep, how) -> (the value, its codes). The value
        is kept so that no other value gets its id.
    """

    run: Run
    eqn: Any
    path: Path
    quiet: bool = False
    encoded: dict[Any, tuple[Value, QTensor]] = dataclasses.field(default_factory=dict)

    @property
    def site(self) -> Site:
        """The equation's site. An equation that the analysis gave no name is named after its scopes."""
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
        """The configuration of this site, with its overrides applied."""
        return self.run.site_config(self.site)

    def real(self, value: Value) -> Any:
        """The float array that a value stands for."""
        return to_real(value)

    def eight_bit(
        self, value: Value, spec: Spec | None = None, keep: tuple[int, ...] | None = None, suffix: str = ""
    ) -> QTensor:
        """Codes of a value: those that it has, or new ones by a known, given or measured range.

        Args:
          value: Any value of float dtype.
          spec: Representation; by default that of the site's activations.
          keep: Axes that keep scales of their own; by default those of the spec's granularity.
          suffix: Added to the site's name to make the name of the range, where one site has several operands.
        """
        name = self.site.name + suffix
        return self.run_encode(value, name, self.config, spec or self.config.activations, keep)

    def run_encode(
        self, value: Value, name: str, config: Config, spec: Spec, keep: tuple[int, ...] | None = None,
        fixed: Range | None = None,
    ) -> QTensor:  # fmt: skip
        """`eight_bit` with the name of the range and the configuration given; `fixed` is the range, if it is known."""
        how = self._encoding(name, config, spec)
        if fixed is not None:
            how = dataclasses.replace(how, fixed=fixed)
        codes = self._encode_once(value, how, keep)
        here = self.run.analysis.sites.get(self.path)  # None where an argument of the function is encoded
        is_weight = here is not None and here.weight is not None and name.endswith(".rhs")
        if codes is not value and not is_weight:
            self.run.probe.see(name, value, codes)
        return codes

    def _encode_once(self, value: Value, how: Encoding, keep: tuple[int, ...] | None) -> QTensor:
        """Codes of a value, shared by all readers that encode it in the same way (the projections of an attention)."""
        if how.rounding.keyed or how.exact is not False or isinstance(how.fixed, LearnedRange):
            return encoding.encode(value, how, keep)
        key = (id(value), keep, how)
        if key not in self.encoded:
            self.encoded[key] = value, encoding.encode(value, how, keep)
        return self.encoded[key][1]

    @property
    def reader(self) -> str | None:
        """The first site that needs codes of the equation's result; None if no site does."""
        return self.run.analysis.wanted.get(self.path[:-1], {}).get(self.eqn.outvars[0])

    def encode_for_reader(self, value: Value) -> QTensor | None:
        """Codes of an operand that this equation only moves, if a later site needs codes of the result; else None."""
        return None if self.reader is None else self.encode_for(value, self.reader)

    def encode_for(self, value: Value, site: str) -> QTensor | None:
        """Codes with one scale on behalf of a later site; None if it is a dot with a scale per row.

        Which axes are the rows of a dot is known at the dot alone.
        """
        op = site_op(site)
        config = self.run.config.for_site(site, op)
        spec = config.activations
        if spec.granularity == "row" and op == "dot" and not self.run.is_static(site):
            return None
        return self.run_encode(value, site, config, dataclasses.replace(spec, granularity="tensor"))

    def eight_bit_together(self, values: Sequence[Value], dimension: int) -> QTensor:
        """Codes of several values that share one range, joined along an axis."""
        spec = dataclasses.replace(self.config.activations, granularity="tensor")
        how = self._encoding(self.site.name, self.config, spec)
        codes = encoding.encode_together(values, how, dimension)
        self.run.probe.see(self.site.name, codes, codes)
        return codes

    def _encoding(self, name: str, config: Config, spec: Spec) -> Encoding:
        """How a value becomes codes under the name of its range."""
        scheme = get_rounding(config.rounding)
        key = None
        if scheme.keyed:
            key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
        return Encoding(
            spec=spec, fixed=self.run.ranges.get(name), rounding=scheme, key=key,
            simulate=config.kernels == "simulate" or config.mode == "simulate", saturate=config.nonfinite == "saturate",
            exact=self.run.exact(name) if self.run.exact else False,
        )  # fmt: skip

    def record(self, eight_bit: bool, reason: Reason = Reason.EIGHT_BIT, **fields: Any) -> None:
        """Notes in the plan how this equation was evaluated."""
        site = self.site
        fields.setdefault("source", source_line(self.eqn))
        self.run.recorder.add(SiteRecord(site.name, site.op, eight_bit, reason, **fields))

    def inner(self, callee_key: str) -> Path:
        """The path of a function inside this equation."""
        return (*self.path, callee_key)


def evaluate(jaxpr: Any, consts: Sequence[Any], values: Sequence[Value], run: Run, path: Path) -> list[Value]:
    """Evaluates a jaxpr, or a part of one, on values; `path` is its place in the whole function."""
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, map(Array, consts), strict=True))
    for variable, value in zip(jaxpr.invars, values, strict=True):
        env[variable] = _settle(value, variable, path, Context(run, None, path))
    encoded: dict[Any, tuple[Value, QTensor]] = {}
    caches = Caches(jaxpr)

    def read(atom: Any) -> Value:
        return Array(np.asarray(atom.val)) if isinstance(atom, Literal) else env[atom]

    for index, eqn in enumerate(jaxpr.eqns):
        if eqn is None:  # a part of a jaxpr has None in the place of each equation that is left out
            continue
        context = Context(run, eqn, (*path, index), encoded=encoded)
        operands = [read(v) for v in eqn.invars]
        source = caches.source(index)
        if source is not None and _is_traced(env[source]):
            results = _updated(context, operands, caches, env[source])
        else:
            results = _apply(context, operands)
        for variable, value in zip(eqn.outvars, results, strict=True):
            env[variable] = _settle(value, variable, path, context)
    return [read(v) for v in jaxpr.outvars]


def _settle(value: Value, variable: Any, scope: Path, context: Context) -> Value:
    """Encodes a value where it is made, if several equations of the scope read it and one of them needs its codes.

    Integer data is replaced by its codes, because every reader would have to decode it. A float array keeps both forms.
    """
    analysis = context.run.analysis
    site = analysis.wanted.get(scope, {}).get(variable)
    if site is None or isinstance(value, QTensor) or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    readers: Any = analysis.readers.get(scope, {})
    if readers.get(variable, 0) < 2:
        return value
    codes = context.encode_for(value, site)
    if codes is None:
        return value
    # Stored, because each reader would otherwise compute the codes again, and with them all residual sums that lead to them.
    codes = dataclasses.replace(codes, values=stored(codes.values))
    if isinstance(value, Accumulator) or (isinstance(value, Array) and not value.stored):
        return codes
    return dataclasses.replace(value, codes=codes) if isinstance(value, Array) else value


def _apply(ctx: Context, values: list[Value]) -> list[Value]:
    """Evaluates one equation: by folding constants, by its rule, or in float."""
    eqn = ctx.eqn
    with user_source(eqn):
        if is_foldable(eqn, values):
            with jax.ensure_compile_time_eval():
                folded = bind(eqn, [v.array for v in values])  # type: ignore[union-attr]
            return [Array(np.asarray(a)) for a in folded]
        function = RULES.get(eqn.primitive) or RULES.get(eqn.primitive.name)
        try:
            result = NotImplemented if function is None else function(ctx, *values, **eqn.params)
        except QuantizationError as error:
            raise _located(error, ctx) from error
        if result is NotImplemented:
            return [with_origins(eqn, values, r) for r in float_fallback(ctx, values)]
    results = list(result) if eqn.primitive.multiple_results else [result]
    for value, variable in zip(results, eqn.outvars, strict=True):
        if tuple(value.shape) != tuple(variable.aval.shape):
            raise RuleError(
                f"the rule {_where(function)} for {eqn.primitive} returned shape {tuple(value.shape)} at {ctx.site.name}; "
                f"the equation has {tuple(variable.aval.shape)}"
            )
    return [with_origins(eqn, values, r) for r in results]


def _is_traced(value: Value) -> bool:
    """Whether a value is a traced array. Outside of a trace, each update of the whole array would copy it."""
    return isinstance(value, Array) and isinstance(value.array, jax.core.Tracer)


def _updated(ctx: Context, values: list[Value], caches: Caches, source: Value) -> list[Value]:
    """Evaluates an update of a slice, or the stack of all slices, as an update of the array that the slices came from."""
    eqn = ctx.eqn
    _record_decoded(ctx, values, Reason.NO_RULE)
    with user_source(eqn):
        result = caches.result(ctx.path[-1], eqn, [to_real(v) for v in values], to_real(source))
    return [Array(result, maker=eqn)]


def float_fallback(ctx: Context, values: Sequence[Value], reason: Reason = Reason.NO_RULE) -> list[Value]:
    """Evaluates an equation in float with all its parameters; records it if eight-bit data is decoded for it."""
    eqn = ctx.eqn
    arrays = [to_real(v) for v in values]
    _record_decoded(ctx, values, reason)
    is_view = makes_view(eqn, values)
    maker = values[0].maker if moved_only(eqn) and isinstance(values[0], Array) else eqn
    return [Array(a, stored=not is_view, maker=maker) for a in bind(eqn, arrays)]


def _record_decoded(ctx: Context, values: Sequence[Value], reason: Reason) -> None:
    if not ctx.quiet and any(is_quantized(v) for v in values):
        ctx.record(False, reason, shapes=shapes_of(ctx.eqn))


def _located(error: QuantizationError, ctx: Context) -> QuantizationError:
    """The error with the site and the user's line in its text; an error that has them already is returned unchanged."""
    if getattr(error, "located", False):
        return error
    line = source_line(ctx.eqn)
    place = f"{ctx.site.name}, {line}" if line else ctx.site.name
    located = type(error)(f"{error} [site {place}]")
    located.located = True  # type: ignore[attr-defined]
    return located


def _where(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
