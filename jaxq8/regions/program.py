"""`Program`: a small typed program over eight-bit tensors, which runs as one call.

A program is data: tensors that are views into buffers, and steps that read and write them. It is checked when it is made, can
be printed, and can be written as integers and read back. Two executors run it: `jaxq8.regions.in_jax` in pure JAX, on any
platform, and `jaxq8.native` in one call into oneDNN.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from jaxq8.errors import TensorError

DTYPES = ("uint8", "int8", "int32", "float32")
ARENA = -1
NONE = -1
MAGIC, VERSION = 0x6A61787138, 1


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

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclasses.dataclass(frozen=True)
class Contract:
    """A product or convolution of codes with an epilogue: ``clip((acc * mult + offset + residual) * rescale, lo, hi)``.

    Tensors are numbers of the program's tensors, `NONE` where there is none. Without `mult`, the result is the int32
    accumulator itself. A result of codes is rounded half to even and saturated.

    Attributes:
      src: Codes, ``(m, k)`` or ``(batch, *spatial, c_in)``.
      weights: Signed codes, plain in canonical layout, or packed bytes if there is a `problem`.
      dst: The result.
      mult: Float32, one for each channel.
      offset: Float32, one for each channel.
      residual: What is added, in the shape of the result; codes are added as the integers that they are.
      rescale: Float32, one number.
      lo: Lower clip in units of the result.
      hi: Upper clip.
      kernel: Sizes of the kernel; () for a product of matrices.
      strides: Strides of the window.
      dilation: Distance of neighbours in the window; 1 for a dense one.
      pad_low: Borders of code 0 before each axis.
      pad_high: Borders of code 0 behind each axis.
      groups: Groups of channels.
      transposed: Whether plain weights of a product are ``(n, k)``.
      problem: The contraction for which the weights were packed; () for plain weights.
      site: The name of the site, for people.
    """

    opcode: ClassVar[int] = 1
    src: int
    weights: int
    dst: int
    mult: int = NONE
    offset: int = NONE
    residual: int = NONE
    rescale: int = NONE
    lo: float = -math.inf
    hi: float = math.inf
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pad_low: tuple[int, ...] = ()
    pad_high: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    problem: tuple[int, ...] = ()
    site: str = dataclasses.field(default="", compare=False)

    @property
    def reads(self) -> tuple[int, ...]:
        found = (self.src, self.weights, self.mult, self.offset, self.residual, self.rescale)
        return tuple(t for t in found if t != NONE)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.dst,)

    def payload(self) -> list[int]:
        kind = 2 if self.problem else int(self.transposed)
        words = [
            self.src, self.weights, self.dst, self.mult, self.offset, self.residual, self.rescale, float_bits(self.lo),
            float_bits(self.hi), kind, len(self.kernel), *self.kernel, *self.strides, *self.dilation, *self.pad_low,
            *self.pad_high, self.groups,
        ]  # fmt: skip
        return [*words, len(self.problem), *self.problem] if self.problem else words


# The instructions of `Elementwise`, by the names of their jax.lax functions where there is one.
LOAD, CONST, STORE, ENCODE = 0, 1, 16, 17
# "nan_if" is NaN where its first operand is NaN, else its second.
BINARY = {"add": 2, "sub": 3, "mul": 4, "div": 5, "max": 6, "min": 7, "nan_if": 18}
UNARY = {"neg": 8, "abs": 9, "exp": 10, "logistic": 11, "tanh": 12, "erf": 13, "sqrt": 14, "rsqrt": 15}
REGISTERS = 16
NAMES = {number: name for name, number in (BINARY | UNARY).items()}


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """Float32 arithmetic on every element, from codes or floats to codes or floats.

    Attributes:
      shape: What is iterated over; inputs have this rank, and size 1 along axes that they are broadcast along.
      inputs: Tensors that are read.
      outputs: Tensors that are written.
      instructions: ``(operation, a, b, c)``: registers, or the number of an input or output, or the bits of a constant.
    """

    opcode: ClassVar[int] = 2
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[tuple[int, int, int, int], ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return self.inputs

    @property
    def writes(self) -> tuple[int, ...]:
        return self.outputs

    def payload(self) -> list[int]:
        return [
            len(self.shape), *self.shape, len(self.inputs), *self.inputs, len(self.outputs), *self.outputs,
            len(self.instructions), *itertools.chain(*self.instructions),
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy between views of equal shape."""

    opcode: ClassVar[int] = 3
    src: int
    dst: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.src,)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.dst,)

    def payload(self) -> list[int]:
        return [self.src, self.dst]


@dataclasses.dataclass(frozen=True)
class Fill:
    """One number everywhere: that of a tensor of one element, or `number` if `value` is `NONE`."""

    opcode: ClassVar[int] = 4
    dst: int
    value: int = NONE
    number: int = 0

    @property
    def reads(self) -> tuple[int, ...]:
        return () if self.value == NONE else (self.value,)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.dst,)

    def payload(self) -> list[int]:
        return [self.dst, self.value, self.number]


@dataclasses.dataclass(frozen=True)
class Pool:
    """The maximum or the int32 sum of codes over windows, channels last.

    Attributes:
      src: Codes, ``(batch, *spatial, channels)``.
      dst: The same dtype for maxima, int32 for sums.
      window: Sizes of the window along the spatial axes; likewise strides, dilation and borders.
      lowest: The code of borders of maxima; None for sums.
      border: The tensor with the code of borders of sums; `NONE` for code 0.
    """

    src: int
    dst: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    pad_high: tuple[int, ...]
    lowest: int | None = None
    border: int = NONE

    @property
    def opcode(self) -> int:
        return 6 if self.lowest is None else 5

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.src,) if self.border == NONE else (self.src, self.border)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.dst,)

    def payload(self) -> list[int]:
        last = self.border if self.lowest is None else self.lowest
        return [
            self.src, self.dst, len(self.window), *self.window, *self.strides, *self.dilation, *self.pad_low, *self.pad_high,
            last,
        ]  # fmt: skip


Step = Contract | Elementwise | Copy | Fill | Pool


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

    Raises:
      TensorError: A view leaves its buffer, or a step names a tensor that does not exist.
    """

    args: tuple[tuple[tuple[int, ...], str], ...]
    results: tuple[tuple[tuple[int, ...], str], ...]
    tensors: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    arena: int
    buffers: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        buffers = [*self.args, *self.results]
        for number, tensor in enumerate(self.tensors):
            if tensor.dtype not in DTYPES or not -1 <= tensor.place < len(buffers):
                raise TensorError(f"tensor {number} of a region ({tensor}) has no buffer {tensor.place}")
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

    def _overlap(self, first: int, second: int) -> bool:
        """Whether two tensors lie in the same place of the same buffer."""
        a, b = self.tensors[first], self.tensors[second]
        if a.place != b.place:
            return False
        return a.offset < b.offset + b.extent and b.offset < a.offset + a.extent

    @property
    def contractions(self) -> tuple[Contract, ...]:
        return tuple(step for step in self.steps if isinstance(step, Contract))

    def words(self) -> np.ndarray:
        """The program as int64 numbers: what the native executor reads."""
        words = [MAGIC, VERSION, len(self.args), len(self.results), self.arena, len(self.tensors)]
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
            yield f"{writes} = {name.lower()}({reads}){note}"

    def _named(self, number: int) -> str:
        return f"t{number}:{self.tensors[number]}"


def float_bits(number: float) -> int:
    """The bits of a number as float32."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def float_of_bits(bits: int) -> float:
    """The number whose bits as float32 these are."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])
