"""Calls of region programs from JAX, and questions about them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.ffi
import numpy as np

from jaxq8.errors import NativeError
from jaxq8.native import library

_TARGET = "jaxq8_region"


def call(
    words: np.ndarray, args: Sequence[jax.Array], results: Sequence[jax.ShapeDtypeStruct],
    aliases: Mapping[int, int] | None = None,
) -> list[jax.Array]:  # fmt: skip
    """Runs a region program on arrays, in `jax.jit` or outside; mapped over a batch by `jax.vmap`, it runs for each example.

    Args:
      words: The program, an int64 vector.
      args: The arrays of its arguments, in order.
      results: Shapes and dtypes of its results, in order.
      aliases: For each argument that a result begins with the number of this result, as in the program. XLA then gives both
        the same memory, and copies the argument only where somebody else reads it later. Without it the call copies.

    Returns:
      The results.

    Raises:
      NativeError: If there are no native regions here. What is wrong with a program is an error when it is compiled.
    """
    _register()
    shared = dict(aliases or {})
    run = jax.ffi.ffi_call(_TARGET, list(results), vmap_method="sequential", input_output_aliases=shared)
    return list(run(*args, program=_words(words)))


def layout(problem: Sequence[int]) -> tuple[int, ...]:
    """How oneDNN lays out the weights of a problem.

    Args:
      problem: The words of the problem: number of spatial axes, batch, spatial sizes, c_in, kernel, c_out, strides, dilation,
        low padding, high padding, groups.

    Returns:
      ndims, dims, padded dims, strides of the outer blocks, number of inner blocks, their sizes, their axes, bytes.

    Raises:
      NativeError: If oneDNN has no such contraction, or a layout that blocks alone do not describe.
    """
    return _layout(tuple(int(word) for word in problem))


@functools.lru_cache(maxsize=4096)
def _layout(problem: tuple[int, ...]) -> tuple[int, ...]:
    native = library.loaded()
    out = np.zeros(128, np.int64)
    if native.jaxq8_native_layout(*_pointer(np.array(problem, np.int64)), *_pointer(out)):
        raise NativeError(f"layout of {problem}: {library.error_of(native)}")
    ndims = int(out[0])
    blocks = int(out[1 + 3 * ndims])
    return tuple(out[: 3 + 3 * ndims + 2 * blocks].tolist())


def implementations(words: np.ndarray) -> list[str]:
    """What runs in each step of a program: a line for a step, with oneDNN's names of its kernels."""
    native = library.loaded()
    words = _words(words)
    out = ctypes.create_string_buffer(256 * (len(words) + 16))
    if native.jaxq8_native_implementations(*_pointer(words), out, len(out)):
        raise NativeError(library.error_of(native))
    return out.value.decode().splitlines()


def _words(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words, np.int64).reshape(-1)


def _pointer(words: np.ndarray) -> tuple[ctypes._Pointer[ctypes.c_int64], int]:
    return words.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)), len(words)


@functools.cache
def _register() -> None:
    """Tells XLA of the extension's functions, and of the type of what it keeps with a compiled program."""
    native = library.loaded()
    # What is registered before the backend is there waits for it, and then handlers come before the types that they use.
    jax.devices("cpu")
    type_id = jax.ffi.pycapsule(ctypes.c_void_p(native.jaxq8_native_type_id()))
    type_info = jax.ffi.pycapsule(ctypes.c_void_p(native.jaxq8_native_type_info()))
    jax.ffi.register_ffi_type(
        "jaxq8_region_state", {"type_id": type_id, "type_info": type_info}, platform="cpu"
    )
    stages = {
        "instantiate": jax.ffi.pycapsule(native.jaxq8_native_instantiate),
        "execute": jax.ffi.pycapsule(native.jaxq8_native_execute),
    }
    jax.ffi.register_ffi_target(_TARGET, stages, platform="cpu")
