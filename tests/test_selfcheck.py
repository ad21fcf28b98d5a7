"""`selfcheck` passes here, finds a form that is wrong, and the planner then avoids it."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.cli import main
from jaxq8.kernels import barred, select
from jaxq8.machine import region_checks, selfcheck
from jaxq8.machine.selfcheck import CASES
from jaxq8.regions import native_call
from tests.small import normal, sqnr_db

pytestmark = pytest.mark.compiled

needs_native = pytest.mark.skipif(
    not q8.native_status().available, reason=f"no native regions: {q8.native_status().reason}"
)
# Names of the forms that can be checked here.
HERE = {name for name in barred.NAMES if name != "region" or q8.native_status().available}

CONV = {"w": normal(3, 3, 32, 32) / 17}
IMAGE = normal(1, 12, 12, 32)
ALWAYS = q8.Config(kernels="xla")


def network(variables, x):
    return jax.lax.conv_general_dilated(
        x, variables["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.fixture(autouse=True)
def _nothing_barred(monkeypatch):
    monkeypatch.delenv(barred.VARIABLE, raising=False)
    yield
    barred.bar_forms()


def plan():
    return q8.explain(network, CONV, IMAGE, config=ALWAYS)["w:conv"]


@pytest.fixture(scope="module")
def report():
    return q8.selfcheck()


def test_every_form_is_exact_here(report):
    assert report.ok
    assert report.failed == report.barred == ()
    assert all(check.detail == "" for check in report.checks)


def test_every_form_is_checked_and_used_in_some_case(report):
    assert set(CASES) == {entry.name for entry in select.FORMS}
    assert {check.form for check in report.checks} == HERE == set(report.used)


def test_the_table_has_a_row_for_each_check(report):
    text = str(report)
    assert f"{len(report.checks)} checks on {report.processor}, cpu" in text
    assert "all forms are exact" in text
    assert len(text.splitlines()) == len(report.checks) + 5


@needs_native
def test_the_primitives_of_native_regions_are_checked(report):
    found = [check.case for check in report.checks if check.form == "region"]
    assert found == list(region_checks.CASES)


@needs_native
@pytest.mark.parametrize("case", region_checks.CASES)
def test_checks_of_regions_see_many_codes(case):
    """A check whose results are all clipped would find nothing."""
    found, expected = region_checks.CASES[case]()
    assert (found == expected).all()
    assert len(np.unique(found)) > 100


@needs_native
def test_wrong_regions_are_found_and_barred(monkeypatch):
    monkeypatch.setattr(selfcheck, "CASES", {name: {} for name in CASES})
    real = region_checks.native_call.call
    monkeypatch.setattr(region_checks.native_call, "call", lambda *args: [array + 1 for array in real(*args)])
    report = q8.selfcheck()
    assert report.failed == report.barred == ("region",)
    assert not native_call.is_usable()
    assert native_call.why_not_usable() == barred.BARRED
    q8.bar_forms()
    assert native_call.is_usable()


def test_without_native_regions_nothing_is_checked_of_them(run_python):
    code = (
        "import jaxq8 as q8; from jaxq8.machine import selfcheck as s; s.CASES = {n: {} for n in s.CASES}; "
        "r = q8.selfcheck(); print(r.ok, 'region' in r.used, q8.native_status().reason)"
    )
    assert run_python(code, JAXQ8_NATIVE="off") == "True False JAXQ8_NATIVE=off\n"


def wrong(name: str, run) -> tuple[select.Candidate, ...]:
    return tuple(dataclasses.replace(e, run=run(e.run)) if e.name == name else e for e in select.FORMS)


def off_by_one(run):
    return lambda form, x, w, zero: run(form, x, w, zero).at[..., 0].add(1)


def refused(run):
    def fails(form, x, w, zero):
        raise NotImplementedError("unsupported by this compiler")

    return fails


@pytest.mark.parametrize(
    ("run", "detail"), [(off_by_one, "differ"), (refused, "NotImplementedError: unsupported")]
)
def test_a_wrong_form_is_found_and_avoided(monkeypatch, capsys, run, detail):
    assert plan().kernel == "xla: patches"
    monkeypatch.setattr(select, "FORMS", wrong("patches", run))
    monkeypatch.setattr(selfcheck, "CASES", {n: dict(list(c.items())[:1]) for n, c in CASES.items()})
    assert main(["selfcheck", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["failed"], found["barred"]) == (False, ["patches"], ["patches"])
    assert main(["selfcheck", "--quiet"]) == 1
    assert capsys.readouterr().out.endswith("WRONG: patches\n")
    report = q8.selfcheck()
    assert not report.ok
    assert report.failed == report.barred == ("patches",)
    assert detail in next(c.detail for c in report.checks if c.form == "patches")
    assert plan().kernel == "xla: rows"
    assert ("patches", barred.BARRED) in plan().refused
    exact = network(CONV, IMAGE)
    assert sqnr_db(exact, q8.quantize(network, ALWAYS)(CONV, IMAGE)) > 35


def test_looking_without_barring(monkeypatch):
    monkeypatch.setattr(select, "FORMS", wrong("rows", off_by_one))
    monkeypatch.setattr(selfcheck, "CASES", {n: dict(list(c.items())[:1]) for n, c in CASES.items()})
    report = q8.selfcheck(bar=False)
    assert report.failed == ("rows",)
    assert report.barred == barred.barred_forms() == ()


def test_forms_barred_by_the_environment(monkeypatch):
    monkeypatch.setenv(barred.VARIABLE, "patches, rows")
    assert barred.barred_forms() == ("rows", "patches")[::-1]
    assert plan().kernel == "reference: int32"
    automatic = q8.explain(network, CONV, IMAGE)["w:conv"]
    assert automatic.reason is q8.Reason.NOT_FASTER
    assert not automatic.eight_bit
    monkeypatch.setenv(barred.VARIABLE, "patchwork")
    with pytest.raises(
        q8.SpecError, match=r"JAXQ8_BARRED_FORMS: unknown form 'patchwork'; known are dot, pointwise"
    ):
        plan()


def test_an_unknown_form_cannot_be_barred():
    with pytest.raises(q8.SpecError, match="bar_forms: unknown form 'conv'; known are dot"):
        q8.bar_forms("conv")
    q8.bar_forms("rows")
    q8.bar_forms()
    assert barred.barred_forms() == ()


@pytest.mark.parametrize("name", ["max_pool", "sum_pool", "weight_sum", "encode"])
def test_plain_stand_ins_give_the_same_numbers(name):
    def net(variables, x):
        y = jax.nn.relu(network(variables, x))
        y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        y = network(variables, y - 0.25)
        return jax.lax.reduce_window(
            network(variables, y), 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
        )

    expected = jax.jit(q8.quantize(net, ALWAYS))(CONV, IMAGE)
    q8.bar_forms(name)
    found = jax.jit(q8.quantize(lambda v, x: net(v, x), ALWAYS))(CONV, IMAGE)
    assert sqnr_db(expected, found) > 60
    assert np.isfinite(found).all()
