"""The steps of a region's program: what each computes of which tensors, and its words."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from typing import Any, ClassVar

NONE = -1  # in place of a tensor's number where there is none


class _OneResult:
    """A step that writes one tensor."""

    dst: int

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.dst,)


FUNCTIONS = (
    "",
    "gelu_erf",
    "gelu_tanh",
    "swish",
    "logistic",
    "tanh",
    "hard_swish",
)  # "swish" is x * logistic(x), or silu


@dataclasses.dataclass(frozen=True)
class Contract(_OneResult):
    """A product or convolution of codes with an epilogue.

    It is ``clip(function(acc * mult + offset + residual) * rescale + shift, lo, hi)``.

    Tensors are numbers of the program's tensors, `NONE` where there is none. Without `mult`, the result is the int32
    accumulator itself. A result of codes is rounded half to even and saturated.

    Attributes:
      src: Codes, ``(m, k)`` or ``(batch, *spatial, c_in)``.
      weights: Signed codes, plain in canonical layout, or packed bytes if there is a `problem`.
      dst: The result.
      mult: Float32, one for each channel.
      offset: Float32, one for each channel.
      residual: What is added, in the shape of the result; codes are added as the integers that they are.
      function: One of `FUNCTIONS`; "" for none.
      rescale: Float32, one number.
      shift: Float32, one number; only with a function.
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
    function: str = ""
    shift: int = NONE
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
        found = (self.src, self.weights, self.mult, self.offset, self.residual, self.rescale, self.shift)
        return tuple(t for t in found if t != NONE)

    def payload(self) -> list[int]:
        kind = 2 if self.problem else int(self.transposed)
        words = [
            self.src, self.weights, self.dst, self.mult, self.offset, self.residual, self.rescale,
            FUNCTIONS.index(self.function), self.shift, float_bits(self.lo), float_bits(self.hi), kind, len(self.kernel),
            *self.kernel, *self.strides, *self.dilation, *self.pad_low, *self.pad_high, self.groups,
        ]  # fmt: skip
        return [*words, len(self.problem), *self.problem] if self.problem else words


# The instructions of `Elementwise`, by the names of their jax.lax functions where there is one. Registers hold float32 numbers,
# or int32 numbers where a name begins with "int_".
LOAD, CONST, STORE, ENCODE, LOAD_INT, STORE_INT, CONST_INT, SELECT = 0, 1, 16, 17, 19, 20, 21, 22
# "nan_if" is NaN where its first operand is NaN, else its second. Comparisons give 1.0 or 0.0; "and" and "or" take those.
BINARY = {
    "add": 2, "sub": 3, "mul": 4, "div": 5, "max": 6, "min": 7, "nan_if": 18,
    "eq": 23, "ne": 24, "lt": 25, "le": 26, "gt": 27, "ge": 28, "and": 29, "or": 30, "pow": 31,
    "int_add": 32, "int_sub": 33, "int_mul": 34, "int_max": 35, "int_min": 36,
}  # fmt: skip
# "to_int" truncates and saturates, and NaN becomes 0; "round" goes half to even; "not" gives 1.0 for 0.0 and else 0.0.
UNARY = {
    "neg": 8, "abs": 9, "exp": 10, "logistic": 11, "tanh": 12, "erf": 13, "sqrt": 14, "rsqrt": 15,
    "round": 37, "floor": 38, "ceil": 39, "sign": 40, "log": 41, "log1p": 42, "expm1": 43, "is_finite": 44, "not": 45,
    "to_int": 46, "to_float": 47,
}  # fmt: skip
REGISTERS = 16
NAMES = {number: name for name, number in (BINARY | UNARY).items()}


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """Float32 arithmetic on every element, from codes or floats to codes or floats.

    Attributes:
      shape: What is iterated over; inputs have this rank, and size 1 along axes that they are broadcast along.
      inputs: Tensors that are read.
      outputs: Tensors that are written.
      instructions: ``(operation, a, b, c, d)``: registers, or the number of an input or output, or the bits of a constant. The
        first is the register that is written (for stores the output); `SELECT` takes c where b is not 0.0, else d.
    """

    opcode: ClassVar[int] = 2
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[tuple[int, int, int, int, int], ...]

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
class Copy(_OneResult):
    """A copy between views of equal shape."""

    opcode: ClassVar[int] = 3
    src: int
    dst: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.src,)

    def payload(self) -> list[int]:
        return [self.src, self.dst]


@dataclasses.dataclass(frozen=True)
class Fill(_OneResult):
    """One number everywhere: that of a tensor of one element, or `number` if `value` is `NONE`."""

    opcode: ClassVar[int] = 4
    dst: int
    value: int = NONE
    number: int = 0

    @property
    def reads(self) -> tuple[int, ...]:
        return () if self.value == NONE else (self.value,)

    def payload(self) -> list[int]:
        return [self.dst, self.value, self.number]


