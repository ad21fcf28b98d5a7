"""Probes look at values while a function is evaluated. Calibration, comparison and sensitivity are probes.

A probe sees every value that a site encodes. What it keeps is traced data, which can leave the bodies of loops and branches
only as results of these bodies. So each body has a *frame*, and the rules of control flow return the contents of the frame.
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
    """A probe that keeps nothing; the base class of all others.

    Attributes:
      active: Whether the rules of control flow must return the contents of frames.
      static: Whether every site is treated as if it had a given range (one scale per tensor).
    """

    active = False
    static = False

    def __init__(self) -> None:
        self._frames: list[Seen] = [{}]

    def see(self, name: str, value: Value, codes: QTensor) -> None:
        """Called for every value that is encoded, with the name of its range."""

    def part(self, name: str, value: Value, codes: QTensor) -> None:
        """Called for each part of a joined value that a contraction reads, in addition to `see` for the whole value."""

    def reads(self, name: str, layout: Any, x: QTensor, w: QTensor) -> None:
        """Called for every contraction of exact values, with its operands and the layout that makes them canonical."""

    def contracted(self, name: str, result: Accumulator, encoded: Callable[[], jax.Array]) -> None:
        """Called for every contraction of exact values; `encoded` computes the same contraction from the operands' codes."""

    @property
    def seen(self) -> Seen:
        """The contents of the current frame."""
        return self._frames[-1]

    @contextmanager
    def frame(self) -> Iterator[Seen]:
        """Opens a new frame for what is evaluated inside."""
        self._frames.append({})
        try:
            yield self._frames[-1]
        finally:
            self._frames.pop()

    def join(self, name: str, first: Any, second: Any) -> Any:
        """Combines two things that were kept under one name; the default keeps the second."""
        return second

    def empty(self, name: str, like: Any) -> Any:
        """The neutral element of `join`; `like` has its shapes and dtypes."""
        return jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), like)

    def fold(self, name: str, stacked: Any) -> Any:
        """Combines what a loop kept in all its steps, stacked along a leading axis; the default keeps the axis."""
        return stacked

    def add(self, seen: Mapping[str, Any]) -> None:
        """Puts what a body kept into the current frame."""
        for name, kept in seen.items():
            if name in self.seen:
                kept = self.join(name, self.seen[name], kept)
            self.seen[name] = kept


def framed(probe: Probe, body: Callable[..., Any]) -> Callable[..., tuple[Any, Seen]]:
    """`body` with the contents of its frame as a second result."""

    def run(*inputs: Any) -> tuple[Any, Seen]:
        with probe.frame() as seen:
            results = body(*inputs)
        return results, dict(seen)

    return run


def shapes_seen(probe: Probe, body: Callable[..., Any], *inputs: Any) -> Seen:
    """Shapes of what the probe would keep of `body`, without computing it."""
    return jax.eval_shape(lambda *x: framed(probe, body)(*x)[1], *inputs) if probe.active else {}
