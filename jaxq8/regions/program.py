"""`Program`: a small typed program over eight-bit tensors, which runs as one call.

A program is data: tensors that are views into buffers, and steps that read and write them. It is checked when it is made, can
be printed, and can be written as integers and read back. Two executors run it: `jaxq8.regions.in_jax` in pure JAX, on any
platform, and `jaxq8.native` in one call into oneDNN.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxq8.errors import TensorError
from jaxq8.regions.steps import NONE, Contract, Loop, Pool, Step

DTYPES = ("uint8", "int8", "int32", "float32")
ARENA = -1
MAGIC, VERSION = 0x6A61787138, 3


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view into a buffer.

    Attributes:
      dtype: One of `DTYPES`.
      shape: Its sizes.
      place: The buffer: an argument (0 and up), a result (after the arguments), or `ARENA`.
      offset: Where the view begins, in bytes.
      strides: Steps between neighbours along each axis, in elements.
      buffer: The number of its buffer in the arena (see `Program.buffers`); `NONE` elsewhere.
    """

    dtype: str
    shape: tuple[int, ...]
    place: int
    offset: int
    strides: tuple[int, ...]
    buffer: int = NONE

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def extent(self) -> int:
        """Bytes from the beginning of the view to behind its last element."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether its elements lie in order and without gaps."""
        return in_order(self.shape, self.strides)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def in_order(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements with these strides lie in order and without gaps."""
    return all(n == 1 or s == d for n, s, d in zip(shape, strides, dense(shape), strict=True))


@dataclasses.dataclass(frozen=True)
class Program:
    """Tensors and steps. All fields are hashable, so that a program can be a static argument.

    Attributes:
      args: Shape and dtype of each argument.
      results: Shape and dtype of each result.
      tensors: All views; steps name them by their number.
      steps: What is done, in this order.
      arena: Bytes of temporary memory.
      buffers: Where each temporary buffer begins in the arena, and its bytes. Buffers that live at different times may overlap.
      aliases: (argument, result): the result begins with what the argument holds. Tensors lie in the result alone, so that
        the two can be the same memory.

    Raises:
      TensorError: A view leaves its buffer, a step names a tensor that does not exist, or an alias is of unlike buffers.
    """

    args: tuple[tuple[tuple[int, ...], str], ...]
    results: tuple[tuple[tuple[int, ...], str], ...]
    tensors: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    arena: int
    buffers: tuple[tuple[int, int], ...] = ()
    aliases: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        buffers = [*self.args, *self.results]
        self._check_aliases()
        begun = {argument for argument, _ in self.aliases}
        for number, tensor in enumerate(self.tensors):
            if tensor.dtype not in DTYPES or not -1 <= tensor.place < len(buffers):
                raise TensorError(f"tensor {number} of a region ({tensor}) has no buffer {tensor.place}")
            if tensor.place in begun:
                raise TensorError(
                    f"tensor {number} of a region ({tensor}) lies in an argument that a result begins with"
                )
            size = self.arena
            if tensor.place != ARENA:
                shape, dtype = buffers[tensor.place]
                size = math.prod(shape) * np.dtype(dtype).itemsize
                if dtype != tensor.dtype:
                    raise TensorError(f"tensor {number} of a region ({tensor}) lies in a buffer of {dtype}")
            if tensor.offset < 0 or tensor.offset + tensor.extent > size:
                raise TensorError(f"tensor {number} of a region ({tensor}) leaves its buffer of {size} bytes")
        for step in self.steps:
            names = (*step.reads, *step.writes)
            if any(not 0 <= t < len(self.tensors) for t in names):
                raise TensorError(f"a step of a region names a tensor that does not exist: {step}")
            if any(0 <= self.tensors[t].place < len(self.args) for t in step.writes):
                raise TensorError(f"a step of a region writes into an argument: {step}")
            if isinstance(step, Contract) and self._overlap(step.src, step.dst):
                raise TensorError(f"a contraction of a region writes over what it reads: {step}")
            if isinstance(step, Loop):
                self._check_loop(step)

    def _check_loop(self, step: Loop) -> None:
        """Makes sure that the tensors of a loop are those that its program has arguments and results for."""
        body = step.body
        fits = len(body.args) == len(step.inputs) == len(step.sliced) == len(step.handed) and step.length >= 1
        fits = fits and len(body.results) == len(step.outputs) == len(step.spares)
        if not fits or any(
            h != NONE and (s or step.spares[h] == NONE) for h, s in zip(step.handed, step.sliced, strict=True)
        ):
            raise TensorError(f"a loop of a region has other tensors than its program: {step}")
        again = [h for h in step.handed if h != NONE]
        if len(set(again)) < len(again):
            raise TensorError(f"a loop of a region hands a result on twice: {step}")
        entries = [step.length if s else 1 for s in step.sliced]
        entries += [step.length if spare == NONE else 1 for spare in step.spares]
        for number, (shape, dtype), count in zip(
            (*step.inputs, *step.outputs), (*body.args, *body.results), entries, strict=True
        ):
            tensor = self.tensors[number]
            if tensor.dtype != dtype or math.prod(tensor.shape) != count * math.prod(shape):
                raise TensorError(f"a loop of a region has {tensor} for {count} of {dtype}{list(shape)}")
            if not tensor.is_dense:
                raise TensorError(f"a loop of a region has a tensor with gaps: {tensor}")
        for result, spare in zip(step.outputs, step.spares, strict=True):
            ours, its = (self.tensors[t] for t in (result, result if spare == NONE else spare))
            if (ours.dtype, ours.shape) != (its.dtype, its.shape) or not its.is_dense:
                raise TensorError(f"a loop of a region hands {ours} on in {its}")
        made = step.writes
        if any(self._overlap(a, b) for i, a in enumerate(made) for b in (*made[:i], *step.inputs)):
            raise TensorError(f"a loop of a region writes over what it reads or writes: {step}")

    def _check_aliases(self) -> None:
        for which, count in enumerate((len(self.args), len(self.results))):
            numbers = [pair[which] for pair in self.aliases]
            if len(set(numbers)) < len(numbers) or any(not 0 <= n < count for n in numbers):
                raise TensorError(
                    f"the aliases of a region name a buffer that does not exist, or one twice: {self.aliases}"
                )
        for argument, result in self.aliases:
            if self.args[argument] != self.results[result]:
                raise TensorError(
                    f"argument {argument} of a region is unlike result {result}, which begins with it"
                )

    def _overlap(self, first: int, second: int) -> bool:
        """Whether two tensors lie in the same place of the same buffer."""
        a, b = self.tensors[first], self.tensors[second]
        if a.place != b.place:
            return False
        return a.offset < b.offset + b.extent and b.offset < a.offset + a.extent

    @property
    def contractions(self) -> tuple[Contract, ...]:
        """Its contractions, those of loops among them."""
        found: list[Contract] = []
        for step in self.steps:
            if isinstance(step, Contract):
                found.append(step)
            elif isinstance(step, Loop):
                found += step.body.contractions
        return tuple(found)

    def words(self) -> np.ndarray:
        """The program as int64 numbers: what the native executor reads."""
        words = [MAGIC, VERSION, len(self.args), len(self.results), self.arena, len(self.aliases)]
        words += [number for pair in self.aliases for number in pair]
        words.append(len(self.tensors))
        for t in self.tensors:
            words += [DTYPES.index(t.dtype), t.place, t.offset, len(t.shape), *t.shape, *t.strides]
        words.append(len(self.steps))
        for step in self.steps:
            payload = step.payload()
            words += [step.opcode, len(payload), *payload]
        return np.asarray(words, np.int64)

    def __str__(self) -> str:
        lines = [f"region: {len(self.args)} arguments, {len(self.results)} results, {self.arena} bytes"]
        return "\n".join([*lines, *(f"  {text}" for text in self._texts())])

    def _texts(self) -> Iterator[str]:
        for step in self.steps:
            name = type(step).__name__
            if isinstance(step, Contract):
                name = "conv" if step.kernel else "product"
            if isinstance(step, Pool):
                name = "sum pool" if step.lowest is None else "max pool"
            reads = ", ".join(self._named(t) for t in step.reads)
            writes = ", ".join(self._named(t) for t in step.writes)
            note = f"  # {step.site}" if isinstance(step, Contract) and step.site else ""
            if isinstance(step, Loop):
                note = f"  # {step.length} times"
            yield f"{writes} = {name.lower()}({reads}){note}"
            if isinstance(step, Loop):
                yield from (f"  {text}" for text in step.body._texts())

    def _named(self, number: int) -> str:
        return f"t{number}:{self.tensors[number]}"
