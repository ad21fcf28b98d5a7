"""Small region programs for the self-check: what oneDNN makes of them, and what the executor in pure JAX makes of them.

All multipliers are powers of two and all offsets are eighths, so that float32 holds every number exactly, and the codes do not
depend on the order of the arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.kernels.forms import ConvForm
from jaxq8.native import calls
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.weight_moves import from_logical, to_logical
from jaxq8.regions import in_jax, native_call
from jaxq8.regions.builder import Builder
from jaxq8.regions.steps import (
    BINARY,
    ENCODE,
    LOAD,
    NONE,
    STORE,
    Contract,
    Copy,
    Elementwise,
    Pool,
    Product,
    Reduce,
    Take,
    Update,
)
from jaxq8.regions.weights import problem_of

ONE, TWO, NO = (1, 1), (2, 2), (0, 0)


class _Net:
    """A program while it is made; tensors are numbers, as in its steps."""

    def __init__(self) -> None:
        self.builder = Builder()
        self.numbers = np.random.default_rng(0)
        self._layouts: dict[tuple[int, ...], tuple[PackedLayout, int]] = {}

    def given(self, array: np.ndarray[Any, Any]) -> int:
        """An argument that holds an array."""
        return self.builder.argument(array.shape, array.dtype, lambda read: array)

    def data(self, *shape: int) -> int:
        """An argument of random codes."""
        return self.given(self.numbers.integers(0, 256, shape).astype(np.uint8))

    def contract(
        self, src: int, dst: int, *, shift: int = 8, residual: int = NONE, rescale: int = NONE, **window: Any
    ) -> None:
        """A contraction with random packed weights, and, unless `dst` is int32, with a multiplier of ``2**-shift``."""
        made, read = self.builder.shape(dst), self.builder.shape(src)
        step = Contract(src, NONE, dst, residual=residual, rescale=rescale, **window)
        form = in_jax.form_of(step, read, made)
        problem = problem_of(form)
        spatial, groups = len(step.kernel), step.groups if step.groups > 1 else None
        codes = self.numbers.integers(-127, 128, (*step.kernel, read[-1] // step.groups, made[-1])).astype(
            np.int8
        )
        layout = PackedLayout.from_words(calls.layout(problem))
        self._layouts[problem] = layout, spatial
        weights = self.given(layout.pack(to_logical(codes, groups if isinstance(form, ConvForm) else None)))
        vectors: dict[str, Any] = {}
        if self.builder.dtype(dst) != "int32":
            offset = self.numbers.integers(0, 800, made[-1:]) / 8
            vectors = {
                "mult": self.given(np.full(made[-1:], 2.0**-shift, np.float32)),
                "offset": self.given(offset.astype(np.float32)),
            }
        step = dataclasses.replace(step, weights=weights, problem=problem, **vectors)
        self.builder.steps.append(step)

    def results(self) -> tuple[Any, Any]:
        """The results as oneDNN and as pure JAX compute them, each as one vector."""
        program = self.builder.build()
        arrays = [jnp.asarray(recipe.compute(None)) for recipe in self.builder.recipes]

        def unpack(step: Contract, packed: Any) -> Any:
            layout, spatial = self._layouts[step.problem]
            return from_logical(layout.unpack(packed), spatial)

        native = jax.jit(lambda *arrays: native_call.call(program, arrays))(*arrays)
        plain = jax.jit(lambda *arrays: in_jax.run(program, arrays, unpack))(*arrays)
        return _joined(native), _joined(plain)


def _joined(arrays: list[Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])


def _window(kernel: int = 1, stride: int = 1, pad: int = 0) -> dict[str, Any]:
    return {
        "kernel": (kernel,) * 2, "strides": (stride,) * 2, "dilation": ONE, "pad_low": (pad,) * 2, "pad_high": (pad,) * 2,
    }  # fmt: skip


def _convolutions() -> _Net:
    net = _Net()
    inside = net.builder.temporary((2, 14, 14, 32), np.uint8)
    net.contract(net.data(2, 14, 14, 16), inside, shift=9, lo=128.0, **_window(3, 1, 1))
    net.contract(inside, net.builder.result((2, 7, 7, 24), np.uint8), shift=9, hi=200.0, **_window(3, 2, 1))
    return net


def _depthwise() -> _Net:
    net = _Net()
    net.contract(
        net.data(2, 14, 14, 32), net.builder.result((2, 14, 14, 32), np.uint8), groups=32, **_window(3, 1, 1)
    )
    return net


def _products() -> _Net:
    net = _Net()
    data = net.data(8, 64)
    for dtype in ("uint8", "float32", "int32"):
        net.contract(data, net.builder.result((8, 48), dtype))
    return net


def _residual() -> _Net:
    net = _Net()
    half = net.given(np.full(1, 0.5, np.float32))
    net.contract(
        net.data(2, 7, 7, 16), net.builder.result((2, 7, 7, 32), np.uint8), residual=net.data(2, 7, 7, 32),
        rescale=half, **_window(),
    )  # fmt: skip
    return net


def _join() -> _Net:
    net = _Net()
    data, joined = net.data(2, 7, 7, 16), net.builder.temporary((2, 7, 7, 48), np.uint8)
    for start, kernel in ((0, 1), (24, 3)):
        part = net.builder.cut(joined, (0, 0, 0, start), (2, 7, 7, 24))
        net.contract(data, part, **_window(kernel, 1, kernel // 2))
    net.contract(joined, net.builder.result((2, 7, 7, 16), np.uint8), shift=10, **_window())
    return net


def _pools() -> _Net:
    net, three = _Net(), (3, 3)
    data = net.data(2, 14, 14, 32)
    largest = net.builder.result((2, 7, 7, 32), np.uint8)
    net.builder.steps.append(Pool(data, largest, three, TWO, ONE, ONE, ONE, lowest=0))
    sums = net.builder.result((2, 1, 1, 32), np.int32)
    net.builder.steps.append(Pool(data, sums, (14, 14), ONE, ONE, NO, NO))
    # Sums become codes by element-wise arithmetic; they saturate.
    net.builder.steps.append(
        Elementwise(
            (2, 1, 1, 32), (sums,), (net.builder.result((2, 1, 1, 32), np.uint8),),
            ((LOAD, 0, 0, 0, 0), (ENCODE, 0, 0, 0, 0)),
        )
    )  # fmt: skip
    return net


def _measured() -> _Net:
    """Accumulators, their extremes by channel and over all, and sums of rows: what ranges that are found in the run need."""
    net = _Net()
    sums = net.builder.result((2, 7, 7, 32), np.int32)
    net.contract(net.data(2, 7, 7, 16), sums, **_window())
    rows = net.builder.reshaped(sums, (98, 32))
    for kind, shape in (("max", (1, 32)), ("min", (1, 1)), ("sum", (98, 1))):
        net.builder.steps.append(Reduce(rows, net.builder.result(shape, np.int32), kind))
    return net


def _attention() -> _Net:
    """Products of data that lie as heads do, and what softmax does with rows; all numbers are small integers."""
    net, shape, order = _Net(), (1, 12, 4, 16), (0, 2, 1, 3)
    first, second = (net.given(net.numbers.integers(-8, 9, shape).astype(np.float32)) for _ in range(2))
    scores = net.builder.result((1, 4, 12, 12), np.float32)
    turned = net.builder.transposed(net.builder.transposed(second, order), (0, 1, 3, 2))
    net.builder.steps.append(Product(net.builder.transposed(first, order), turned, scores))
    largest = net.builder.result((1, 4, 12, 1), np.float32)
    net.builder.steps.append(Reduce(scores, largest, "max"))
    below = net.builder.result((1, 4, 12, 12), np.float32)
    code = ((LOAD, 0, 0, 0, 0), (LOAD, 1, 1, 0, 0), (BINARY["sub"], 0, 0, 1, 0), (STORE, 0, 0, 0, 0))
    net.builder.steps.append(Elementwise((1, 4, 12, 12), (scores, largest), (below,), code))
    mixed = net.builder.transposed(net.builder.result(shape, np.float32), order)
    net.builder.steps.append(Product(below, net.builder.transposed(second, order), mixed))
    return net


def _updated() -> _Net:
    """A cache that takes in what a contraction made, at a place beyond its end, and a part of it."""
    net = _Net()
    sums, cache = (
        net.builder.temporary((2, 1, 32), np.int32),
        net.given(net.numbers.integers(-99, 99, (2, 8, 32)).astype(np.int32)),
    )
    net.contract(net.data(2, 16), net.builder.reshaped(sums, (2, 32)))
    changed, part = net.builder.result((2, 8, 32), np.int32), net.builder.result((2, 3, 32), np.int32)
    late, early = net.given(np.full(1, 9, np.int32)), net.given(np.full(1, 5, np.int32))
    net.builder.steps += [
        Copy(cache, changed), Update(sums, changed, (NONE, late, NONE)), Take(changed, part, (NONE, early, NONE))
    ]  # fmt: skip
    return net


_NETS: dict[str, Callable[[], _Net]] = {
    "two convolutions": _convolutions, "depthwise 3x3": _depthwise, "products": _products, "residual sum": _residual,
    "join": _join, "pooling": _pools, "measured range": _measured, "attention": _attention,
    "cache": _updated,
}  # fmt: skip
CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    case: lambda make=make: make().results()  # type: ignore[misc]
    for case, make in _NETS.items()
}
