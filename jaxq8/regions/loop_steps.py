"""The step of a scan: its body is a program of its own, which runs once for each entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxq8._compat import Literal
from jaxq8.regions.builder import Recipe
from jaxq8.regions.places import Places
from jaxq8.regions.prepared import Loopable
from jaxq8.regions.program import Program
from jaxq8.regions.steps import NONE, Copy, Loop


@dataclasses.dataclass(frozen=True)
class Body:
    """The program of a loop's body.

    Attributes:
      program: The program.
      recipes: How each of its arguments is computed from the variables of the body.
      order: For each result of the body the number of the program's result.
    """

    program: Program
    recipes: tuple[Recipe, ...]
    order: tuple[int, ...]


class LoopSteps:
    """Adds such steps to a program while it is made."""

    def __init__(self, places: Places, body: Callable[[Loopable], Body]) -> None:
        self.places, self.body = places, body
        self.builder = places.builder

    def add(self, loop: Loopable) -> None:
        """Adds the step of a loop, and copies where its tensors have gaps."""
        scan, body = loop.scan, self.body(loop)
        first = scan.consts + scan.carried
        numbers = {v: number for number, v in enumerate(scan.inputs)}
        inputs, sliced, handed = [], [], []
        for recipe in body.recipes:
            number = numbers.get(recipe.source, -1)
            if number < 0 or recipe.source in loop.body.consts:
                inputs.append(self._known(recipe, loop.body.consts))
            else:
                inputs.append(self._operand(scan.invars[number]))
            sliced.append(number >= first)
            handed.append(body.order[number - scan.consts] if scan.consts <= number < first else NONE)
        outputs, spares = [NONE] * len(body.order), [NONE] * len(body.order)
        copies = []
        for place, (number, variable) in enumerate(zip(body.order, scan.outvars, strict=True)):
            home, shape, dtype = self._home(variable), variable.aval.shape, variable.aval.dtype
            outputs[number] = home
            if not self.builder.is_dense(home):
                outputs[number] = self.builder.temporary(shape, dtype)
                copies.append(Copy(outputs[number], home))
            if place < scan.carried:
                spares[number] = self.builder.temporary(shape, dtype)
        step = Loop(
            body.program, scan.params["length"], bool(scan.params["reverse"]), tuple(inputs), tuple(sliced), tuple(handed),
            tuple(outputs), tuple(spares),
        )  # fmt: skip
        self.places.add(step)
        for copy in copies:
            self.places.add(copy)

    def _home(self, variable: Any) -> int:
        """Where a result goes: what nobody reads needs memory, too."""
        graph = self.places.graph
        if variable in graph.wanted or graph.readers.get(variable):
            return self.places.home(variable)
        return self.builder.temporary(variable.aval.shape, variable.aval.dtype)

    def _operand(self, atom: Any) -> int:
        tensor = self.places.argument(atom) if isinstance(atom, Literal) else self.places.tensor(atom)
        return self.places.dense(tensor)

    def _known(self, recipe: Recipe, known: Mapping[Any, Any]) -> int:
        """An argument of the body whose numbers are known."""
        with jax.ensure_compile_time_eval():
            array = np.asarray(recipe.compute(lambda variable: known[variable]))
        return self.builder.argument(array.shape, array.dtype, lambda read: array)
