"""Looking at values while a function is evaluated: the one door for calibration, comparison and sensitivity.

A probe sees what every site encodes. What it keeps of that is traced data, so it must leave the bodies of loops and branches
as their results: each body has a *frame*, and the rules of control flow hand its contents out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxq8.evaluation.values import Accumulator, Value
from jaxq8.numerics.qtensor import QTensor

Seen = dict[str, Any]


class Probe:
    """Sees nothing; the base of those that do.

    Attributes:
      active: Whether the rules of control flow must hand frames out of bodies.
      static: Whether every site is treated as one with a given range (one scale per tensor).
    """

    active = False
    static = False

    def __init__(self) -> None:
        self._frames: list[Seen] = [{}]

    def see(self, name: str, value: Value, codes: QTensor) -> None:
        """Called for every value that is encoded, under the name of its range."""

    def part(self, name: str, value: Value, codes: QTensor) -> None:
        """Called for the parts of a joined value that a contraction reads, beside `see` for the whole of it."""

    def reads(self, name: str, layout: Any, x: QTensor, w: QTensor) -> None:
        """Called for every contraction of exact values with its operands, and the layout that makes them canonical."""

    def contracted(self, name: str, result: Accumulator, encoded: Callable[[], jax.Array]) -> None:
        """Called for every contraction of exact values; `encoded` computes the same real numbers from codes."""

    @property
    def seen(self) -> Seen:
        """What was kept in the current frame."""
        return self._frames[-1]

    @contextmanager
    def frame(self) -> Iterator[Seen]:
        """A frame of its own for what is evaluated inside."""
        self._frames.append({})
        try:
            yield self._frames[-1]
        finally:
            self._frames.pop()

    def join(self, name: str, first: Any, second: Any) -> Any:
        """Two things kept under one name, as one; the default keeps the later."""
        return second

    def empty(self, name: str, like: Any) -> Any:
        """What joins with anything and changes nothing; `like` has its shapes and dtypes."""
        return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), like)

    def fold(self, name: str, stacked: Any) -> Any:
        """What a loop kept in all its steps (a leading axis), as one; the default keeps the axis."""
        return stacked

    def add(self, seen: Mapping[str, Any]) -> None:
        """Puts what a body kept into the current frame."""
        for name, kept in seen.items():
            self.seen[name] = self.join(name, self.seen[name], kept) if name in self.seen else kept


def framed(probe: Probe, body: Callable[..., Any]) -> Callable[..., tuple[Any, Seen]]:
    """`body` with what was seen in it as a second result."""

    def run(*inputs: Any) -> tuple[Any, Seen]:
        with probe.frame() as seen:
            results = body(*inputs)
        return results, dict(seen)

    return run


def shapes_seen(probe: Probe, body: Callable[..., Any], *inputs: Any) -> Seen:
    """Shapes of what `body` would keep, without computing it."""
    return jax.eval_shape(lambda *x: framed(probe, body)(*x)[1], *inputs) if probe.active else {}