@dataclasses.dataclass(frozen=True)
class Pool(_OneResult):
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

    def payload(self) -> list[int]:
        last = self.border if self.lowest is None else self.lowest
        return [
            self.src, self.dst, len(self.window), *self.window, *self.strides, *self.dilation, *self.pad_low, *self.pad_high,
            last,
        ]  # fmt: skip


REDUCTIONS = ("sum", "max", "min", "nan")


@dataclasses.dataclass(frozen=True)
class Reduce(_OneResult):
    """The sum or an extreme along some axes.

    Attributes:
      src: What is reduced.
      dst: The result: size 1 along the axes that are reduced, else of the sizes of `src`. Extremes have the dtype of `src`, and
        are NaN where it has a NaN; sums of integers are int32 and exact, sums of float32 are float32, in any order. "nan" is
        NaN where float32 numbers hold a NaN or an infinity, else 0.
      kind: One of `REDUCTIONS`.
    """

    opcode: ClassVar[int] = 7
    src: int
    dst: int
    kind: str

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.src,)

    def payload(self) -> list[int]:
        return [self.src, self.dst, REDUCTIONS.index(self.kind)]


@dataclasses.dataclass(frozen=True)
class Product(_OneResult):
    """Products of matrices that are both data: ``dst[..., m, n] = sum over k of a[..., m, k] * b[..., k, n]``.

    Attributes:
      a: Float32, or codes of either sign.
      b: Float32 with `a`, or signed codes.
      dst: Float32, or int32 for codes. Its first axes are those of `a` and `b`, which may have size 1 there.
    """

    opcode: ClassVar[int] = 8
    a: int
    b: int
    dst: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.a, self.b)

    def payload(self) -> list[int]:
        return [self.a, self.b, self.dst]


@dataclasses.dataclass(frozen=True)
class _Placed(_OneResult):
    """A copy into or out of a part that begins at a place which is found in the run.

    Attributes:
      src: What is read.
      dst: What is written, of the same rank.
      starts: For each axis of the larger tensor a tensor of one int32 number, where the part begins; `NONE` for 0. As in
        `jax.lax.dynamic_update_slice`, a start with which the part would not fit is moved to the nearest that fits.
    """

    src: int
    dst: int
    starts: tuple[int, ...]

    def payload(self) -> list[int]:
        return [self.src, self.dst, len(self.starts), *self.starts]

    @property
    def _places(self) -> tuple[int, ...]:
        return tuple(t for t in self.starts if t != NONE)


@dataclasses.dataclass(frozen=True)
class Update(_Placed):
    """A tensor written into a part of a larger one, `dst`; the rest of that stays."""

    opcode: ClassVar[int] = 9

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.src, self.dst, *self._places)


@dataclasses.dataclass(frozen=True)
class Take(_Placed):
    """The part of a larger tensor, `src`, as a tensor."""

    opcode: ClassVar[int] = 10

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.src, *self._places)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A program that runs several times, one time after the other.

    Each argument of the program belongs to a tensor, in the order of its arguments: one that is the same every time; one whose
    first axis has an entry for each time; or one that is handed on, which the program reads the first time, and after that its
    own result of the time before. Each result belongs to a tensor, too: one whose first axis has an entry for each time, or
    what is handed on, as it is in the end.

    Attributes:
      body: The program, a `jaxq8.regions.program.Program`.
      length: How often it runs, at least once.
      reverse: Whether entries are taken from the last to the first.
      inputs: For each argument its tensor. All tensors of this step are dense.
      sliced: For each argument whether the first axis of its tensor has an entry for each time.
      handed: For each argument the result that is handed on to it; `NONE` for the others.
      outputs: For each result its tensor.
      spares: For each result that is handed on a tensor of the same kind that it lies in every other time; `NONE` for others,
        which have an entry for each time.
    """

    opcode: ClassVar[int] = 11
    body: Any = dataclasses.field(repr=False)
    length: int
    reverse: bool
    inputs: tuple[int, ...]
    sliced: tuple[bool, ...]
    handed: tuple[int, ...]
    outputs: tuple[int, ...]
    spares: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return self.inputs

    @property
    def writes(self) -> tuple[int, ...]:
        return (*self.outputs, *(t for t in self.spares if t != NONE))

    def payload(self) -> list[int]:
        words = self.body.words().tolist()
        given = itertools.chain(*zip(self.inputs, map(int, self.sliced), self.handed, strict=True))
        made = itertools.chain(*zip(self.outputs, self.spares, strict=True))
        return [self.length, int(self.reverse), len(self.inputs), *given, len(self.outputs), *made, *words]


Step = Contract | Elementwise | Copy | Fill | Pool | Reduce | Product | Update | Take | Loop


def float_bits(number: float) -> int:
    """The bits of a number as float32."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def float_of_bits(bits: int) -> float:
    """The number whose bits as float32 these are."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])
