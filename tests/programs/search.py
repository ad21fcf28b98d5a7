"""The search: programs of consecutive seeds, each held against the laws; what fails is made small and printed as Python."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxq8._compat import open_jaxpr
from jaxq8.analysis.inner_functions import callees
from tests.programs.draft import draw
from tests.programs.laws import LAWS
from tests.programs.program import Program
from tests.programs.settings import QUICK
from tests.programs.show import report
from tests.programs.shrink import shrink
from tests.programs.trial import Trial, Useless, dots

CLEAR_EVERY = 25  # compiled programs exhaust the memory maps of a process
DRAWS = 20  # programs that a seed may draw until one can be held against the laws


@dataclasses.dataclass
class Found:
    """What a search has seen.

    Attributes:
      reports: For each failure its text.
      laws: Law -> how often it was checked.
      failed: Law -> how often it failed.
      seconds: Law -> how long it took.
      primitives: Of JAX, inner functions included.
      operations: How often programs had them.
      deep: Programs with at least two contractions in eight bits.
      unsure: Failures that went away where the compiler optimizes a little; see `settings.QUICK`.
      programs: How many were run.
      useless: Draws with nothing to hold against a law.
    """

    reports: list[str] = dataclasses.field(default_factory=list)
    laws: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    primitives: set[str] = dataclasses.field(default_factory=set)
    operations: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    deep: int = 0
    unsure: int = 0
    programs: int = 0
    useless: int = 0

    def add(self, other: Found) -> None:
        """Takes in what another process has seen."""
        for field in dataclasses.fields(self):
            mine, new = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, mine | new if isinstance(mine, set) else mine + new)

    def summary(self) -> str:
        """A few lines."""
        laws = ", ".join(
            f"{n} {self.laws[n]}"
            + (f" (drawn for {LAWS[n].share:.0%})" if LAWS[n].share < 1 else "")
            + (f" ({self.failed[n]} failed)" if self.failed[n] else "")
            for n in LAWS
            if n in self.laws
        )
        common = ", ".join(f"{n} {c}" for n, c in self.operations.most_common())
        times = ", ".join(f"{n} {s:.0f}" for n, s in self.seconds.most_common())
        return (
            f"{self.programs} programs, {len(self.reports)} failed; {self.useless} draws were degenerate\n"
            f"{self.deep} with at least two contractions in eight bits; {len(self.primitives)} primitives; "
            f"{self.unsure} failures only at optimization level 0\n"
            f"laws: {laws}\noperations: {common}\nseconds: {times}"
        )


def prepared(seed: int) -> tuple[Trial, int]:
    """The first program of a seed that can be held against the laws, and how many draws were dropped before it."""
    for attempt in range(DRAWS):
        program = draw(seed * DRAWS + attempt)
        if program["outputs"]:
            try:
                return Trial(program, QUICK), attempt
            except Useless:
                continue
    raise Useless


def chosen_laws(seed: int) -> list[str]:
    """The laws that the program of a seed is held against."""
    pick = random.Random(f"laws of {seed}")
    return [name for name, entry in LAWS.items() if pick.random() < entry.share]


def broken(trial: Trial, law: str) -> list[str] | None:
    """What is wrong by one law; an exception is wrong by any law. None: the law says nothing here."""
    with dots(trial.settings.mixed):
        try:
            return LAWS[law].check(trial)
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            return [f"raises {type(error).__name__}: {lines[0][:300]}"]


def surely_broken(program: Program, law: str) -> list[str] | None:
    """`broken` of a program that is compiled anew, at a level that XLA gets right."""
    try:
        return broken(Trial(program), law)
    except Useless:
        return None


def check(trial: Trial, laws: list[str], found: Found) -> Iterator[tuple[str, list[str]]]:
    """The first law that is broken, with what is wrong."""
    for law in laws:
        start = time.monotonic()
        problems = broken(trial, law)
        if problems and trial.quick is QUICK:
            problems = surely_broken(trial.program, law)
            found.unsure += not problems
        found.seconds[law] += time.monotonic() - start
        if problems is None:
            continue
        found.laws[law] += 1
        if problems:
            found.failed[law] += 1
            yield law, problems
            return  # what follows would only say it again


def search(
    cases: int, seed: int, small: bool = True, stop_after: int | None = None, say: Callable[[str], None] = lambda text: None,
    only: list[str] | None = None, budget: float = 120.0,
) -> Found:  # fmt: skip
    """Holds the programs of `cases` seeds against the laws.

    Args:
      cases: How many.
      seed: The first.
      small: Whether to shrink what fails.
      stop_after: End after that many failures.
      say: Called with each report at once.
      only: Laws to check instead of those that seeds choose.
      budget: Seconds for shrinking one program.
    """
    found = Found()
    for number in range(seed, seed + cases):
        try:
            trial, dropped = prepared(number)
        except Useless:
            found.useless += DRAWS
            continue
        found.useless += dropped
        found.programs += 1
        found.operations.update(s["op"] for s in trial.program["steps"])
        found.deep += eight_bit_contractions(trial) >= 2
        for law, problems in check(trial, only or chosen_laws(number), found):
            program = trial.program
            if small:
                program, problems = shrink(
                    program, lambda p, law=law, like=problems: same(p, law, like), problems, budget
                )
            found.reports.append(report(program, number, law, problems))
            say(found.reports[-1])
        found.primitives |= primitives_of(jax.make_jaxpr(trial.f)(trial.p, trial.x).jaxpr)
        if number % CLEAR_EVERY == 0:
            jax.clear_caches()
        if stop_after is not None and len(found.reports) >= stop_after:
            break
    return found


def same(program: Program, law: str, like: list[str]) -> list[str] | None:
    """What is wrong with a smaller program, if it is the same kind of wrong: an exception of the same type, or none."""
    try:
        problems = broken(Trial(program), law)
    except Exception:  # the float program itself is impossible, or useless
        return None
    return problems if problems and _kind(problems) == _kind(like) else None


def _kind(problems: list[str]) -> str:
    return problems[0].split(":")[0] if problems[0].startswith("raises") else ""


def eight_bit_contractions(trial: Trial) -> int:
    """How many contractions run in eight bits, as the plan says."""
    with dots(trial.settings.mixed), contextlib.suppress(Exception):  # the laws will say it
        assert trial.fast
    return trial.contractions


def primitives_of(jaxpr: Any) -> set[str]:
    """Names of all primitives, inner functions included."""
    names = {str(eqn.primitive) for eqn in jaxpr.eqns}
    return names.union(*(primitives_of(open_jaxpr(c.jaxpr)[0]) for eqn in jaxpr.eqns for c in callees(eqn)))
