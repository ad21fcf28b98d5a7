"""A failing program made small: steps, outputs and inputs go as long as the same law fails in the same way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from tests.programs.program import Program, build, pruned


def shrink(
    program: Program, fails: Callable[[Program], list[str] | None], problems: list[str], seconds: float
) -> tuple[Program, list[str]]:
    """The smallest program found that fails, and what is wrong with it.

    Args:
      program: One that fails.
      fails: What is wrong with a program; None if nothing is, or something else.
      problems: What is wrong with `program`.
      seconds: The search ends after that time.
    """
    end = time.monotonic() + seconds
    wrong = [int(i) for line in problems for i in re.findall(r"output (\d+)", line)]
    if wrong and len(program["outputs"]) > 1 and wrong[0] < len(program["outputs"]):
        alone = pruned({**program, "outputs": [program["outputs"][wrong[0]]]})
        found = fails(alone)
        program, problems = (alone, found) if found else (program, problems)
    going = True
    while going:
        going = False
        for candidate in _smaller(program):
            if time.monotonic() > end:
                return program, problems
            found = fails(candidate)
            if found:
                program, problems, going = candidate, found, True
                break
    return program, problems


def _smaller(program: Program) -> Iterator[Program]:
    """Programs that are simpler in one place, the boldest changes first."""
    if len(program["outputs"]) > 1:
        yield from (pruned({**program, "outputs": [name]}) for name in program["outputs"])
        for i in range(len(program["outputs"])):
            yield pruned({**program, "outputs": program["outputs"][:i] + program["outputs"][i + 1 :]})
    names = [s["name"] for s in program["steps"]]
    for i, output in enumerate(program["outputs"]):
        step = next((s for s in program["steps"] if s["name"] == output), None)
        for before in step["in"] if step else ():
            if before in names:
                outputs = [*program["outputs"][:i], before, *program["outputs"][i + 1 :]]
                yield pruned({**program, "outputs": list(dict.fromkeys(outputs))})
    shapes = shapes_of(program)
    for name in reversed(names):  # becomes an input
        if len(program["inputs"]) < 3:
            yield _cut(program, name, shapes[name])
    for step in program["steps"]:
        for before in step["in"]:
            if shapes.get(before) == shapes[step["name"]]:
                yield _replaced(program, step["name"], before)
    for i, entry in enumerate(program["inputs"]):
        if entry["shape"] and entry["shape"][0] > 1:
            yield _with(program, "inputs", i, {**entry, "shape": [1, *entry["shape"][1:]]})
        if (entry["kind"], entry["factor"]) != ("normal", 1):
            yield _with(program, "inputs", i, {**entry, "kind": "normal", "factor": 1})


def _with(program: Program, field: str, i: int, entry: dict[str, Any]) -> Program:
    entries = list(program[field])
    entries[i] = entry
    return {**program, field: entries}


def _renamed(program: Program, names: dict[str, str]) -> Program:
    steps = [{**s, "in": [names.get(n, n) for n in s["in"]]} for s in program["steps"]]
    return {**program, "steps": steps, "outputs": [names.get(n, n) for n in program["outputs"]]}


def _replaced(program: Program, name: str, by: str) -> Program:
    steps = [s for s in program["steps"] if s["name"] != name]
    smaller = _renamed({**program, "steps": steps}, {name: by})
    kept = [n for n in dict.fromkeys(smaller["outputs"]) if n.startswith("v")]
    return pruned({**smaller, "outputs": kept})


def _cut(program: Program, name: str, shape: tuple[int, ...]) -> Program:
    """The value becomes an input, normal numbers."""
    inputs = program["inputs"]
    taken = max(entry["id"] for entry in inputs) + 1
    if len(inputs) == 1:
        program = _renamed(program, {"x": "x[0]"})
    new = {"id": taken, "kind": "normal", "factor": 1, "shape": list(shape)}
    program = {**program, "inputs": [*inputs, new]}
    program = _replaced(program, name, f"x[{len(inputs)}]")
    return without_inputs(program)


def without_inputs(program: Program) -> Program:
    """Without the inputs that no step reads."""
    read = {n for s in program["steps"] for n in s["in"]} | set(program["outputs"])
    count = len(program["inputs"])
    old = ["x"] if count == 1 else [f"x[{i}]" for i in range(count)]
    kept = [i for i in range(count) if old[i] in read]
    if not kept or len(kept) == count:
        return program
    new = ["x"] if len(kept) == 1 else [f"x[{j}]" for j in range(len(kept))]
    names = {old[i]: n for i, n in zip(kept, new, strict=True)}
    return _renamed({**program, "inputs": [program["inputs"][i] for i in kept]}, names)


def shapes_of(program: Program) -> dict[str, tuple[int, ...]]:
    """The shapes of all values of a program."""
    names = [s["name"] for s in program["steps"]]
    f, p, x = build({**program, "outputs": names})
    known = dict(zip(names, (tuple(o.shape) for o in jax.eval_shape(f, p, x)), strict=True))
    inputs = jax.tree.leaves(x)
    known |= {"x" if len(inputs) == 1 else f"x[{i}]": a.shape for i, a in enumerate(inputs)}
    return known | {f"p[{i}]": a.shape for i, a in enumerate(p)}
