"""`export` and `load_exported`: the eight-bit program and its weights in one file that runs with no model code.

The program is StableHLO in the portable form of `jax.export`, lowered for several platforms at once. Its weights are its
arguments, not constants in it: they are stored, checked and packed like those of `save`, and stay eight bits wide in memory.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from jaxq8._compat import InconclusiveSize, without_source_lines
from jaxq8.analysis.arguments import path_name
from jaxq8.config import Config
from jaxq8.errors import ArgumentError, QuantizationError
from jaxq8.files.container import Container, write
from jaxq8.files.tree_records import read_tree
from jaxq8.files.tree_writer import Writer
from jaxq8.files.weights_file import header, read_all, settings
from jaxq8.kernels.processor import compiler_options
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.qtensor import describe
from jaxq8.numerics.ranges import Range
from jaxq8.transform import quantize

KIND = "program"
PROGRAM = "program"  # the tensor that holds the bytes of jax.export
PLATFORMS = ("cpu", "tpu", "cuda")


def export(
    path: str | os.PathLike[str], fn: Callable[..., Any], q_vars: Any, *inputs: Any,
    ranges: Mapping[str, Range] | None = None, config: Config | None = None,
    platforms: Sequence[str] = PLATFORMS, symbolic_batch: bool | None = None,
) -> None:  # fmt: skip
    """Writes ``quantize(fn, config, ranges=ranges)(q_vars, *inputs)`` into a file that `load_exported` runs.

    Args:
      path: Where; ``.q8x`` by convention. An existing file is replaced in one step.
      fn: The float function, as for `quantize`; arrays that it closes over become part of the program.
      q_vars: Its first argument: variables from `quantize_weights` (float ones are encoded on each call).
      *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct`, in containers or not. Only shapes and dtypes count.
      ranges: As for `quantize`.
      config: As for `quantize`.
      platforms: What the program is lowered for.
      symbolic_batch: Whether the first axis of the inputs may have any size of at least 1. None: if the model allows it;
        where it does not, a warning says so, and the program takes the given sizes only.

    Raises:
      ArgumentError: An input is not an array, or `symbolic_batch` is True and the model does not allow it.
      FileError: The variables cannot be stored, or the file cannot be written.

    Example:
      >>> q8.export("model.q8x", model.apply, q_vars, images)
      >>> logits = q8.load_exported("model.q8x")(images)
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(q_vars, is_leaf=is_encoded)
    arrays = [i for i, (_, leaf) in enumerate(flat) if hasattr(leaf, "dtype")]
    leaves = [flat[i][1] for i in arrays]

    def program(plain: list[list[Any]], *inputs: Any) -> Any:
        full = [leaf for _, leaf in flat]
        for i, leaf, parts in zip(arrays, leaves, plain, strict=True):
            full[i] = _whole(leaf, parts)
        return quantize(fn, config, ranges=ranges)(jax.tree_util.tree_unflatten(tree, full), *inputs)

    with without_source_lines():
        exported, symbolic = _lowered(program, [_parts(v) for v in leaves], inputs, platforms, symbolic_batch)
    writer = Writer()
    code = np.frombuffer(exported.serialize(), np.uint8)
    writer.tensors[PROGRAM] = code  # first, so that no leaf takes its name
    entries = [[path_name(flat[i][0]), writer.node(flat[i][1], (path_name(flat[i][0]),))] for i in arrays]
    document = {
        **header(KIND, writer, ranges, config), "jax_version": jax.__version__, "platforms": list(platforms),
        "symbolic_batch": symbolic, "program_size": code.size, "weights": entries,
    }  # fmt: skip
    write(path, writer.tensors, document)


def load_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """Reads what `export` wrote; needs jax, and neither the model's code nor Flax.

    A file is data until its program is called; the program then computes on its inputs, and calls nothing outside of XLA:
    one with a callback into Python is refused.

    Args:
      path: The file.

    Returns:
      A function of the inputs.

    Raises:
      FileError: The file is missing, cut off, changed, or of a newer version.

    Example:
      >>> model = q8.load_exported("model.q8x")
      >>> logits = model(images)
    """
    container = Container(path, KIND)
    entries = container.document.get("weights")
    size = container.document.get("program_size")
    if not isinstance(entries, list) or type(size) is not int or size < 0:
        raise container.error("its document names no weights or no program", "export the model again")
    settings(container)
    weights = []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2:
            raise container.error(f"{str(entry)[:80]!r} is not [name, node]", "export the model again")
        weights.append(_parts(read_all(read_tree(container, entry[1]))))
    exported = _deserialized(container, container.tensor(PROGRAM, np.uint8, (size,)).tobytes())
    _check_weights(container, exported, weights)
    return ExportedModel(exported, weights, str(path))


class ExportedModel:
    """A program with its weights, callable with the inputs that `export` was given.

    Attributes:
      weights: Codes, scales, zero points and float leaves, as the program takes them.
      platforms: What it was lowered for.
      inputs: Shapes and dtypes of the inputs, flat; the batch is symbolic where it may vary.
      outputs: Shapes and dtypes of the results, flat.
    """

    def __init__(self, exported: Any, weights: Any, name: str):
        self.weights, self._name, self._exported = weights, name, exported
        count = len(jax.tree_util.tree_leaves(weights))
        self.platforms: tuple[str, ...] = tuple(exported.platforms)
        self.inputs: tuple[Any, ...] = tuple(exported.in_avals[count:])
        self.outputs: tuple[Any, ...] = tuple(exported.out_avals)
        self._call = jax.jit(exported.call, compiler_options=compiler_options())

    def __call__(self, *inputs: Any) -> Any:
        """Runs the program.

        Raises:
          ArgumentError: Number, shapes, dtypes or structure of the inputs differ from what was exported, or the platform was
            not exported for.
        """
        for given, wanted in zip(jax.tree_util.tree_leaves(inputs), self.inputs, strict=False):
            if str(getattr(given, "dtype", None)) != str(wanted.dtype) or np.ndim(given) != len(wanted.shape):
                raise ArgumentError(
                    f"{self._name}: input {describe(given)} does not fit {wanted}; convert it (np.asarray(x, dtype))"
                )
        try:
            # Options belong to the outermost compilation: inside of another transformation that is not this one.
            traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree_util.tree_leaves(inputs))
            return (self._exported.call if traced else self._call)(self.weights, *inputs)
        except (ValueError, TypeError) as error:
            raise ArgumentError(
                f"{self._name}: the inputs do not fit ({error}); it takes {', '.join(map(str, self.inputs))}"
            ) from error

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, avals)) for avals in (self.inputs, self.outputs))
        return f"ExportedModel({inputs} -> {outputs}; {', '.join(self.platforms)})"


def _parts(leaf: Any) -> list[Any]:
    """The plain arrays of a leaf: a program of them needs no registered tree of ours."""
    return list(leaf.tree_flatten()[0]) if is_encoded(leaf) else [leaf]


def _whole(leaf: Any, parts: Sequence[Any]) -> Any:
    """The inverse of `_parts`, with the static fields of `leaf`."""
    if not is_encoded(leaf):
        return parts[0]
    return type(leaf).tree_unflatten(leaf.tree_flatten()[1], parts)


def _lowered(
    program: Callable[..., Any], weights: Any, inputs: tuple[Any, ...], platforms: Sequence[str], wanted: bool | None
) -> tuple[Any, bool]:  # fmt: skip
    """The exported program, and whether its batch is symbolic."""
    for leaf in jax.tree_util.tree_leaves(inputs, is_leaf=is_encoded):
        if is_encoded(leaf) or not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise ArgumentError(
                f"export: input {describe(leaf)} is not an array; bind other arguments first with functools.partial"
            )
    lower = jax_export.export(jax.jit(program), platforms=tuple(platforms))
    shapes = jax.tree_util.tree_map(_shape_of, weights)
    fixed = jax.tree_util.tree_map(_shape_of, inputs)
    reason: Exception | str = "the inputs have no common first axis"
    if wanted is not False and (symbolic := _with_symbolic_batch(fixed)) is not None:
        try:
            return lower(shapes, *symbolic), True
        except (InconclusiveSize, TypeError, ValueError, QuantizationError) as error:
            reason = error
    if wanted is not False:
        first = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        message = f"export: the batch cannot be symbolic: {first}"
        if wanted:
            raise ArgumentError(f"{message}; pass symbolic_batch=False") from (
                reason if isinstance(reason, Exception) else None
            )
        warnings.warn(f"{message}; the program takes inputs of the given shapes only", stacklevel=3)
    return lower(shapes, *fixed), False


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))


def _with_symbolic_batch(inputs: Any) -> Any | None:
    """The inputs with the first axis of each that is not a scalar made symbolic; None if their sizes differ."""
    sizes = {x.shape[0] for x in jax.tree_util.tree_leaves(inputs) if x.shape}
    if len(sizes) != 1:
        return None
    (batch,) = jax_export.symbolic_shape("batch", scope=jax_export.SymbolicScope(["batch >= 1"]))

    def symbolic(x: Any) -> Any:
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) if x.shape else x

    return jax.tree_util.tree_map(symbolic, inputs)


def _deserialized(container: Container, data: bytes) -> Any:
    try:
        exported = jax_export.deserialize(bytearray(data))
        calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    except Exception as error:  # flatbuffers, MLIR and JAX raise what they like on bytes that are no program
        written = container.document.get("jax_version")
        raise container.error(
            f"its program, written with JAX {written}, is not readable by JAX {jax.__version__} "
            f"({type(error).__name__}: {str(error)[:200]})", "export the model again",
        ) from error  # fmt: skip
    if callbacks := sorted(name for name in calls if "callback" in name):
        raise container.error(f"its program calls into Python ({', '.join(callbacks)})", "do not use it")
    return exported


def _check_weights(container: Container, exported: Any, weights: Any) -> None:
    """Refuses weights that the program does not take."""
    leaves = jax.tree_util.tree_leaves(weights)
    wanted = [(tuple(a.shape), str(a.dtype)) for a in exported.in_avals[: len(leaves)]]
    if [(tuple(w.shape), str(w.dtype)) for w in leaves] != wanted:
        raise container.error("its weights are not those that its program takes", "export the model again")
