"""Ranges: their checks, their JSON, and the scale and zero point that follow from one."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxq8 as q8
from jaxq8.numerics.rounding import get_rounding
from jaxq8.numerics.scales import affine

FINITE = st.floats(allow_nan=False, allow_infinity=False)
RANGES = st.tuples(FINITE, FINITE).map(lambda ends: q8.Range(min(ends), max(ends)))
ENDS = st.floats(-(2.0**100), 2.0**100, width=32)
SPECS = st.builds(
    q8.Spec, bits=st.integers(2, 8), signed=st.sampled_from([None, False, True]), symmetric=st.booleans()
)
SITES = q8.Ranges({"params/Dense_0/kernel:dot": (-1, 3), "params/Dense_1/kernel:dot": q8.Range(0, 6)})

# --- Range


@pytest.mark.parametrize("ends", [(math.nan, 1), (0, math.inf), (-math.inf, 0)])
def test_ends_are_finite(ends: tuple[float, float]) -> None:
    with pytest.raises(q8.SpecError, match="both ends must be finite numbers"):
        q8.Range(*ends)


def test_ends_are_in_order() -> None:
    with pytest.raises(
        q8.SpecError, match=re.escape("Range(2.0, 1.0): the minimum exceeds the maximum; swap them")
    ):
        q8.Range(2, 1)


@given(a=RANGES, b=RANGES)
def test_union_is_the_smallest_range_that_holds_both(a: q8.Range, b: q8.Range) -> None:
    low, high = a.union(b)
    assert low == min(*a, *b)
    assert high == max(*a, *b)
    assert a.union(b) == b.union(a)
    assert a.union(a) == a


# --- Ranges


@given(ranges=st.dictionaries(st.text(), RANGES))
def test_json_keeps_every_name_and_every_bit(ranges: dict[str, q8.Range]) -> None:
    original = q8.Ranges(ranges)
    assert q8.Ranges.from_json(original.to_json()) == original


def test_json_has_a_line_for_every_site() -> None:
    assert '    "params/Dense_1/kernel:dot": [0.0, 6.0]\n' in SITES.to_json()
    assert repr(SITES) == "Ranges(2 sites)"


def test_equal_ranges_have_equal_hashes() -> None:
    reversed_order = q8.Ranges(dict(reversed(list(SITES.items()))))
    assert reversed_order == SITES
    assert hash(reversed_order) == hash(SITES)


def test_merging_takes_the_union_of_sites_and_of_ranges() -> None:
    merged = SITES.merge({"params/Dense_0/kernel:dot": q8.Range(-2, 1), "new": q8.Range(0, 1)})
    assert merged["params/Dense_0/kernel:dot"] == q8.Range(-2, 3)
    assert list(merged) == [*SITES, "new"]
    assert SITES["params/Dense_0/kernel:dot"] == q8.Range(-1, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"ranges: not valid JSON \(.*\); write them with Ranges\.to_json\(\)"),
        ("[]", r'expected an object with "version": 1 and "ranges"'),
        ('{"version": 2, "ranges": {}}', r'expected an object with "version": 1 and "ranges"'),
        ('{"version": 1, "ranges": []}', r'"ranges" must map site names to \[minimum, maximum\]'),
        (
            '{"version": 1, "ranges": {"a": ["0", "1"]}}',
            r"site 'a' has \['0', '1'\]; expected \[minimum, maximum\]",
        ),
        (
            '{"version": 1, "ranges": {"a": [true, 1]}}',
            r"site 'a' has \[True, 1\]; expected \[minimum, maximum\]",
        ),
        ('{"version": 1, "ranges": {"a": 3}}', r"site 'a' has 3; expected \[minimum, maximum\]"),
        ('{"version": 1, "ranges": {"a": [1]}}', r"site 'a' has \[1\]; expected \(minimum, maximum\)"),
        ('{"version": 1, "ranges": {"a": [1, 0]}}', r"site 'a': Range\(1\.0, 0\.0\): the minimum exceeds"),
        (
            '{"version": 1, "ranges": {"a": [NaN, 0]}}',
            r"site 'a': Range\(nan, 0\.0\): both ends must be finite",
        ),
        (
            json.dumps({"version": 1, "ranges": {"a": [0, 10**400]}}),
            r"site 'a' has .*expected \(minimum, maximum\)",
        ),
        ("[" * 100_000, r"ranges: not valid JSON"),
    ],
)
def test_what_is_not_ranges_is_refused(text: str, message: str) -> None:
    with pytest.raises(q8.RangesError, match=message):
        q8.Ranges.from_json(text)


@pytest.mark.parametrize("entry", [5, (1, 2, 3), "ab", None])
def test_an_entry_that_is_no_range_is_refused_by_name(entry: Any) -> None:
    with pytest.raises(
        q8.RangesError, match=re.escape(f"site 'here' has {entry!r}; expected (minimum, maximum)")
    ):
        q8.Ranges({"here": entry})


def test_unknown_sites_are_named_with_what_was_probably_meant() -> None:
    text = (
        "ranges name sites that this function does not have:\n"
        "  'params/Dense_1/kernel:dot' (did you mean 'params/Conv_0/kernel:conv'?)\n"
        "its 2 sites are listed by q8.explain(...)\nwithout a range are params/Conv_0/kernel:conv"
    )
    with pytest.raises(q8.RangesError, match="^" + re.escape(text) + "$"):
        SITES.check_sites({"params/Dense_0/kernel:dot", "params/Conv_0/kernel:conv"})
    SITES.check_sites({*SITES, "another"})
    with pytest.raises(
        q8.RangesError, match=r"'a:dto' \(did you mean 'a:dot'\?\)"
    ):  # of those with a range, if no other is like it
        q8.Ranges({"a:dto": (0, 1), "a:dot": (0, 1)}).check_sites({"a:dot"})
    with pytest.raises(q8.RangesError, match=r"got str; Ranges\.from_json reads JSON"):
        q8.Ranges(SITES.to_json())  # type: ignore[arg-type]


# --- Scale and zero point


def parameters(low: float, high: float, spec: q8.Spec, rounding: str = "half_even") -> tuple[float, float]:
    scale, zero_point = affine(jnp.float32(low), jnp.float32(high), spec, get_rounding(rounding))
    return float(scale), float(zero_point)


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "floor", "ceil", "toward_zero", "stochastic"])
@given(ends=st.tuples(ENDS, ENDS), spec=SPECS)
def test_zero_is_a_code_of_every_range(ends: tuple[float, float], spec: q8.Spec, rounding: str) -> None:
    scale, zero_point = parameters(min(ends), max(ends), spec, rounding)
    assert 0 < scale < math.inf
    assert zero_point in range(spec.qmin, spec.qmax + 1)
    if spec.symmetric:
        assert zero_point == 0


@given(ends=st.tuples(ENDS, ENDS), spec=SPECS)
def test_the_codes_reach_to_both_ends(ends: tuple[float, float], spec: q8.Spec) -> None:
    low, high = min(*ends, 0), max(*ends, 0)
    scale, zero_point = parameters(low, high, spec)
    reach = (
        0.5 * scale * (1 + 1e-4)
    )  # rounding the minimum to the grid moves both ends by half a step at most
    if spec.symmetric:
        low, high = (0 if spec.qmin == 0 else -max(-low, high)), max(-low, high)
    assert (spec.qmin - zero_point) * scale <= low + reach
    assert (spec.qmax - zero_point) * scale >= high - reach


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-45, 1e-38])
def test_a_range_without_width_has_scale_one(value: float) -> None:
    low, high = min(value, 0), max(value, 0)
    assert parameters(low, high, q8.Spec()) == (1, 0)
    assert parameters(low, high, q8.Spec(symmetric=True)) == (1, 0)


@pytest.mark.parametrize("value", [5.0, -3.0])
def test_a_constant_is_represented_beside_zero(value: float) -> None:
    scale, zero_point = parameters(value, value, q8.Spec())
    assert (scale, zero_point) == (np.float32(abs(value) / 255), 0 if value > 0 else 255)


@pytest.mark.parametrize("ends", [(math.nan, 1), (0, math.inf), (-math.inf, 0), (math.nan, math.nan)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_that_is_not_finite_gives_a_scale_that_is_not_a_number(ends: Any, symmetric: bool) -> None:
    scale, zero_point = parameters(*ends, q8.Spec(symmetric=symmetric))
    assert math.isnan(scale)
    assert zero_point == 0


def test_the_widest_range_does_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    scale, _ = parameters(-largest, largest, q8.Spec())
    assert scale == pytest.approx(2 * largest / 255)


def test_a_range_that_excludes_zero_keeps_its_width_if_asked_to() -> None:
    assert parameters(1, 256, q8.Spec(include_zero=False)) == (1, -1)
    assert parameters(1, 256, q8.Spec()) == (np.float32(256 / 255), 0)
