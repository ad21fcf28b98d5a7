"""`Config`: what the user chooses about how a function is quantized."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Mapping
from typing import Any

from jaxq8.errors import SpecError
from jaxq8.numerics.ranges import Range
from jaxq8.numerics.rounding import RoundingFunction, get_rounding
from jaxq8.numerics.spec import Spec

MODES = ("eightbit", "weights", "weights_rounded", "round", "simulate", "off")
KERNELS = ("auto", "xla", "native", "reference", "simulate")
NONFINITE = ("propagate", "saturate")

WEIGHTS = Spec(symmetric=True, granularity="channel")
# Dots have one scale per row (token, example); convolutions, which sum over positions, have one per tensor.
ACTIVATIONS = Spec(symmetric=False, granularity="row")

Changes = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """How `quantize` treats a function.

    Attributes:
      mode: "eightbit" (integer arithmetic), "weights" (weights stored in eight bits, float arithmetic), "weights_rounded"
        (the same numbers, kept as float32), "round" (outputs of contractions rounded to ``2**bits`` steps, in float),
        "simulate" (eight-bit codes carried in float, differentiable), or "off" (float arithmetic throughout, which still
        takes the faster float kernels).
      weights: `Spec` of weights.
      activations: `Spec` of activations. Its granularity "row" applies to dots whose range is found in the run; convolutions,
        pooling, and sites with a given range have one scale per tensor.
      rounding: Name of a registered rounding, or a function ``f(x) -> rounded``.
      overrides: ``((pattern, changes), ...)``. A pattern is a glob over site names, or ``op:dot``, ``op:conv``, ...; the
        changes are other values of mode, weights, activations, rounding, kernels, nonfinite or attention for the sites that
        match. Later entries win.
      kernels: "auto" (float where eight bits do not pay, and native regions of two or more contractions where weights are
        packed by `pack`), "xla" (eight bits everywhere, no native regions), "native" (eight bits everywhere, and native regions
        of any size where weights are packed), "reference", or "simulate".
      nonfinite: What NaN or infinity in the data does: "propagate" (the results are NaN, as in float) or "saturate"
        (infinities clip to the ends of the range of the finite values, NaN becomes zero).
      attention: Also quantize batched products of two activations (the scores and weighted sums of attention). They stay in
        float by default, because they cost little time and lose the most accuracy.
      batch_blocks: Run a large batch in blocks of examples, which is up to twice as fast on CPU. This happens only where the
        function treats its examples one by one (which is checked, not assumed) and its temporary data would exceed the
        caches. A range that is found in the run is then that of a block.
      seed: Seed of roundings that draw random numbers.

    Raises:
      SpecError: A value is unknown; the message lists the known ones.

    Example:
      >>> four = {"weights": q8.Spec(bits=4, symmetric=True)}
      >>> config = q8.Config(overrides=(("*/Dense_1/*", {"mode": "off"}), ("op:dot", four)))
      >>> [site.weights for site in q8.explain(model.apply, variables, images, config=config).sites if site.eight_bit]
      ['s4 symmetric, 1 scale']
    """

    mode: str = "eightbit"
    weights: Spec = WEIGHTS
    activations: Spec = ACTIVATIONS
    rounding: str | RoundingFunction = "half_even"
    overrides: tuple[tuple[str, Any], ...] = ()
    kernels: str = "auto"
    nonfinite: str = "propagate"
    attention: bool = False
    batch_blocks: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("kernels", self.kernels, KERNELS)
        _one_of("nonfinite", self.nonfinite, NONFINITE)
        get_rounding(self.rounding)
        for spec, role in ((self.weights, "weights"), (self.activations, "activations")):
            if not isinstance(spec, Spec) or spec.bits > 8:
                raise SpecError(f"Config({role}={spec!r}): expected a Spec of 2 to 8 bits")
        if self.activations.granularity == "group":
            raise SpecError(
                "Config(activations=...): groups are for weights; use granularity 'row' or 'tensor'"
            )
        if self.activations.has_book:
            raise SpecError("Config(activations=...): code books are for weights; use levels='even'")
        object.__setattr__(self, "overrides", tuple(_override(entry) for entry in self.overrides))

    def to_json(self) -> str:
        """Returns one line of JSON that `from_json` reads.

        Raises:
          SpecError: A rounding is a function, in this configuration or in an override; register it and use its name.
        """
        return json.dumps(_fields_to_json(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Reads what `to_json` wrote.

        Raises:
          SpecError: The text is not JSON of that form, or holds values that this version does not know.
        """
        try:
            return cls(**_fields_from_json(cls, json.loads(text)))
        except SpecError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SpecError(f"config: cannot be read ({error}); write it with Config.to_json()") from error

    def for_site(self, name: str, op: str) -> Config:
        """The configuration of one site: this one, changed by the overrides that match the site, in their order."""
        site = self
        for pattern, changes in self.overrides:
            if matches(pattern, name, op):
                site = dataclasses.replace(site, **dict(changes), overrides=())
        return dataclasses.replace(site, overrides=()) if site.overrides else site

    @property
    def simulates(self) -> bool:
        """Whether codes are carried in float, where they have a derivative."""
        return self.kernels == "simulate" or self.mode == "simulate"

    def simulated(self) -> Config:
        """The same arithmetic in float with straight-through derivatives, at every site."""
        overrides = tuple((pattern, _without(changes, "kernels")) for pattern, changes in self.overrides)
        return dataclasses.replace(self, kernels="simulate", overrides=overrides)


