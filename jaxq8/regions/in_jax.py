"""The executor that runs everywhere: a region's program in pure JAX, step by step.

It is what tests compare the native executor with. Tensors are read from and written to whole buffers, so it is not fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.kernels import pooling
from jaxq8.kernels.forms import ConvForm, DotForm, Form
from jaxq8.kernels.reference import plain
from jaxq8.regions import steps as s
from jaxq8.regions.program import ARENA, Program, Tensor
from jaxq8.regions.steps import (
    NONE,
    Contract,
    Copy,
    Elementwise,
    Fill,
    Loop,
    Pool,
    Product,
    Reduce,
    Take,
    Update,
)

Unpack = Callable[[Contract, Any], Any]


def run(program: Program, arrays: Sequence[Any], unpack: Unpack) -> list[Any]:
    """The results of a program.

    Args:
      program: The program.
      arrays: Its arguments.
      unpack: Makes the plain weights of a contraction, in canonical layout, from its packed bytes.
    """
    return Execution(program, arrays, unpack).results()


class Execution:
    """A program while it runs: `step` executes one step, `read` is the present content of a tensor."""

    def __init__(self, program: Program, arrays: Sequence[Any], unpack: Unpack) -> None:
        self.program, self.unpack = program, unpack
        made = [jnp.zeros((math.prod(shape),), dtype) for shape, dtype in program.results]
        self.buffers: list[Any] = [*(jnp.reshape(a, -1) for a in arrays), *made]
        for argument, result in program.aliases:
            self.buffers[len(program.args) + result] = self.buffers[argument]
        self.arena = jnp.zeros((program.arena,), jnp.uint8)

    def results(self) -> list[Any]:
        for step in self.program.steps:
            self.step(step)
        made = self.buffers[len(self.program.args) :]
        return [a.reshape(shape) for a, (shape, _) in zip(made, self.program.results, strict=True)]

    def _indices(self, tensor: Tensor) -> np.ndarray:
        """The position of each element of a tensor in its buffer, counted in elements from the tensor's offset."""
        places = np.zeros(tensor.shape, np.int64)
        for axis, (n, stride) in enumerate(zip(tensor.shape, tensor.strides, strict=True)):
            shape = [1] * len(tensor.shape)
            shape[axis] = n
            places += np.reshape(np.arange(n) * stride, shape)
        return places

    def _buffer(self, tensor: Tensor) -> tuple[Any, int]:
        """The flat buffer of a tensor in its dtype, and where in it the tensor begins."""
        first = tensor.offset // tensor.itemsize
        if tensor.place != ARENA:
            return self.buffers[tensor.place], first
        count = (tensor.extent // tensor.itemsize) * tensor.itemsize
        part = self.arena[tensor.offset : tensor.offset + count]
        width = (-1, tensor.itemsize) if tensor.itemsize > 1 else (-1,)
        return lax.bitcast_convert_type(part.reshape(width), tensor.dtype), 0

    def read(self, number: int) -> Any:
        tensor = self.program.tensors[number]
        buffer, first = self._buffer(tensor)
        return buffer[first + self._indices(tensor)]

    def write(self, number: int, array: Any) -> None:
        tensor = self.program.tensors[number]
        buffer, first = self._buffer(tensor)
        buffer = buffer.at[first + self._indices(tensor)].set(array.astype(tensor.dtype))
        if tensor.place != ARENA:
            self.buffers[tensor.place] = buffer
            return
        data = lax.bitcast_convert_type(buffer, jnp.uint8).reshape(-1)
        self.arena = lax.dynamic_update_slice(self.arena, data, (tensor.offset,))

    def step(self, step: s.Step) -> None:
        """Executes a step."""
        if isinstance(step, Contract):
            self._contract(step)
        elif isinstance(step, Elementwise):
            self._elementwise(step)
        elif isinstance(step, Copy):
            self.write(step.dst, self.read(step.src))
        elif isinstance(step, Fill):
            number = self.read(step.value).reshape(()) if step.value != NONE else jnp.int32(step.number)
            self.write(step.dst, jnp.broadcast_to(number, self.program.tensors[step.dst].shape))
        elif isinstance(step, Reduce):
            self._reduce(step)
        elif isinstance(step, Product):
            self._product(step)
        elif isinstance(step, Loop):
            self._loop(step)
        elif isinstance(step, Update):
            whole = lax.dynamic_update_slice(self.read(step.dst), self.read(step.src), self._starts(step))
            self.write(step.dst, whole)
        elif isinstance(step, Take):
            sizes = self.program.tensors[step.dst].shape
            self.write(step.dst, lax.dynamic_slice(self.read(step.src), self._starts(step), sizes))
        else:
            self._pool(step)

    def _starts(self, step: Update | Take) -> list[Any]:
        return [jnp.int32(0) if t == NONE else self.read(t).reshape(()) for t in step.starts]

    def _contract(self, step: Contract) -> None:
        src, weights = self.program.tensors[step.src], self.read(step.weights)
        form = form_of(step, src.shape, self.program.tensors[step.dst].shape)
        w = self.unpack(step, weights) if step.problem else weights
        acc = plain(form, self.read(step.src), w, 0, jnp.int32)
        if step.mult == NONE:
            self.write(step.dst, acc)
            return
        real = acc.astype(jnp.float32) * self.read(step.mult) + self.read(step.offset)
        if step.residual != NONE:
            real = real + self.read(step.residual).astype(jnp.float32)
        real = _FUNCTIONS[step.function](real)
        if step.rescale != NONE:
            real = real * self.read(step.rescale)
        if step.shift != NONE:
            real = real + self.read(step.shift)
        self._store(step.dst, jnp.clip(real, step.lo, step.hi))

    def _store(self, number: int, real: Any) -> None:
        """Writes float32 numbers, rounded and saturated where codes are wanted."""
        dtype = np.dtype(self.program.tensors[number].dtype)
        if dtype.kind in "iu":
            real = jnp.clip(jnp.round(real), np.iinfo(dtype).min, np.iinfo(dtype).max)
        self.write(number, real)

    def _elementwise(self, step: Elementwise) -> None:
        registers: dict[int, Any] = {}
        for operation, a, b, c, d in step.instructions:
            if operation in (s.LOAD, s.LOAD_INT):
                dtype = jnp.float32 if operation == s.LOAD else jnp.int32
                registers[a] = jnp.broadcast_to(self.read(step.inputs[b]), step.shape).astype(dtype)
            elif operation == s.CONST:
                registers[a] = jnp.full(step.shape, s.float_of_bits(b), jnp.float32)
            elif operation == s.CONST_INT:
                registers[a] = jnp.full(step.shape, b, jnp.int32)
            elif operation == s.SELECT:
                registers[a] = jnp.where(registers[b] != 0, registers[c], registers[d])
            elif operation == s.STORE_INT:
                self.write(step.outputs[a], registers[b])
            elif operation in (s.STORE, s.ENCODE):
                self._store(step.outputs[a], registers[b])
            else:
                name = s.NAMES[operation]
                operands = (registers[b], registers[c]) if name in s.BINARY else (registers[b],)
                registers[a] = computed(name, *operands)

    def _reduce(self, step: Reduce) -> None:
        src, shape = self.read(step.src), self.program.tensors[step.dst].shape
        axes = tuple(i for i, (n, m) in enumerate(zip(src.shape, shape, strict=True)) if n != m)
        reduce: Any = {"sum": jnp.sum, "max": jnp.max, "min": jnp.min, "nan": jnp.sum}[step.kind]
        if step.kind == "nan":
            src = src * 0
        if step.kind == "sum" and jnp.issubdtype(src.dtype, jnp.integer):
            src = src.astype(jnp.int32)
        self.write(step.dst, reduce(src, axis=axes, keepdims=True))

    def _loop(self, step: Loop) -> None:
        given = [self.read(t) for t in step.inputs]
        shapes = [shape for shape, _ in step.body.args]
        handed = [i for i, result in enumerate(step.handed) if result != NONE]
        slices = [
            a.reshape(step.length, *shape)
            for a, shape, s in zip(given, shapes, step.sliced, strict=True)
            if s
        ]

        def once(state: Any, entries: Any) -> Any:
            found, taken = dict(zip(handed, state, strict=True)), iter(entries)
            arrays = [
                next(taken) if s else found.get(i, a)
                for i, (a, s) in enumerate(zip(given, step.sliced, strict=True))
            ]
            made = run(step.body, arrays, self.unpack)
            state = [made[step.handed[i]].reshape(given[i].shape) for i in handed]
            # A result may be handed on to no argument; its last value is the one that counts.
            return state, made

        _, made = lax.scan(once, [given[i] for i in handed], slices, step.length, step.reverse)
        last = 0 if step.reverse else step.length - 1
        for number, spare, array in zip(step.outputs, step.spares, made, strict=True):
            shape = self.program.tensors[number].shape
            self.write(number, (array if spare == NONE else array[last]).reshape(shape))

    def _product(self, step: Product) -> None:
        dtype = self.program.tensors[step.dst].dtype
        a, b = (self.read(t).astype(dtype) for t in (step.a, step.b))
        self.write(step.dst, jnp.matmul(a, b, precision=lax.Precision.HIGHEST))

    def _pool(self, step: Pool) -> None:
        src = self.read(step.src)
        window = {
            "window": (1, *step.window, 1), "strides": (1, *step.strides, 1), "base_dilation": (1,) * src.ndim,
            "window_dilation": (1, *step.dilation, 1),
            "padding": ((0, 0), *zip(step.pad_low, step.pad_high, strict=True), (0, 0)),
        }  # fmt: skip
        if step.lowest is not None:
            self.write(step.dst, pooling.max_pool.run(src, lowest=step.lowest, **window))
            return
        border = (
            jnp.zeros((), src.dtype)
            if step.border == NONE
            else self.read(step.border).reshape(()).astype(src.dtype)
        )
        self.write(step.dst, pooling.sum_pool.run(src, border, **window))


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "": lambda x: x,
    "gelu_erf": lambda x: 0.5 * x * (1 + lax.erf(x * np.float32(math.sqrt(0.5)))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swish": lambda x: x * lax.logistic(x),
    "logistic": lax.logistic,
    "tanh": jnp.tanh,
    "hard_swish": lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1),
}


