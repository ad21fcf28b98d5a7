"""Ranges of real values.

`Range` is a pair (minimum, maximum), the form in which the 2016 system described every eight-bit tensor. `Ranges` maps site
names to ranges; calibration produces it, and a person may edit it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxq8.errors import RangesError, SpecError

RANGES_VERSION = 1
LISTED = 8  # how many site names an error message spells out
_PART = re.compile(r"\.part\d+$")  # ends the name of a part of a joined value (`sites.part_name`)


@dataclasses.dataclass(frozen=True)
class Range:
    """The closed interval of real values that codes stand for.

    Attributes:
      minimum: Smallest real value, finite.
      maximum: Largest real value, finite, at least `minimum`.

    Raises:
      SpecError: An end is not finite, or the ends are the wrong way round.

    Example:
      >>> q8.Range(-1, 3).union(q8.Range(0, 5))
      Range(minimum=-1.0, maximum=5.0)
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
        """The smallest range that contains both ranges."""
        return Range(min(self.minimum, other.minimum), max(self.maximum, other.maximum))

    def __iter__(self) -> Iterator[float]:
        return iter((self.minimum, self.maximum))


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedRange:
    """A range whose ends are being trained; they are traced float32 scalars (`jaxq8.learning.training.learned_ranges`)."""

    minimum: Any
    maximum: Any


class Ranges(Mapping[str, Range]):
    """An immutable mapping of site name to `Range`, with a JSON form that a person can read and edit.

    Args:
      ranges: Site name -> `Range` or ``(minimum, maximum)``.

    Raises:
      RangesError: `ranges` is not a mapping, or an entry is not a range; the message names the site.

    Example:
      >>> ranges = q8.Ranges({"params/Dense_0/kernel:dot": (-1.0, 3.0)})
      >>> ranges["params/Dense_0/kernel:dot"]
      Range(minimum=-1.0, maximum=3.0)
      >>> q8.Ranges.from_json(ranges.to_json()) == ranges
      True
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
        """Joins two sets of observations: a site that both have gets the smallest range that contains both ranges."""
        merged = dict(self._ranges)
        for name, value in other.items():
            merged[name] = merged[name].union(value) if name in merged else value
        return Ranges(merged)

    def check_sites(self, known: Mapping[str, object] | set[str]) -> None:
        """Refuses names that no site of the function has.

        Args:
          known: The names of all sites of the function.

        Raises:
          RangesError: A name is unknown; the message lists all unknown names and, for each, the known names most like it.
        """
        unknown = sorted(name for name in self if name not in known and _PART.sub("", name) not in known)
        if not unknown:
            return
        free = sorted(set(known) - set(self))
        lines = ["ranges name sites that this function does not have:"]
        for name in unknown:
            hint = _meant(name, free) or _meant(name, sorted(known))
            lines.append(f"  {name!r}{hint}")
        lines.append(f"its {len(known)} sites are listed by q8.explain(...)")
        without = [name for name in free if name.split("#")[0].endswith((":dot", ":conv"))]
        if without:
            more = f" and {len(without) - LISTED} more" if len(without) > LISTED else ""
            lines.append(f"without a range are {', '.join(without[:LISTED])}{more}")
        raise RangesError("\n".join(lines))

    def to_json(self) -> str:
        """Returns JSON with one line for each site: ``{"version": 1, "ranges": {"site": [minimum, maximum]}}``."""
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
        for name, entry in entries.items():  # float() would accept strings and booleans too
            if not (isinstance(entry, list) and all(type(v) in (int, float) for v in entry)):
                raise RangesError(f"ranges: site {name!r} has {entry!r}; expected [minimum, maximum]")
        return cls(entries)


def _as_range(name: str, entry: Any) -> Range:
    if isinstance(entry, Range | LearnedRange):
        return entry  # type: ignore[return-value]  # a LearnedRange, which only the encoding handles
    try:
        low, high = map(float, entry)
    except (TypeError, ValueError, OverflowError):
        raise RangesError(f"ranges: site {name!r} has {entry!r}; expected (minimum, maximum)") from None
    try:
        return Range(low, high)
    except SpecError as error:
        raise RangesError(f"ranges: site {name!r}: {error}") from error


def _meant(name: str, sites: list[str]) -> str:
    """A question that offers the site names most like an unknown name; empty if none is like it."""
    near = difflib.get_close_matches(name, sites, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
