"""`tune` measures every form that can run, keeps the times, and the planner takes the fastest: results stay the same."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.kernels import select, tuned
from jaxq8.kernels.registry import KERNELS, Operand
from jaxq8.machine.selfcheck import CASES, codes
from tests.small import normal

CONV = {"w": normal(3, 3, 32, 32) / 17, "u": normal(32, 24) / 6}
IMAGE = normal(2, 12, 12, 32)
ALWAYS = q8.Config(kernels="xla")


def network(variables, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, variables["w"], (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(y) @ variables["u"]


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    tuned.use({})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "tuned.json"
    return q8.tune(network, CONV, IMAGE, path=path, seconds=0.001, progress=False), path


def test_all_forms_that_can_run_are_measured(measured):
    tuning, _ = measured
    names = [set(found) for found in tuning.times.values()]
    assert names == [{"native", "patches", "rows", "blocks", "float"}, {"dot", "float"}]
    assert all(t > 0 for found in tuning.times.values() for t in found.values())
    assert "conv 2x12x12x32 x 3x3x32x32" in str(tuning)


def test_the_fastest_is_taken_and_said_to_be(measured):
    tuning, _ = measured
    exact = jax.jit(q8.quantize(network, ALWAYS))(CONV, IMAGE)
    forms = list(tuning.times)
    for name in ("native", "rows", "blocks", "patches"):
        times = {**dict.fromkeys(tuning.times[forms[0]], 9.0), name: 2.0}
        q8.Tuning({forms[0]: times}, tuning.machine).use()
        site = q8.explain(network, CONV, IMAGE, config=ALWAYS)["w:conv"]
        assert site.kernel == f"xla: {name}"
        assert site.detail.startswith(f"measured, in microseconds: {name} 2, ")
        found = jax.jit(q8.quantize(network, ALWAYS))(CONV, IMAGE)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_float_is_taken_where_it_was_faster_unless_eight_bits_are_forced(measured):
    tuning, _ = measured
    form = list(tuning.times)[1]
    q8.Tuning({form: {"dot": 5.0, "float": 3.0}}, tuning.machine).use()
    site = q8.explain(network, CONV, IMAGE)["u:dot"]
    assert (site.eight_bit, site.reason) == (False, q8.Reason.NOT_FASTER)
    assert site.detail == "measured, in microseconds: float 3, dot 5"
    assert q8.explain(network, CONV, IMAGE, config=ALWAYS)["u:dot"].kernel == "xla: dot"


def test_a_barred_form_is_not_taken_however_fast_it_was(measured):
    tuning, _ = measured
    form = next(iter(tuning.times))
    q8.Tuning({form: {"rows": 1.0, "native": 2.0, "float": 3.0}}, tuning.machine).use()
    q8.bar_forms("rows")
    try:
        assert q8.explain(network, CONV, IMAGE)["w:conv"].kernel == "xla: native"
    finally:
        q8.bar_forms()


def test_a_file_brings_the_times_back_and_spares_the_measuring(measured, monkeypatch):
    tuning, path = measured
    assert q8.load_tuning(path).times == tuning.times
    monkeypatch.setattr("jaxq8.machine.tuning._timed", lambda form, seconds: pytest.fail("measured again"))
    assert q8.tune(network, CONV, IMAGE, path=path, progress=False).times == tuning.times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=7), "not a document of q8.tune version 1 .version 7"),
        (lambda d: d["forms"][0].update(kind="fft"), "not a document of q8.tune"),
        (lambda d: d["forms"][0]["microseconds"].update(magic=1.0), "unknown form 'magic'"),
        (lambda d: d["forms"][0]["microseconds"].update(dot=-1.0), "times must be above 0"),
        (lambda d: d["machine"].update(processor="abacus"), "measured on processor abacus, .*delete it"),
        (lambda d: d.pop("forms"), "not a document of q8.tune"),
    ],
)
def test_files_of_another_kind_or_machine_are_refused(measured, tmp_path, change, message):
    document = json.loads(measured[1].read_text())
    change(document)
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(document))
    with pytest.raises(q8.FileError, match=message):
        q8.load_tuning(path)


def test_missing_files_and_folders_are_named(measured, tmp_path):
    with pytest.raises(q8.FileError, match=r"nowhere.json: cannot be read"):
        q8.load_tuning(tmp_path / "nowhere.json")
    with pytest.raises(q8.FileError, match=r"cannot be written .*check the folder"):
        measured[0].save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize("name", CASES)
def test_whatever_can_be_chosen_is_exact(name):
    """Not the table alone decides any more: each form that `possible` offers, on the self-check's shapes."""
    for form in CASES[name].values():
        x, w = codes(form)
        exact = None
        for entry in select.possible(form):
            if form.macs > 3e7:
                continue  # seconds in plain integers; the self-check has them
            found = jax.jit(lambda x, w, entry=entry, form=form: entry.run(form, x, w, np.int32(77)))(x, w)
            exact = (
                KERNELS["reference"].run(form, Operand(x, np.int32(77)), Operand(w))
                if exact is None
                else exact
            )
            np.testing.assert_array_equal(found, exact, err_msg=f"{entry.name} of {form}")
