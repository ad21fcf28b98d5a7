"""The steps of `compress`, in their order, and the rule by which a step is kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxq8.config import Config
from jaxq8.learning.layers import learnable_layers
from jaxq8.learning.learn_rounding import SHRINKS, learn_rounding
from jaxq8.learning.recipe_codes import BiasMeans, Net, harm, spliced
from jaxq8.learning.recipe_measure import Data, Measure, Score
from jaxq8.learning.recipe_state import Candidate, Memory

GROUPS = (32, 64, 128)
STAGES = (4, 16)  # of learned rounding, after one stage
DESCRIPTION = 16  # bytes by which the description of a tensor in a file may grow
clock = time.monotonic


@dataclasses.dataclass(frozen=True)
class Targets:
    """What is to be reached; None where nothing is asked."""

    db: float | None
    agreement: float | None
    bytes: int | None

    @property
    def of_accuracy(self) -> bool:
        """Whether there is a target that only accuracy can meet."""
        return self.db is not None or self.agreement is not None

    def accurate(self, score: Score | None) -> bool:
        """Whether the targets of accuracy are met."""
        if not self.of_accuracy:
            return True
        if score is None:
            return False
        same = score.agreement[0] if score.agreement else 1.0
        return score.db[0] >= (self.db or -math.inf) and same >= (self.agreement or 0)

    def met(self, score: Score | None, count: int) -> bool:
        """Whether all targets are met by a file of `count` bytes."""
        return self.accurate(score) and (self.bytes is None or count <= self.bytes)

    def rank(self, score: Score) -> tuple[float, ...]:
        """What is larger for the smaller error."""
        if self.agreement is not None and self.db is None and score.agreement is not None:
            return score.agreement[0], score.db[0]
        return (score.db[0],)


class Recipe:
    """Takes one step after the other, and holds the best that was reached."""

    def __init__(
        self, net: Net, data: Data, measure: Measure | None, memory: Memory, targets: Targets, bits: int, least: int,
        limit: int, end: float, progress: bool,
    ):  # fmt: skip
        self._net, self._data, self._measure, self._memory = net, data, measure, memory
        self._targets, self._bits, self._least, self._limit = targets, bits, least, limit
        self._progress = progress
        self._end = end
        self._weights = net.weights()
        self._means: BiasMeans | None = None
        self._bar: Any = None
        self._late = False

    def run(self) -> tuple[Candidate, str]:
        """The best candidate, and why there is no further step."""
        with tqdm(desc="compressing", unit="step", disable=not self._progress) as self._bar:
            self._codes()
            # Other groups and other programs compile as long as the first step did; other widths run in its program.
            for step, part in (
                (self._raise_some, 0.25), (self._groups, 1.0), (self._bias, 1.0), (self._rounding, 1.0), (self._accuracy, 0.25),
            ):  # fmt: skip
                if not self._over(part * self._first_seconds()):
                    step()
        best = self._best()
        assert best is not None  # the first step is always taken
        if self._targets.of_accuracy and self._targets.met(best.score, best.bytes):
            return best, "the target is met"
        return best, "the time is over" if self._late else "no step is left"

    def config_of(self, candidate: Candidate) -> Config:
        """The configuration that a candidate runs with.

        It says nothing of the widths of weights: these are codes already, and with eight bits as the widest no site encodes
        them again.
        """
        return self._net.without([site for leaf in candidate.floats for site in self._weights[leaf].sites])

    def _making(self, candidate: Candidate) -> Config:
        """The configuration that a candidate's weights are encoded with."""
        raised = [site for leaf in candidate.raised for site in self._weights[leaf].sites]
        return self._net.with_weights(candidate.bits, candidate.group, raised)

    def _best(self) -> Candidate | None:
        return self._memory.candidate("best")

    def _over(self, seconds: float = 0.0) -> bool:
        """Whether to stop: a target of accuracy is met, or a step of so many seconds would end too late."""
        best = self._best()
        if best is not None and self._targets.of_accuracy and self._targets.met(best.score, best.bytes):
            return True
        return self._out_of_time(seconds)

    def _out_of_time(self, seconds: float = 0.0) -> bool:
        late = clock() + seconds >= self._end
        self._late = self._late or late
        return late

    def _try(self, key: str, what: str, make: Callable[[], Candidate]) -> Score | None:
        """Takes one step and keeps what it made if that is better; a step that was taken in an earlier run is not repeated."""
        row = self._memory.done(key)
        if row is not None:
            return Score.of_row(row) if self._measure else None
        self._bar.set_description(what)
        start = clock()
        made = make()
        config = self.config_of(made)
        packed = self._net.folded(made.variables, config)
        count = self._net.file_bytes(packed, config)
        score = self._measure.score(packed, config, self._net.ranges) if self._measure else None
        made = dataclasses.replace(made, bytes=count, score=score)
        kept = self._better(made)
        self._memory.rows.append({
            "key": key, "step": len(self._memory.rows) + 1, "what": what, "bytes": count,
            "seconds": round(clock() - start, 1), "kept": kept, **(score.row() if score else {}),
        })  # fmt: skip
        if kept:
            self._memory.keep("best", made)
        self._memory.write()
        self._bar.update()
        if score is not None:
            self._bar.set_postfix_str(f"{score.db[0]:.1f} dB")
        return score

    def _better(self, new: Candidate) -> bool:
        old = self._best()
        if old is None:
            return True
        if self._targets.bytes is not None and new.bytes > self._targets.bytes:
            return False
        if new.score is None or old.score is None:
            return True
        first, second = self._targets.accurate(old.score), self._targets.accurate(new.score)
        if self._targets.of_accuracy and first and second:
            return new.bytes < old.bytes
        if first != second:
            return second
        return self._targets.rank(new.score) > self._targets.rank(old.score)

    def _first_seconds(self) -> float:
        row = self._memory.done("codes")
        return float(row["seconds"]) if row else 0.0

    # The steps.

    def _codes(self) -> None:
        what = f"{self._bits} bits, one scale a channel, corrected by statistics"
        self._try("codes", what, lambda: self._encoded(Candidate(None, self._bits)))

    def _raise_some(self) -> None:
        if self._bits == 8:
            return
        raised = self._affordable(0)
        if raised:
            what = f"8 bits in the {_layers(len(raised))} where they help most a byte"
            self._try("raised", what, lambda: self._encoded(Candidate(None, self._bits, raised=raised)))

    def _groups(self) -> None:
        group = next((group for group in GROUPS if self._plain_size(group) <= self._limit), None)
        if group is None:
            return
        plan = Candidate(None, self._bits, group, raised=self._affordable(group))
        more = f", 8 bits in {_layers(len(plan.raised))}" if plan.raised else ""
        self._try("groups", f"a scale for each {plan.group} neighbours{more}", lambda: self._encoded(plan))

    def _bias(self) -> None:
        best = self._best()
        if self._measure is None or best is None:
            return
        self._try("bias", "biases corrected as measured on the batches", lambda: self._bias_corrected(best))

    def _rounding(self) -> None:
        best = self._best()
        if self._measure is None or best is None:
            return
        config = self._making(best)
        if self._memory.done("rounding 1") is None and self._over(self._rounding_seconds(config)):
            return

        def learned(stages: int) -> Candidate:
            variables = learn_rounding(
                self._net.fn, self._net.variables, self._data.learn, config=config, stages=stages, progress=self._progress,
                **self._net.kwargs,
            )  # fmt: skip
            return dataclasses.replace(best, variables=variables)

        self._try("rounding 1", "rounding learned (GPTQ) in one stage", lambda: learned(1))
        layers, earlier = len(self._weights), 1
        for stages in STAGES:
            last = self._memory.done(f"rounding {earlier}")
            if last is None or not last["kept"] or stages > layers:
                return
            # Each further stage passes over the data again; that and compiling is about half of the first run.
            key, factor = f"rounding {stages}", 1 + 0.5 * (stages - earlier)
            if self._memory.done(key) is None and self._over(last["seconds"] * factor):
                return
            self._try(key, f"rounding learned in {stages} stages", lambda stages=stages: learned(stages))  # type: ignore[misc]
            earlier = stages

    def _accuracy(self) -> None:
        """Spends bytes on a target of accuracy that cheaper steps have not met: eight bits first, then float."""
        if not self._targets.of_accuracy or self._best() is None:
            return
        base = self._remembered("base")
        order = [leaf for leaf in self._order() if leaf not in base.raised]
        config = self._net.with_weights(8)
        eight = self._corrector().corrected(self._net.encoded(config))

        def wide(count: int) -> Candidate:
            chosen = tuple(order[:count])
            variables = spliced(base.variables, eight, self._with_vectors(chosen))
            return dataclasses.replace(base, variables=variables, raised=(*base.raised, *chosen))

        if self._bits < 8:
            self._fewest("raised", "8 bits in {} more", wide, len(order))
        if self._over():
            return
        top = self._remembered("raised")
        rest = [leaf for leaf in self._order() if leaf not in top.floats]

        def exact(count: int) -> Candidate:
            chosen = tuple(rest[:count])
            variables = spliced(top.variables, self._net.variables, self._with_vectors(chosen))
            raised = tuple(leaf for leaf in top.raised if leaf not in chosen)
            return dataclasses.replace(top, variables=variables, raised=raised, floats=(*top.floats, *chosen))

        self._fewest("floats", "{} in float", exact, len(rest))

    def _fewest(self, name: str, what: str, make: Callable[[int], Candidate], most: int) -> None:
        """Finds by bisection the fewest layers that meet the target, or as many as the size allows."""
        low, high = 0, most
        count = most
        while high > low and count > low:
            key = f"{name} {count}"
            if self._memory.done(key) is None and self._out_of_time(0.25 * self._first_seconds()):
                return
            score = self._try(key, what.format(_layers(count)), lambda count=count: make(count))  # type: ignore[misc]
            row = self._memory.done(key)
            assert row is not None
            too_large = self._targets.bytes is not None and row["bytes"] > self._targets.bytes
            if too_large or self._targets.accurate(score):
                high = count
            else:
                low = count
            count = (low + high) // 2

    # What the steps are made of.

    def _remembered(self, name: str) -> Candidate:
        """The best candidate at the time when a step began, also if the step is continued in a later run."""
        found = self._memory.candidate(name)
        if found is None:
            found = self._best()
            assert found is not None
            self._memory.keep(name, found)
            self._memory.write()
        return found

    def _encoded(self, plan: Candidate) -> Candidate:
        return dataclasses.replace(plan, variables=self._net.encoded(self._making(plan)))

    def _bias_corrected(self, candidate: Candidate) -> Candidate:
        corrected = self._corrector().corrected(candidate.variables)
        return dataclasses.replace(candidate, variables=corrected)

    def _corrector(self) -> BiasMeans:
        if self._means is None:
            self._means = BiasMeans(self._net, self._data.learn)
        return self._means

    def _with_vectors(self, leaves: Sequence[int]) -> list[int]:
        """Leaves of weights, and of the vectors after them that take up their mean errors."""
        vectors = self._corrector().vectors
        return [
            *leaves,
            *(vectors[site] for leaf in leaves for site in self._weights[leaf].sites if site in vectors),
        ]

    def _order(self) -> list[int]:
        """The layers, those first in which eight bits take most of the error away for each byte that they cost."""
        if self._measure is None:
            return []
        if "harm" not in self._memory.notes:
            codes = self._net.encoded(self._net.with_weights(self._bits))
            found = harm(self._net, codes, self._weights, self._data.learn)
            self._memory.notes["harm"] = {str(leaf): value for leaf, value in found.items()}
            self._memory.write()
        harms = {int(leaf): value for leaf, value in self._memory.notes["harm"].items()}
        return sorted(harms, key=lambda leaf: -harms[leaf] / max(self._cost(leaf, 0), 1))

    def _cost(self, leaf: int, group: int) -> int:
        """The bytes that eight bits, with one scale a channel, need more."""
        weight = self._weights[leaf]
        return weight.bytes(8) - weight.bytes(self._bits, group)

    def _plain_size(self, group: int) -> int:
        """The size of a file in which no layer has eight bits, about."""
        more = sum(
            weight.bytes(self._bits, group) - weight.bytes(self._bits) for weight in self._weights.values()
        )
        return self._least + more + DESCRIPTION * len(self._weights)

    def _affordable(self, group: int) -> tuple[int, ...]:
        """The layers, in order, whose eight bits the size still allows."""
        left, chosen = self._limit - self._plain_size(group), []
        for leaf in self._order() if self._bits < 8 else ():
            cost = self._cost(leaf, group)
            if cost <= left:
                left -= cost
                chosen.append(leaf)
        return tuple(chosen)

    def _rounding_seconds(self, config: Config) -> float:
        """About how long one stage of learned rounding takes: its products, at the speed of one that is timed here."""
        first = self._data.learn[0]
        layers = learnable_layers(self._net.fn, self._net.variables, first, self._net.kwargs, config)
        work = 0.0
        for layer in layers:
            groups, terms, outputs = layer.places.shape
            work += 2.0 * groups * terms * terms * (len(SHRINKS) * outputs + terms)
        side = np.ones((512, 512), np.float32)
        start = clock()
        _ = side @ side
        rate = 2.0 * 512**3 / max(clock() - start, 1e-9)
        # Compiling and passing over the data takes about as long as two measurements.
        return work / rate + 2 * self._first_seconds()


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"
