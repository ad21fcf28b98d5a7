"""A program for many batches at once: what `jax.vmap` makes of a native call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxq8.regions.program import ARENA, Program, Tensor
from jaxq8.regions.steps import (
    NONE,
    Contract,
    Copy,
    Elementwise,
    Fill,
    Pool,
    Product,
    Reduce,
    Step,
    Take,
    Update,
)


class _CannotError(Exception):
    """Raised where a step does not keep batches apart along the first axis."""


def folded(program: Program, size: int, batched: Sequence[bool]) -> Program | None:
    """The program with another axis folded into the first axis of its data.

    Args:
      program: The program of one batch.
      size: How many batches there are.
      batched: For each argument whether it differs between the batches. Such an argument becomes `size` times as long along
        its first axis.

    Returns:
      A program whose results are `size` times as long along their first axes; None if some step has no such form, because it
      reads vectors that differ between the batches, or moves the first axis.
    """
    try:
        return _Folding(program, size, batched).program()
    except _CannotError:
        return None


class _Folding:
    def __init__(self, program: Program, size: int, batched: Sequence[bool]) -> None:
        self.before, self.size = program, size
        self.buffers = {("arg", i) for i, flag in enumerate(batched) if flag}
        count = len(program.args)
        self.buffers |= {("arg", count + result) for argument, result in program.aliases if batched[argument]}
        changed = True
        while changed:
            count = len(self.buffers)
            for step in program.steps:
                if any(self.is_batched(t) for t in step.reads):
                    self.buffers.update(self._buffer(t) for t in step.writes)
            changed = len(self.buffers) != count

    def _buffer(self, number: int) -> tuple[str, int]:
        tensor = self.before.tensors[number]
        return ("arena", tensor.buffer) if tensor.place == ARENA else ("arg", tensor.place)

    def is_batched(self, number: int) -> bool:
        """Whether a tensor differs between the batches."""
        return self._buffer(number) in self.buffers

    def program(self) -> Program:
        before = self.before
        for argument, result in before.aliases:
            if (("arg", len(before.args) + result) in self.buffers) != (("arg", argument) in self.buffers):
                raise _CannotError  # each batch writes into what is the same for all
        tensors = tuple(self._tensor(i, t) for i, t in enumerate(before.tensors))
        steps = tuple(map(self._step, before.steps))
        places = range(len(before.args) + len(before.results))
        longer = [
            (self._longer(shape), dtype) if ("arg", place) in self.buffers else (shape, dtype)
            for place, (shape, dtype) in zip(places, (*before.args, *before.results), strict=True)
        ]
        count = len(before.args)
        buffers = tuple((start * self.size, nbytes * self.size) for start, nbytes in before.buffers)
        args, results = tuple(longer[:count]), tuple(longer[count:])
        return Program(args, results, tensors, steps, before.arena * self.size, buffers, before.aliases)

    def _longer(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape:
            raise _CannotError
        return (shape[0] * self.size, *shape[1:])

    def _tensor(self, number: int, tensor: Tensor) -> Tensor:
        start, nbytes = 0, 0
        if tensor.place == ARENA:
            if tensor.buffer == NONE:  # never read or written
                return tensor
            start, nbytes = self.before.buffers[tensor.buffer]
        else:
            shape, dtype = (*self.before.args, *self.before.results)[tensor.place]
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        offset = start * self.size + tensor.offset - start if tensor.place == ARENA else tensor.offset
        if not self.is_batched(number):
            return dataclasses.replace(tensor, offset=offset)
        if not tensor.shape:
            raise _CannotError
        # The first axis has to go through the whole buffer, so that one batch lies behind the other.
        step = tensor.strides[0] * tensor.itemsize if tensor.shape[0] > 1 else nbytes
        if step * tensor.shape[0] != nbytes or tensor.offset - start >= step:
            raise _CannotError
        strides = (step // tensor.itemsize, *tensor.strides[1:])
        return dataclasses.replace(tensor, shape=self._longer(tensor.shape), strides=strides, offset=offset)

    def _step(self, step: Step) -> Step:
        """A step on longer tensors; its numbers stay, so most steps stay as they are."""
        if not any(self.is_batched(t) for t in step.writes):
            return step
        if isinstance(step, Elementwise):
            return self._elementwise(step)
        if isinstance(step, Reduce) and any(
            self.before.tensors[t].shape[:1] != self.before.tensors[step.src].shape[:1] for t in step.writes
        ):
            raise _CannotError  # it reduces the first axis
        if isinstance(step, Update | Take) and not self._keeps_first(step):
            raise _CannotError  # it moves along the first axis
        same, longer = _operands(step, len(self.before.tensors[step.writes[0]].shape))
        if any(t != NONE and self.is_batched(t) for t in same):
            raise _CannotError
        if any(t != NONE and not self.is_batched(t) for t in longer):
            raise _CannotError
        return step

    def _keeps_first(self, step: Update | Take) -> bool:
        src, dst = (self.before.tensors[t].shape for t in (step.src, step.dst))
        return step.starts[:1] == (NONE,) and src[0] == dst[0]

    def _elementwise(self, step: Elementwise) -> Elementwise:
        for number in step.inputs:
            first = self.before.tensors[number].shape[0]
            # What is the same for all batches is broadcast along the first axis; what differs is as long as the result.
            if first != (step.shape[0] if self.is_batched(number) else 1):
                raise _CannotError
        return dataclasses.replace(step, shape=self._longer(step.shape))


def _operands(
    step: Contract | Copy | Fill | Pool | Reduce | Product | Update | Take, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tensors that must be the same for all batches, and those that must be longer where the result, of this rank, is."""
    if isinstance(step, Product):
        return ((step.b,), (step.a,)) if rank == 2 else ((), (step.a, step.b))
    if isinstance(step, Contract):
        return (step.weights, step.mult, step.offset, step.rescale, step.shift), (step.src, step.residual)
    if isinstance(step, Update):
        return step.starts, (step.src, step.dst)
    if isinstance(step, Take):
        return step.starts, (step.src,)
    if isinstance(step, Pool):
        return (step.border,), (step.src,)
    return ((step.value,), ()) if isinstance(step, Fill) else ((), (step.src,))
