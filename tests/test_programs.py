"""A sample of `tests.programs`: what it reaches, and that it would find a defect, make its program small and print it."""

from __future__ import annotations

import collections
import dataclasses
import json
import os

import jax
import pytest

import jaxq8 as q8
from jaxq8.evaluation.rules import contraction
from tests.programs import search as searching
from tests.programs.__main__ import main
from tests.programs.draft import draw
from tests.programs.laws import LAWS
from tests.programs.operations import TABLE
from tests.programs.program import build, from_json, function_source, source
from tests.programs.search import (
    Found,
    broken,
    check,
    chosen_laws,
    eight_bit_contractions,
    prepared,
    primitives_of,
    search,
)  # fmt: skip
from tests.programs.settings import FLAGS, QUICK, Settings
from tests.programs.shrink import shrink
from tests.programs.trial import Trial

CHUNK = 20
PROGRAMS = 1000
# The default run has those that take about three minutes on two cores, `make test-all` all; with the oldest dependencies few.
DEFAULT = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "quick" else 140


def seeds():
    starts = range(0, PROGRAMS, CHUNK)
    return [pytest.param(s, marks=[] if s < DEFAULT else pytest.mark.slow) for s in starts]


@pytest.mark.xla_flags
@pytest.mark.parametrize("seed", seeds())
def test_random_programs_obey_every_law(seed, run_python):
    """In a process of its own, because most of the time is that of compilers, and their flags halve it."""
    code = (
        f"from tests.programs.__main__ import main; print(main(['--cases', '{CHUNK}', '--seed', '{seed}']))"
    )
    out = run_python(code, xla_flags=FLAGS)
    assert f"{CHUNK} programs, 0 failed" in out, out
    assert out.endswith("\n0\n"), out


def test_every_law_and_every_setting_is_drawn():
    counts = collections.Counter(law for seed in range(PROGRAMS) for law in chosen_laws(seed))
    assert set(counts) == set(LAWS)
    assert all(abs(counts[law] - entry.share * PROGRAMS) < 60 for law, entry in LAWS.items())
    assert LAWS["error"].share == LAWS["nan"].share == 1
    drawn = [Settings.of(seed) for seed in range(PROGRAMS)]
    assert {s.kind for s in drawn} == {"dynamic", "static", "given"}
    assert {(s.mixed, s.attention) for s in drawn} == {(a, b) for a in (False, True) for b in (False, True)}


def test_programs_have_every_operation_and_many_primitives():
    operations, primitives = collections.Counter(), set()
    for seed in range(300):
        program = draw(seed)
        operations.update(step["op"] for step in program["steps"])
        if seed < 60 and program["outputs"]:
            primitives |= primitives_of(jax.make_jaxpr(build(program)[0])(*build(program)[1:]).jaxpr)
    assert set(operations) == set(TABLE)
    assert len(primitives) >= 25, sorted(primitives)


def test_most_programs_have_several_contractions_in_eight_bits():
    trials = [prepared(seed)[0] for seed in range(8)]
    counts = [eight_bit_contractions(trial) for trial in trials]
    assert sum(count >= 2 for count in counts) > len(counts) / 2
    trial = trials[0]
    plan = q8.explain(trial.f, trial.p, trial.x, config=trial.settings.config(), ranges=trial.ranges)
    assert counts[0] == sum(site.eight_bit and site.macs > 0 for site in plan.sites)


def test_a_seed_draws_one_program_and_its_source_is_what_runs():
    assert draw(7) == draw(7)
    program = from_json(json.dumps(draw(7)))
    f, p, x = build(program)
    scope = {}
    exec(source(program), scope)
    assert all((a == b).all() for a, b in zip(f(p, x), scope["f"](scope["p"], scope["x"]), strict=True))
    assert len({function_source(draw(seed)) for seed in range(50)}) == 50


@pytest.fixture
def without_offset(monkeypatch):
    """Products that forget the correction for the zero point of the activation."""
    accumulate = contraction.accumulate

    def wrong(*args, **kwargs):
        result = accumulate(*args, **kwargs)
        return dataclasses.replace(result, offset=0 * result.offset)

    monkeypatch.setattr(contraction, "accumulate", wrong)


def test_a_defect_is_found_made_small_and_printed_as_a_program(without_offset):
    found = search(10, 0, stop_after=1)
    assert len(found.reports) == 1
    assert found.failed["error"] == 1
    report = found.reports[0]
    assert sum(line.startswith("    v") for line in report.splitlines()) <= 3, report
    scope = {}
    exec(report[: report.index("for a, b in")], scope)
    slow, fast = (jax.tree.leaves(scope[name])[0] for name in ("slow", "fast"))
    assert abs(slow - fast).max() > 0.05 * abs(slow).max()


def test_a_printed_program_repeats_its_failure(without_offset, capsys):
    program = _chain()
    command = ["--law", "error", "--program", json.dumps(program)]
    assert main(command) == 1
    assert capsys.readouterr().out.startswith("error: output 0: ")


def test_shrinking_keeps_what_fails_and_drops_the_rest():
    def fails(program):
        return ["still"] if any(s["op"] == "conv_same" for s in program["steps"]) else None

    program = next(p for p in map(draw, range(100)) if sum(s["op"] == "conv_same" for s in p["steps"]) > 1)
    small, problems = shrink(program, fails, ["first"], 60)
    assert [s["op"] for s in small["steps"]] == ["conv_same"]
    assert (len(small["weights"]), len(small["outputs"]), problems) == (1, 1, ["still"])
    build(small)[0](*build(small)[1:])


def test_a_run_prints_its_counts(capsys):
    assert main(["--cases", "2", "--seed", "3", "--law", "nan"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seeds 3 to 4: 2 programs, 0 failed")
    assert "laws: nan 2" in out


def test_what_breaks_only_where_the_compiler_optimizes_nothing_is_counted_apart(monkeypatch):
    monkeypatch.setattr(searching, "broken", lambda trial, law: ["wrong"] * (trial.quick is QUICK))
    found = Found()
    assert list(check(Trial(_chain(), QUICK), ["error", "nan"], found)) == []
    assert (found.unsure, found.laws["error"], found.failed.total()) == (2, 1, 0)
    monkeypatch.setattr(searching, "broken", lambda trial, law: ["wrong"])
    assert list(check(Trial(_chain(), QUICK), ["error", "nan"], found)) == [("error", ["wrong"])]
    assert "2 failures only at optimization level 0" in found.summary()


def test_the_trial_of_a_plain_program_obeys_the_laws():
    trial = Trial(_chain())
    for law in ("error", "simulation", "nan", "encoded"):
        assert broken(trial, law) == [], law


def _chain():
    """Two products with tanh between them."""
    weights = [{"id": i, "kind": "normal", "factor": 0.2, "shape": [24, 24]} for i in range(2)]
    steps = [
        {"name": "v0", "op": "dense", "in": ["x", "p[0]"]},
        {"name": "v1", "op": "tanh", "in": ["v0"]},
        {"name": "v2", "op": "dense", "in": ["v1", "p[1]"]},
    ]
    inputs = [{"id": 1000, "kind": "uniform", "factor": 1, "shape": [8, 24]}]
    seed = next(s for s in range(100) if Settings.of(s).kind == "static")
    return {"seed": seed, "weights": weights, "inputs": inputs, "steps": steps, "outputs": ["v2"]}
