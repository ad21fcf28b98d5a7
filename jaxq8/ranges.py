"""Ranges of real values, and the scale and zero point that follow from one.

`Range` is the pair (minimum, maximum) in which the 2016 system expressed every eight-bit tensor. `Ranges` maps site names to
ranges: what calibration produces and a person may edit. `affine` is the only place where a range becomes numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.errors import RangesError, SpecError

if TYPE_CHECKING:
    from jaxq8.config import Spec
    from jaxq8.rounding import Rounding

RANGES_VERSION = 1


LISTED = 8  # names in an error message
_PART = re.compile(r"\.part\d+$")  # parts of a joined value: `sites.part_name`


@dataclasses.dataclass(frozen=True)
class Range:
    """The closed interval of real values that codes stand for.

    Attributes:
      minimum: Smallest real value, finite.
      maximum: Largest real value, finite, at least `minimum`.

    Raises:
      SpecError: An end is not finite, or the ends are the wrong way round.
    """

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        low, high = float(self.minimum), float(self.maximum)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise SpecError(f"Range({low}, {high}): both ends must be finite numbers")
        if low > high:
            raise SpecError(f"Range({low}, {high}): the minimum exceeds the maximum; swap them")
        object.__setattr__(self, "minimum", low)
        object.__setattr__(self, "maximum", high)

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.minimum, other.minimum), max(self.maximum, other.maximum))

    def __iter__(self) -> Iterator[float]:
        return iter((self.minimum, self.maximum))


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedRange:
    """A range whose ends are being trained: float32 scalars, traced (`jaxq8.training.learned_ranges`)."""

    minimum: Any
    maximum: Any


class Ranges(Mapping[str, Range]):
    """An immutable mapping of site name to `Range`, with a JSON form that a person can read and edit.

    Args:
      ranges: Site name -> `Range` or ``(minimum, maximum)``.

    Raises:
      RangesError: `ranges` is no mapping, or an entry is not a range; the message names the site.

    Example:
      >>> Ranges({"params/Dense_0/kernel:dot": (-1.0, 3.0)})["params/Dense_0/kernel:dot"]
      Range(minimum=-1.0, maximum=3.0)
    """

    def __init__(self, ranges: Mapping[str, Range | tuple[float, float]] | None = None):
        if ranges is not None and not isinstance(ranges, Mapping):
            raise RangesError(
                f"ranges: expected a mapping of site names, got {type(ranges).__name__}; Ranges.from_json reads JSON"
            )
        self._ranges = {name: _as_range(name, entry) for name, entry in (ranges or {}).items()}

    def __getitem__(self, name: str) -> Range:
        return self._ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def __repr__(self) -> str:
        return f"Ranges({len(self)} sites)"

    def __hash__(self) -> int:
        return hash(frozenset(self._ranges.items()))

    def merge(self, other: Mapping[str, Range]) -> Ranges:
        """The union of two sets of observations: sites of either, and where both have one, the range that holds both."""
        merged = dict(self._ranges)
        for name, value in other.items():
            merged[name] = merged[name].union(value) if name in merged else value
        return Ranges(merged)

    def check_sites(self, known: Mapping[str, object] | set[str]) -> None:
        """Refuses names that no site of the function has.

        Raises:
          RangesError: Naming every unknown site and the nearest known names.
        """
        unknown = sorted(name for name in self if name not in known and _PART.sub("", name) not in known)
        if unknown:
            free = sorted(set(known) - set(self))
            without = [n for n in free if n.split("#")[0].endswith((":dot", ":conv"))]
            more = f" and {len(without) - LISTED} more" if len(without) > LISTED else ""
            raise RangesError(
                "ranges name sites that this function does not have:\n"
                + "\n".join(
                    f"  {name!r}{_meant(name, free) or _meant(name, sorted(known))}" for name in unknown
                )
                + f"\nits {len(known)} sites are listed by q8.explain(...)"
                + (f"\nwithout a range are {', '.join(without[:LISTED])}{more}" if without else "")
            )

    def to_json(self) -> str:
        """One line a site: ``{"version": 1, "ranges": {"site": [minimum, maximum]}}``."""
        rows = ",\n".join(
            f"    {json.dumps(name)}: [{r.minimum!r}, {r.maximum!r}]" for name, r in self.items()
        )
        return f'{{\n  "version": {RANGES_VERSION},\n  "ranges": {{\n{rows}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Ranges:
        """Reads what `to_json` wrote.

        Raises:
          RangesError: The text is not JSON of that form; the message names the entry.
        """
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
            raise RangesError(
                f"ranges: not valid JSON ({error}); write them with Ranges.to_json()"
            ) from error
        if not isinstance(document, dict) or document.get("version") != RANGES_VERSION:
            raise RangesError(f'ranges: expected an object with "version": {RANGES_VERSION} and "ranges"')
        entries = document.get("ranges")
        if not isinstance(entries, dict):
            raise RangesError('ranges: "ranges" must map site names to [minimum, maximum]')
        for name, entry in entries.items():  # JSON's strings and booleans would pass for numbers
            if not (isinstance(entry, list) and all(type(v) in (int, float) for v in entry)):
                raise RangesError(f"ranges: site {name!r} has {entry!r}; expected [minimum, maximum]")
        return cls(entries)


def _as_range(name: str, entry: Any) -> Range:
    if isinstance(entry, Range | LearnedRange):
        return entry  # type: ignore[return-value]  # only the encoding knows of learned ones
    try:
        low, high = map(float, entry)
    except (TypeError, ValueError, OverflowError):
        raise RangesError(f"ranges: site {name!r} has {entry!r}; expected (minimum, maximum)") from None
    try:
        return Range(low, high)
    except SpecError as error:
        raise RangesError(f"ranges: site {name!r}: {error}") from error


def _meant(name: str, sites: list[str]) -> str:
    """The sites whose names look most like one that no site has."""
    near = difflib.get_close_matches(name, sites, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def affine(
    minimum: jax.Array, maximum: jax.Array, spec: Spec, rounding: Rounding
) -> tuple[jax.Array, jax.Array]:
    """The scale and zero point that represent a range.

    The range is widened to contain zero (unless ``spec.include_zero`` is False), and the minimum is rounded to the grid, so
    that zero is exactly a code: ``zero_point = qmin - round(minimum / scale)`` (gemmlowp, Jacob et al. 2018; TensorFlow's
    MIN_FIRST). A symmetric range has zero point 0 and ``scale = max(|minimum|, |maximum|) / qmax`` (TensorFlow's SCALED).
    A range without width gets scale 1, so that scale is always positive and zeros stay exact. A range that is not finite
    gives scale NaN: whatever is decoded with it is NaN and cannot be mistaken for a result.

    Args:
      minimum: Smallest real value(s), float array of any shape (one per channel, say).
      maximum: Largest, same shape.
      spec: Bits, sign and symmetry.
      rounding: How the minimum is rounded.

    Returns:
      (scale, zero_point), both of that shape; zero_point is int32, or float for a `joint` rounding.
    """
    if isinstance(
        minimum, jax.core.Tracer
    ):  # traced once for all sites of one kind: half of what tracing a site costs
        return _traced_once(minimum, maximum, spec, rounding)
    return _affine(minimum, maximum, spec, rounding)


def _affine(
    minimum: jax.Array, maximum: jax.Array, spec: Spec, rounding: Rounding
) -> tuple[jax.Array, jax.Array]:
    minimum, maximum = _widened(minimum, maximum, spec)
    finite, wide, half, steps = _half(minimum, maximum, spec)
    scale = _known_width(finite, wide, half / steps)
    if spec.is_symmetric:
        return scale, lax.full(scale.shape, 0, jnp.int32)
    per_unit = _known_width(finite, wide, steps / half) if rounding.by_range else None
    offset = in_steps(minimum, scale, per_unit)
    if rounding.joint:
        return scale, spec.qmin - offset
    zero_point = spec.qmin - half_step_free(rounding, offset)
    if spec.include_zero:
        zero_point = lax.clamp(
            jnp.asarray(spec.qmin, scale.dtype), zero_point, jnp.asarray(spec.qmax, scale.dtype)
        )
    return scale, lax.select(jnp.isnan(scale), lax.full_like(scale, 0), zero_point).astype(jnp.int32)


_traced_once = jax.jit(_affine, static_argnums=(2, 3))


@functools.lru_cache(maxsize=4096)
def known_affine(low: float, high: float, spec: Spec, rounding: Rounding) -> tuple[np.ndarray, np.ndarray]:
    """`affine` of a range that is known while tracing: two numbers, and no operation of the program."""
    with jax.ensure_compile_time_eval():
        scale, zero_point = _traced_once(jnp.float32(low), jnp.float32(high), spec, rounding)
        return np.asarray(scale), np.asarray(zero_point)


def step(minimum: jax.Array, maximum: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """The size of one step of a range, and how many steps one unit has.

    Both come from the range: see `Rounding.by_range`. They are 1 for a range without width, and NaN for one that is not finite.
    """
    finite, wide, half, steps = _half(*_widened(minimum, maximum, spec), spec)
    return _known_width(finite, wide, half / steps), _known_width(finite, wide, steps / half)


def _half(
    minimum: jax.Array, maximum: jax.Array, spec: Spec
) -> tuple[jax.Array, jax.Array, jax.Array, float]:
    """(whether the ends are finite, whether they are apart, half of the width of a range, half of its steps)."""
    finite = lax.is_finite(minimum) & lax.is_finite(maximum)
    if spec.is_symmetric:
        half, steps = lax.max(lax.abs(minimum), lax.abs(maximum)), float(spec.qmax)
    else:  # each end for itself: the difference of two large ends can overflow although the step does not
        half, steps = maximum * 0.5 - minimum * 0.5, (spec.qmax - spec.qmin) * 0.5
    # Below this the reciprocal would overflow.
    return finite, half / steps > jnp.finfo(half.dtype).tiny * 4, half, steps


def _known_width(finite: jax.Array, wide: jax.Array, number: jax.Array) -> jax.Array:
    number = lax.select(wide, number, lax.full_like(number, 1))
    return lax.select(finite, number, lax.full_like(number, math.nan))


def in_steps(x: jax.Array, scale: jax.Array, per_unit: jax.Array | None = None) -> jax.Array:
    """`x` in units of one step, not rounded yet: ``x / scale`` to the last bit, or ``x * per_unit`` where that is given."""
    # XLA divides by a broadcast number by multiplying with its reciprocal, which misses ties and underflows for huge scales;
    # by a selection it divides.
    quotient = x / jnp.where(jnp.isnan(x), jnp.nan, scale)
    return quotient if per_unit is None else jnp.where(scale > 2.0**100, quotient, x * per_unit)


def _widened(minimum: jax.Array, maximum: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array]:
    if not spec.include_zero:
        return minimum, maximum
    return jnp.minimum(minimum, 0), jnp.maximum(maximum, 0)


def half_step_free(rounding: Rounding, offset: jax.Array) -> jax.Array:
    """Rounds the minimum: by the scheme itself, or to nearest where that draws random numbers (ranges stay deterministic)."""
    return jnp.round(offset) if rounding.keyed else rounding(offset)
