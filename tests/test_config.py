"""`Spec` and `Config`: what they mean, what they refuse, and how overrides find their sites."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import pytest

import jaxq8 as q8
from jaxq8.config import KERNELS, MODES, NONFINITE, matches

# --- Spec

CODES = [
    (q8.Spec(), 0, 255, "uint8"),
    (q8.Spec(signed=True), -128, 127, "int8"),
    (q8.Spec(symmetric=True), -127, 127, "int8"),
    (q8.Spec(symmetric=True, signed=False), 0, 255, "uint8"),
    (q8.Spec(bits=4), 0, 15, "uint8"),
    (q8.Spec(bits=4, symmetric=True), -7, 7, "int8"),
    (q8.Spec(bits=2, symmetric=True), -1, 1, "int8"),
    (q8.Spec(bits=2, signed=True), -2, 1, "int8"),
    (q8.Spec(bits=32, signed=True), -(2**31), 2**31 - 1, "int32"),
]


@pytest.mark.parametrize(("spec", "smallest", "largest", "storage"), CODES)
def test_a_spec_says_which_codes_there_are(spec: q8.Spec, smallest: int, largest: int, storage: str) -> None:
    assert (spec.qmin, spec.qmax) == (smallest, largest)
    assert spec.storage == storage


def test_weights_and_activations_by_default() -> None:
    config = q8.Config()
    assert (config.weights.qmin, config.weights.qmax, config.weights.granularity) == (-127, 127, "channel")
    assert (config.activations.qmin, config.activations.qmax, config.activations.symmetric) == (0, 255, False)


@pytest.mark.parametrize("bits", [0, 1, 9, 16, 8.0, True, "8", None])
def test_bits_are_two_to_eight_or_those_of_accumulators(bits: Any) -> None:
    with pytest.raises(q8.SpecError, match=re.escape(f"Spec(bits={bits!r}): bits must be 2 to 8, or 32")):
        q8.Spec(bits=bits)


def test_granularity_is_one_of_three() -> None:
    with pytest.raises(q8.SpecError, match=r"Spec\(granularity='block'\): known are tensor, channel, row"):
        q8.Spec(granularity="block")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["max", (0, 1), None])
def test_range_is_measured_or_given(wrong: Any) -> None:
    text = re.escape(
        f"Spec(range={wrong!r}): use a Range(minimum, maximum) or an observer: entropy, minmax, "
    )
    with pytest.raises(q8.SpecError, match=text):
        q8.Spec(range=wrong)


# --- Config


@pytest.mark.parametrize(
    ("field", "known"), [("mode", MODES), ("kernels", KERNELS), ("nonfinite", NONFINITE)]
)
def test_a_field_takes_the_known_values_only(field: str, known: tuple[str, ...]) -> None:
    for value in known:
        assert getattr(q8.Config(**{field: value}), field) == value
    with pytest.raises(
        q8.SpecError, match=re.escape(f"Config({field}='fast'): known are {', '.join(known)}")
    ):
        q8.Config(**{field: "fast"})


@pytest.mark.parametrize("role", ["weights", "activations"])
@pytest.mark.parametrize("wrong", [8, q8.Spec(bits=32)])
def test_weights_and_activations_are_specs_of_at_most_eight_bits(role: str, wrong: Any) -> None:
    with pytest.raises(
        q8.SpecError, match=re.escape(f"Config({role}={wrong!r}): expected a Spec of 2 to 8 bits")
    ):
        q8.Config(**{role: wrong})


def test_rounding_is_checked_where_it_is_written() -> None:
    with pytest.raises(q8.SpecError, match="unknown rounding 'nearest'"):
        q8.Config(rounding="nearest")
    assert q8.Config(rounding=jnp.floor).rounding is jnp.floor


def test_a_config_is_a_value() -> None:
    overrides = (("*/head/*", {"mode": "off"}), ("op:dot", {"kernels": "xla", "rounding": "floor"}))
    first, second = q8.Config(overrides=overrides), q8.Config(overrides=overrides)
    assert first == second
    assert hash(first) == hash(second)
    assert first != q8.Config()
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'mode'"):
        first.mode = "off"  # type: ignore[misc]


# --- Overrides


@pytest.mark.parametrize(
    ("pattern", "name", "op", "addressed"),
    [
        ("params/Dense_0/kernel:dot", "params/Dense_0/kernel:dot", "dot", True),
        ("params/Dense_0/*", "params/Dense_0/kernel:dot", "dot", True),
        ("*Dense_[01]*", "params/Dense_2/kernel:dot", "dot", False),
        ("*dense*", "params/Dense_0/kernel:dot", "dot", False),
        ("op:dot", "params/Dense_0/kernel:dot", "dot", True),
        ("op:conv", "params/Dense_0/kernel:dot", "dot", False),
        ("op:*", "anything", "pool", True),
    ],
)
def test_patterns(pattern: str, name: str, op: str, addressed: bool) -> None:
    assert matches(pattern, name, op) is addressed


def test_later_overrides_win_and_others_stay() -> None:
    config = q8.Config(
        rounding="half_away",
        overrides=(("op:dot", {"mode": "off", "kernels": "xla"}), ("*/head/*", {"mode": "eightbit"})),
    )
    head = config.for_site("params/head/kernel:dot", "dot")
    assert (head.mode, head.kernels, head.rounding, head.overrides) == ("eightbit", "xla", "half_away", ())
    assert config.for_site("params/body/kernel:dot", "dot").mode == "off"
    assert config.for_site("params/body/kernel:conv", "conv") == q8.Config(rounding="half_away")


@pytest.mark.parametrize("entry", ["*", ("*",), ("*", 3), ("*", {"mode": "off"}, 1)])
def test_an_override_is_a_pair(entry: Any) -> None:
    with pytest.raises(q8.SpecError, match=r"is not a pair \(pattern, \{field: value\}\)"):
        q8.Config(overrides=(entry,))


@pytest.mark.parametrize("field", ["bits", "overrides", "seed"])
def test_an_override_changes_known_fields(field: str) -> None:
    with pytest.raises(q8.SpecError, match=rf"override '\*' changes {field}; known are .*mode.*weights"):
        q8.Config(overrides=(("*", {field: 4}),))


def test_the_values_of_an_override_are_checked_at_once() -> None:
    with pytest.raises(q8.SpecError, match=r"Config\(mode='fast'\): known are"):
        q8.Config(overrides=(("*", {"mode": "fast"}),))