def _without(changes: Changes, field: str) -> Changes:
    return tuple((name, value) for name, value in changes if name != field)


def matches(pattern: str, name: str, op: str) -> bool:
    """Whether an override's pattern addresses a site: a glob over its name, or ``op:KIND``."""
    if pattern.startswith("op:"):
        return fnmatch.fnmatchcase(op, pattern[3:])
    return fnmatch.fnmatchcase(name, pattern)


def _override(entry: Any) -> tuple[str, Changes]:
    """An override as a pair (pattern, sorted changes), with its fields and values checked."""
    try:
        pattern, changes = entry
        pairs = changes.items() if isinstance(changes, Mapping) else changes
        items = tuple(sorted(pairs))
    except (TypeError, ValueError):
        raise SpecError(
            f"Config(overrides=...): {entry!r} is not a pair (pattern, {{field: value}})"
        ) from None
    allowed = {field.name for field in dataclasses.fields(Config)} - {"overrides", "seed", "batch_blocks"}
    unknown = sorted(str(key) for key, _ in items if key not in allowed)
    if unknown:
        raise SpecError(
            f"override {pattern!r} changes {', '.join(unknown)}; known are {', '.join(sorted(allowed))}"
        )
    Config(**dict(items))  # refuses wrong values now, rather than when a site matches the pattern
    return str(pattern), items


def _one_of(field: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SpecError(f"Config({field}={value!r}): known are {', '.join(known)}")


def _fields_to_json(item: Any) -> Any:
    """A Config, a Spec, overrides or a plain value, in the form that JSON can hold."""
    if isinstance(item, Range):
        return [item.minimum, item.maximum]
    if isinstance(item, Spec | Config):
        return {f.name: _fields_to_json(getattr(item, f.name)) for f in dataclasses.fields(item)}
    if isinstance(item, tuple):  # the overrides, one override, or the changes of one
        return [_fields_to_json(entry) for entry in item]
    if callable(item):
        raise SpecError(
            f"rounding {item!r} is a function, which a file cannot hold; give it a name with q8.register_rounding"
        )
    return item


def _fields_from_json(kind: type, document: Any) -> dict[str, Any]:
    """Keyword arguments of a Config or Spec from JSON; unknown fields are refused."""
    if not isinstance(document, dict):
        raise SpecError(f"{kind.__name__.lower()}: expected a JSON object; write it with Config.to_json()")
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(document) - known):
        raise SpecError(f"{kind.__name__.lower()}: unknown fields {', '.join(unknown)}; upgrade jaxq8")
    return {name: _field_from_json(name, value) for name, value in document.items()}


def _field_from_json(name: str, value: Any) -> Any:
    if name in ("weights", "activations"):
        return Spec(**_fields_from_json(Spec, value))
    if name == "range" and isinstance(value, list):
        return Range(*value)
    if name == "overrides":
        return tuple(_override_from_json(pattern, changes) for pattern, changes in value)
    return value


def _override_from_json(pattern: Any, changes: Any) -> tuple[Any, dict[str, Any]]:
    return pattern, {field: _field_from_json(field, value) for field, value in changes}


def literal(name: str) -> str:
    """A site name as a pattern of an override that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
