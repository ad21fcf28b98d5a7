"""A sample of `tests.differential`, and that it would find and shrink a form that is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests import differential
from tests.differential import draw, failing, main, search, shrink


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_random_contractions_are_exact_in_every_form(seed):
    count, reports = search(10, seed)
    assert count == 10
    assert reports == []


def test_the_same_seed_draws_the_same_case_and_seeds_differ():
    assert draw(7) == draw(7)
    assert len({json.dumps(draw(seed)) for seed in range(100)}) == 100
    assert {draw(seed)["op"] for seed in range(20)} == {"dot", "conv"}


@pytest.fixture
def wrong_beyond_two_columns(monkeypatch):
    """A form "patches" that is right unless there are more than two output channels."""

    def broken(entry):
        def run(form, x, w, zero):
            out = entry.run(form, x, w, zero)
            return out.at[..., 2].add(1) if out.shape[-1] > 2 else out

        return dataclasses.replace(entry, run=run) if entry.name == "patches" else entry

    monkeypatch.setattr(differential, "FORMS", tuple(map(broken, differential.FORMS)))


BIG = {
    "op": "conv", "batch": 2, "spatial": [6, 5], "c_in": 4, "kernel": [3, 2], "c_out": 8, "strides": [2, 1],
    "padding": [[1, 1], [0, 2]], "lhs_dilation": [1, 2], "rhs_dilation": [1, 1], "groups": 1,
    "layout": [[3, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]], "signed": True, "w_zero": 5, "seed": 3,
}  # fmt: skip


def test_a_wrong_form_is_found_and_its_case_made_small(wrong_beyond_two_columns):
    assert [line.split(":")[0] for line in failing(BIG)] == ["form patches"]
    small = shrink(BIG, lambda case: bool(failing(case)))
    assert (small["c_out"], small["batch"], small["kernel"], small["spatial"]) == (4, 1, [1, 1], [1, 1])
    assert (small["signed"], small["w_zero"], small["layout"][0]) == (False, 0, [0, 1, 2, 3])


def test_one_case_repeats_from_its_line(wrong_beyond_two_columns, capsys):
    assert main(["--case", json.dumps(BIG)]) == 1
    assert "form patches:" in capsys.readouterr().out
    assert main(["--case", json.dumps({**BIG, "c_out": 2})]) == 0
    assert capsys.readouterr().out == "equal\n"


def test_a_run_prints_its_seeds(capsys):
    assert main(["--cases", "1", "--seed", "5"]) == 0
    assert capsys.readouterr().out == "seeds 5 to 5: 1 cases, 0 failed\n"
