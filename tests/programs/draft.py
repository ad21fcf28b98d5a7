"""Drawing a program: operations one after the other, each on values that are there already."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax

from tests.programs import bodies, layers
from tests.programs.operations import TABLE, line
from tests.programs.program import MARK, Program, names, pruned

assert bodies.known()
assert layers.known()

Shape = tuple[int, ...]
LARGEST = 12_000  # elements of a value
STEPS = (4, 10)
IMAGES, VECTORS = [4, 8, 12, 16, 24], [4, 8, 16, 24, 33]


class Draft:
    """A program that is being drawn.

    Attributes:
      pick: Where all choices come from.
      shapes: Value name -> shape, of everything that a step can read.
    """

    def __init__(self, seed: int):
        self.pick = random.Random(seed)
        self.program: Program = {"seed": seed, "weights": [], "inputs": [], "steps": [], "outputs": []}
        self.shapes: dict[str, Shape] = {}
        self.structs: dict[str, Any] = {}
        self._computed_weights: set[str] = set()
        self._input()

    def _input(self) -> None:
        count = 2 if self.pick.random() < 0.25 else 1
        kind = self.pick.choice(["image"] * 4 + ["rows"] * 3 + ["matrices"] * 2 + ["signal", "volume"])
        first: Shape = ()
        for i in range(count):
            shape = first if first and self.pick.random() < 0.5 else self._input_shape(kind)
            first = first or shape
            drawn, factor = self.pick.choice(
                [("normal", 1)] * 4
                + [("uniform", 255), ("uniform", 255), ("uniform", 1), ("normal", 1e-3), ("normal", 1e3)]
            )
            self.program["inputs"].append({"id": 1000 + i, "kind": drawn, "factor": factor, "shape": shape})
            self._know("x" if count == 1 else f"x[{i}]", shape)

    def _input_shape(self, kind: str) -> Shape:
        pick = self.pick.choice
        side, c = (lambda: pick([4, 5, 6, 8, 10])), pick(IMAGES)
        return {
            "image": lambda: (pick([1, 2]), side(), side(), c), "rows": lambda: (pick([1, 2, 8, 24]), pick(VECTORS)),
            "matrices": lambda: (pick([1, 2, 3]), pick([4, 8, 12]), pick(VECTORS)),
            "signal": lambda: (pick([1, 2]), pick([6, 12, 20]), c), "volume": lambda: (1, 4, pick([3, 4]), 4, pick([4, 8])),
        }[kind]()  # fmt: skip

    def _know(self, name: str, shape: Sequence[int]) -> None:
        self.shapes[name] = tuple(shape)
        self.structs[name] = jax.ShapeDtypeStruct(tuple(shape), "float32")

    def data(self) -> list[str]:
        """Values that are no weights."""
        return [n for n in self.shapes if not n.startswith("p[") and n not in self._computed_weights]

    def any(self, suits: Callable[[Shape], bool] = lambda s: True) -> Any:
        """The name of a value that suits: often a late one; None if there is none."""
        fitting = [n for n in self.data() if suits(self.shapes[n])]
        if not fitting:
            return None
        return fitting[-1] if self.pick.random() < 0.4 else self.pick.choice(fitting)

    def weight(self, shape: Shape, fan_in: int, kind: str = "normal") -> str:
        """A weight of a shape: a new one as a rule, or one that is there, or a value computed of one."""
        there = [n for n in self.shapes if self.shapes[n] == tuple(shape)]
        if there and kind == "normal" and self.pick.random() < 0.4:
            return self.pick.choice(there)
        factor = float(f"{self.pick.choice([1, 1, 1, 1, 3]) / math.sqrt(max(fan_in, 1)):.2g}")
        name = self._new_weight(shape, factor, kind)
        if kind != "normal" or self.pick.random() < 0.85:
            return name
        op = self.pick.choice([k for k in TABLE if k.endswith("_of_weight") or k == "turned_weight"])
        computed = self.add(op, [name], {})
        if computed is None:
            return name
        self._computed_weights.add(computed)
        return computed

    def vector(self, shape: Shape) -> str:
        """A weight that no contraction reads: of a norm, a bias, an embedding."""
        return self._new_weight(shape, 1, "normal")

    def _new_weight(self, shape: Shape, factor: float, kind: str) -> str:
        number = len(self.program["weights"])
        self.program["weights"].append({"id": number, "kind": kind, "factor": factor, "shape": list(shape)})
        self._know(f"p[{number}]", shape)
        return f"p[{number}]"

    def add(self, op: str, inputs: list[str], numbers: dict[str, Any]) -> str | None:
        """Adds a step, if its result has a shape to go on with."""
        step = {"name": f"v{len(self.program['steps'])}", "op": op, "in": inputs, **numbers}
        shape = self._shape_of(step)
        if shape is None or math.prod(shape) > LARGEST or 0 in shape or len(shape) > 5:
            return None
        self.program["steps"].append(step)
        self._know(step["name"], shape)
        return step["name"]

    def _shape_of(self, step: dict[str, Any]) -> Shape | None:
        places = {n: f"a{i}" for i, n in enumerate(dict.fromkeys(step["in"]))}
        text = MARK.sub("(", line({**step, "in": [places[n] for n in step["in"]]}))
        try:
            made = eval(f"lambda {', '.join(places.values())}: {text}", names())
            return tuple(jax.eval_shape(made, *(self.structs[n] for n in places)).shape)
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            return None


def draw(seed: int) -> Program:
    """The random program of a seed, before anyone has looked at what it computes."""
    draft = Draft(seed)
    pick = draft.pick
    rows = [(name, entry) for name, entry in TABLE.items() if entry.often]
    wanted, tries = pick.randint(*STEPS), 0
    while sum(s["op"] in dict(rows) for s in draft.program["steps"]) < wanted and tries < 200:
        tries += 1
        name, entry = pick.choices(rows, [e.often for _, e in rows])[0]
        drawn = entry.draw(draft)
        if drawn and all(drawn[0]):
            draft.add(name, *drawn)
    program = draft.program
    read = {n for s in program["steps"] for n in s["in"]}
    unread = [s["name"] for s in program["steps"] if s["name"] not in read]
    more = [n for n in (s["name"] for s in program["steps"]) if n in read and pick.random() < 0.1]
    program["outputs"] = [*unread, *more]
    return pruned(program)
