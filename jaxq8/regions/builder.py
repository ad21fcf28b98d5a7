"""Makes a `Program`: gives out buffers, collects steps, and at the end places what is temporary into one arena."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxq8.regions.program import ARENA, Program, Tensor, dense, in_order
from jaxq8.regions.steps import NONE, Contract, Copy, Step

ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an argument is computed before the call.

    Attributes:
      compute: Computes it, given a function that reads variables.
      variables: The variables that it reads.
      source: The variable that holds the same numbers in the same order; None if they are computed.
    """

    compute: Callable[[Any], Any]
    variables: tuple[Any, ...]
    source: Any = None


@dataclasses.dataclass
class _Buffer:
    """A buffer while the program is made.

    Attributes:
      nbytes: Its size.
      place: Its place in the program, as in `Tensor.place`.
      same: A buffer whose memory this one takes over; itself for most.
    """

    nbytes: int
    place: int
    same: int


@dataclasses.dataclass(frozen=True)
class _View:
    buffer: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Builder:
    """Collects a program. Tensors are numbers, as in the steps.

    Attributes:
      steps: The steps so far.
      recipes: How each argument is computed, in their order.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.recipes: list[Recipe] = []
        self._args: list[tuple[tuple[int, ...], str]] = []
        self._results: list[tuple[tuple[int, ...], str]] = []
        self._buffers: list[_Buffer] = []
        self._views: list[_View] = []
        self._aliases: list[tuple[int, int]] = []

    def argument(
        self, shape: Sequence[int], dtype: Any, compute: Callable[[Any], Any], variables: Sequence[Any] = (),
        source: Any = None,
    ) -> int:  # fmt: skip
        """A new argument."""
        self.recipes.append(Recipe(compute, tuple(variables), source))
        self._args.append((tuple(shape), np.dtype(dtype).name))
        return self._new(shape, dtype, len(self._args) - 1)

    @property
    def results(self) -> int:
        """How many results there are."""
        return len(self._results)

    def result(self, shape: Sequence[int], dtype: Any) -> int:
        """A new result."""
        self._results.append((tuple(shape), np.dtype(dtype).name))
        return self._new(shape, dtype, -1 - len(self._results))

    def temporary(self, shape: Sequence[int], dtype: Any) -> int:
        """New memory in the arena."""
        return self._new(shape, dtype, ARENA)

    def _new(self, shape: Sequence[int], dtype: Any, place: int) -> int:
        dtype = np.dtype(dtype)
        number = len(self._buffers)
        self._buffers.append(_Buffer(math.prod(shape) * dtype.itemsize, place, number))
        return self._viewed(_View(number, dtype.name, tuple(shape), dense(shape), 0))

    def _viewed(self, view: _View) -> int:
        self._views.append(view)
        return len(self._views) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        return self._views[tensor].shape

    def dtype(self, tensor: int) -> str:
        return self._views[tensor].dtype

    def is_dense(self, tensor: int) -> bool:
        view = self._views[tensor]
        return in_order(view.shape, view.strides)

    def is_same(self, first: int, second: int) -> bool:
        """Whether two tensors are the same view."""
        return self._views[first] == self._views[second]

    def reshaped(self, tensor: int, shape: Sequence[int]) -> int:
        """The same memory in another shape; the tensor must be dense."""
        view = self._views[tensor]
        if view.shape == tuple(shape):
            return tensor
        return self._viewed(dataclasses.replace(view, shape=tuple(shape), strides=dense(shape)))

    def strides(self, tensor: int) -> tuple[int, ...]:
        return self._views[tensor].strides

    def expanded(self, tensor: int, shape: Sequence[int]) -> int:
        """The same memory with axes of size 1 more or less; any other shape of as many elements if the tensor is dense."""
        view = self._views[tensor]
        if view.shape == tuple(shape) or self.is_dense(tensor):
            return self.reshaped(tensor, shape)
        steps = iter([s for n, s in zip(view.shape, view.strides, strict=True) if n != 1])
        strides = tuple(1 if n == 1 else next(steps) for n in shape)
        return self._viewed(dataclasses.replace(view, shape=tuple(shape), strides=strides))

    def cut(
        self, tensor: int, starts: Sequence[int], shape: Sequence[int], steps: Sequence[int] | None = None
    ) -> int:
        """A part of a tensor, as a view."""
        view = self._views[tensor]
        steps = steps or (1,) * len(starts)
        offset = sum(a * s for a, s in zip(starts, view.strides, strict=True)) * np.dtype(view.dtype).itemsize
        strides = tuple(s * k for s, k in zip(view.strides, steps, strict=True))
        return self._viewed(
            dataclasses.replace(view, shape=tuple(shape), strides=strides, offset=view.offset + offset)
        )

    def transposed(self, tensor: int, permutation: Sequence[int]) -> int:
        """The same memory with its axes in another order."""
        view = self._views[tensor]
        shape, strides = (tuple(a[i] for i in permutation) for a in (view.shape, view.strides))
        return self._viewed(dataclasses.replace(view, shape=shape, strides=strides))

    def build(self) -> Program:
        """The program, with all temporary tensors in one arena."""
        self._leave_out_copies()
        self._take_over()
        offsets, arena = self._placed()
        numbers = {buffer: number for number, buffer in enumerate(offsets)}
        tensors = []
        for view in self._views:
            buffer = self._root(view.buffer)
            place = self._buffers[buffer].place
            if place < ARENA:
                place = len(self._args) - 2 - place
            offset = view.offset + offsets.get(buffer, 0)
            number = numbers.get(buffer, NONE)
            tensors.append(Tensor(view.dtype, view.shape, place, offset, view.strides, number))
        buffers = tuple((start, self._buffers[buffer].nbytes) for buffer, start in offsets.items())
        args, results = tuple(self._args), tuple(self._results)
        aliases = tuple(sorted(self._aliases))
        return Program(args, results, tuple(tensors), tuple(self.steps), arena, buffers, aliases)

    def _root(self, buffer: int) -> int:
        while self._buffers[buffer].same != buffer:
            buffer = self._buffers[buffer].same
        return buffer

    def _lifetimes(self) -> dict[int, tuple[int, int]]:
        """The first and the last step that uses each temporary buffer."""
        lives: dict[int, tuple[int, int]] = {}
        for index, step in enumerate(self.steps):
            for tensor in (*step.reads, *step.writes):
                buffer = self._root(self._views[tensor].buffer)
                if self._buffers[buffer].place == ARENA:
                    lives[buffer] = (lives.get(buffer, (index, index))[0], index)
        return lives

    def _leave_out_copies(self) -> None:
        """Leaves out copies of whole buffers that nobody uses afterwards: the copy lies where the original lay.

        So updates of a cache are made in place. Where the original is an argument and the copy ends as a result, the two
        become one buffer, and whoever calls the program decides whether the argument has to be copied for that.
        """
        for index in reversed(range(len(self.steps))):
            step = self.steps[index]
            if isinstance(step, Copy) and self._merged(step, index):
                del self.steps[index]

    def _merged(self, step: Copy, index: int) -> bool:
        """Makes one buffer of what a copy reads and what it writes, if nobody can tell; returns whether it did."""
        old, new = self._views[step.src], self._views[step.dst]
        source, target = self._root(old.buffer), self._root(new.buffer)
        whole = all(self.is_dense(t) and self._is_whole(t) for t in (step.src, step.dst))
        before, after = self._buffers[source].place, self._buffers[target].place
        if source == target or not whole or old.dtype != new.dtype or before < ARENA or after > ARENA:
            return False
        uses = [(i, buffer) for i, other in enumerate(self.steps) for buffer in self._used(other)]
        if any(i > index for i, buffer in uses if buffer == source):
            return False
        if any(i < index for i, buffer in uses if buffer == target):
            return False
        if before > ARENA:
            if after == ARENA:
                return False
            argument, result = before, -2 - after
            taken = any(argument == a or result == r for a, r in self._aliases)
            if taken or self._args[argument] != self._results[result]:
                return False
            self._aliases.append((argument, result))
        self._buffers[source].same = target
        return True

    def _used(self, step: Step) -> set[int]:
        return {self._root(self._views[t].buffer) for t in (*step.reads, *step.writes)}

    def _take_over(self) -> None:
        """Lets a contraction write over a residual that nobody reads after it, so that the sum is made in place."""
        for index, step in enumerate(self.steps):
            if not isinstance(step, Contract) or step.residual == NONE:
                continue
            old, new = self._views[step.residual], self._views[step.dst]
            source, target = self._root(old.buffer), self._root(new.buffer)
            lives = self._lifetimes()
            # Where the residual is also what is convolved, its places are read after the results beside them are written.
            others = [self._root(self._views[t].buffer) for t in step.reads]
            is_whole = all(self.is_dense(t) and self._is_whole(t) for t in (step.residual, step.dst))
            if (
                source == target
                or others.count(source) != 1
                or old.dtype != new.dtype
                or not is_whole
                or source not in lives
                or target not in lives
            ):
                continue
            if lives[source][1] == index and lives[target][0] == index:
                self._buffers[target].same = source

    def _is_whole(self, tensor: int) -> bool:
        view = self._views[tensor]
        return math.prod(view.shape) * np.dtype(view.dtype).itemsize == self._buffers[view.buffer].nbytes

    def _placed(self) -> tuple[dict[int, int], int]:
        """Where in the arena each temporary buffer lies, and the size of the arena. Larger buffers are placed first."""
        lives = self._lifetimes()
        offsets: dict[int, int] = {}
        size = 0
        for buffer in sorted(lives, key=lambda b: (-self._buffers[b].nbytes, lives[b])):
            first, last = lives[buffer]
            nbytes = -(-self._buffers[buffer].nbytes // ALIGNMENT) * ALIGNMENT
            others = [b for b in offsets if lives[b][0] <= last and first <= lives[b][1]]
            start = 0
            for other in sorted(others, key=offsets.__getitem__):
                if start + nbytes <= offsets[other]:
                    break
                end = offsets[other] + -(-self._buffers[other].nbytes // ALIGNMENT) * ALIGNMENT
                start = max(start, end)
            offsets[buffer] = start
            size = max(size, start + nbytes)
        return offsets, size