def computed(name: str, *operands: Any) -> Any:
    """What an instruction makes of its registers."""
    if name == "nan_if":
        return jnp.where(jnp.isnan(operands[0]), jnp.nan, operands[1])
    if name.startswith("int_"):
        return getattr(lax, name.removeprefix("int_"))(*operands)
    if name in ("to_int", "to_float"):
        return lax.convert_element_type(operands[0], jnp.int32 if name == "to_int" else jnp.float32)
    if name == "round":
        return lax.round(operands[0], lax.RoundingMethod.TO_NEAREST_EVEN)
    if name in ("and", "or", "not"):
        truths = [x != 0 for x in operands]
        return (~truths[0] if name == "not" else getattr(jnp, f"logical_{name}")(*truths)).astype(jnp.float32)
    return getattr(lax, name)(*operands).astype(jnp.float32)


def form_of(step: Contract, src: tuple[int, ...], dst: tuple[int, ...]) -> Form:
    """The canonical form of a contraction step."""
    if not step.kernel:
        return DotForm(0, src[0], src[1], dst[1], transposed=step.transposed and not step.problem)
    padding = tuple(zip(step.pad_low, step.pad_high, strict=True))
    ones = (1,) * len(step.kernel)
    return ConvForm(
        src[0],
        src[1:-1],
        src[-1],
        step.kernel,
        dst[-1],
        step.strides,
        padding,
        ones,
        step.dilation,
        step.groups,
    )
