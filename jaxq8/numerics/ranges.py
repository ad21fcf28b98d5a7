"""Ranges of real values.

`Range` is the pair (minimum, maximum) in which the 2016 system expressed every eight-bit tensor. `Ranges` maps site names to
ranges: what calibration produces and a person may edit.
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
    """A range whose ends are being trained: float32 scalars, traced (`jaxq8.learning.training.learned_ranges`)."""

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
