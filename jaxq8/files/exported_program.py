"""`export` and `load_exported`: one file for the eight-bit program and its weights, which runs without the model's code.

The program is StableHLO in the portable form of `jax.export`, lowered for several platforms at once. The weights are arguments
of the program, not constants in it. They are stored, checked and packed like those of `save`, and stay eight bits wide in
memory.
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

from jaxq8._compat import without_source_lines
from jaxq8.analysis.arguments import path_name
from jaxq8.config import Config
from jaxq8.errors import ArgumentError
from jaxq8.files.container import Container, write
from jaxq8.files.tree_records import read_tree
from jaxq8.files.tree_writer import Writer
from jaxq8.files.weights_file import header, read_all, settings
from jaxq8.kernels.processor import compiler_options
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import describe
from jaxq8.numerics.ranges import Range
from jaxq8.transform import quantize

KIND = "program"
PROGRAM = "program"  # the name of the tensor that holds the bytes of jax.export
PLATFORMS = ("cpu", "tpu", "cuda")


def export(
    path: str | os.PathLike[str], fn: Callable[..., Any], q_vars: Any, *inputs: Any,
    ranges: Mapping[str, Range] | None = None, config: Config | None = None,
    platforms: Sequence[str] = PLATFORMS, symbolic_batch: bool | None = None,
) -> None:  # fmt: skip
    """Writes ``quantize(fn, config, ranges=ranges)(q_vars, *inputs)`` into a file that `load_exported` runs.

    Args:
      path: The file to write; ``.q8x`` by convention. An existing file is replaced in one step.
      fn: The float function, as for `quantize`; arrays that it closes over become part of the program.
      q_vars: Its first argument: variables from `quantize_weights` (float variables are encoded on each call).
      *inputs: Its other arguments: arrays or `jax.ShapeDtypeStruct`, in containers or not. Only shapes and dtypes matter.
      ranges: As for `quantize`.
      config: As for `quantize`.
      platforms: The platforms that the program is lowered for.
      symbolic_batch: Whether the first axis of the inputs may have any size of at least 1. With None it may if the model
        allows it; otherwise a warning says that it does not, and the program takes inputs of the given sizes only.

    Raises:
      ArgumentError: An input is not an array, or `symbolic_batch` is True and the model does not allow it.
      FileError: The variables cannot be stored, or the file cannot be written.

    Example:
      >>> q8.export("model.q8x", model.apply, q_vars, images)
      >>> logits = q8.load_exported("model.q8x")(images)
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(q_vars, is_leaf=is_encoded)
    # A program is for any machine, so it takes plain codes.
    flat = [(keys, leaf.unpack() if isinstance(leaf, PackedTensor) else leaf) for keys, leaf in flat]
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
    writer.tensors[PROGRAM] = code  # before the leaves, so that none of them takes its name
    entries = []
    for i in arrays:
        keys, leaf = flat[i]
        name = path_name(keys)
        entries.append([name, writer.node(leaf, (name,))])
    document = {
        **header(KIND, writer, ranges, config), "jax_version": jax.__version__, "platforms": list(platforms),
        "symbolic_batch": symbolic, "program_size": code.size, "weights": entries,
    }  # fmt: skip
    write(path, writer.tensors, document)


def load_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """Reads what `export` wrote; this needs JAX, but neither the model's code nor Flax.

    Reading a file runs nothing. Its program, when it is called, computes on its inputs and calls nothing outside of XLA: a
    program with a callback into Python is refused.

    Args:
      path: The file.

    Returns:
      An `ExportedModel`, a function of the inputs.

    Raises:
      FileError: The file is missing, cut off, changed, of a newer version, or its program calls into Python.

    Example:
      >>> q8.export("model.q8x", model.apply, q_vars, images)
      >>> program = q8.load_exported("model.q8x")
      >>> program(images[:3]).shape
      (3, 10)
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
    """A program with its weights, to be called with inputs like those that `export` was given.

    Attributes:
      weights: Codes, scales, zero points and float leaves, as the program takes them.
      platforms: The platforms that the program was lowered for.
      inputs: Shapes and dtypes of the inputs as a flat tuple; the batch size is symbolic where it may vary.
      outputs: Shapes and dtypes of the results as a flat tuple.

    Example:
      >>> q8.export("model.q8x", model.apply, q_vars, images)
      >>> q8.load_exported("model.q8x")
      ExportedModel(float32[batch,8,8,4] -> float32[batch,10]; cpu, tpu, cuda)
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
          ArgumentError: Number, shapes, dtypes or structure of the inputs differ from those that were exported, or the
            program was not exported for this platform.
        """
        for given, wanted in zip(jax.tree_util.tree_leaves(inputs), self.inputs, strict=False):
            if str(getattr(given, "dtype", None)) != str(wanted.dtype) or np.ndim(given) != len(wanted.shape):
                raise ArgumentError(
                    f"{self._name}: input {describe(given)} does not fit {wanted}; convert it (np.asarray(x, dtype))"
                )
        try:
            # Compiler options belong to the outermost compilation, which is not this one inside another transformation.
            traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree_util.tree_leaves(inputs))
            call = self._exported.call if traced else self._call
            return call(self.weights, *inputs)
        except (ValueError, TypeError) as error:
            raise ArgumentError(
                f"{self._name}: the inputs do not fit ({error}); it takes {', '.join(map(str, self.inputs))}"
            ) from error

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, avals)) for avals in (self.inputs, self.outputs))
        return f"ExportedModel({inputs} -> {outputs}; {', '.join(self.platforms)})"


def _parts(leaf: Any) -> list[Any]:
    """The plain arrays of a leaf. A program that takes only plain arrays does not depend on jaxq8's pytree classes."""
    return list(leaf.tree_flatten()[0]) if is_encoded(leaf) else [leaf]


def _whole(leaf: Any, parts: Sequence[Any]) -> Any:
    """The leaf that plain arrays are the parts of, with the static fields of `leaf`; the inverse of `_parts`."""
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
    if wanted is False:
        return lower(shapes, *fixed), False
    symbolic = _with_symbolic_batch(fixed)
    reason, cause = "the inputs have no common first axis", None
    if symbolic is not None:
        try:
            return lower(shapes, *symbolic), True
        except Exception as error:  # whatever the model, or JAX itself, says to a batch of any size
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            cause = error
    message = f"export: the batch cannot be symbolic: {reason}"
    if wanted:
        raise ArgumentError(f"{message}; pass symbolic_batch=False") from cause
    warnings.warn(f"{message}; the program takes inputs of the given shapes only", stacklevel=3)
    return lower(shapes, *fixed), False


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))


def _with_symbolic_batch(inputs: Any) -> Any | None:
    """The inputs with a symbolic first axis (scalars stay as they are); None if the sizes of the first axes differ."""
    sizes = {x.shape[0] for x in jax.tree_util.tree_leaves(inputs) if x.shape}
    if len(sizes) != 1:
        return None
    (batch,) = jax_export.symbolic_shape("batch", scope=jax_export.SymbolicScope(["batch >= 1"]))

    def symbolic(x: Any) -> Any:
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) if x.shape else x

    return jax.tree_util.tree_map(symbolic, inputs)


def _deserialized(container: Container, data: bytes) -> Any:
    """The exported program in these bytes, which must not call into Python."""
    try:
        exported = jax_export.deserialize(bytearray(data))
        calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    except (
        Exception
    ) as error:  # flatbuffers, MLIR and JAX raise many kinds of errors for bytes that are not a program
        written = container.document.get("jax_version")
        raise container.error(
            f"its program, written with JAX {written}, is not readable by JAX {jax.__version__} "
            f"({type(error).__name__}: {str(error)[:200]})", "export the model again",
        ) from error  # fmt: skip
    if callbacks := sorted(name for name in calls if "callback" in name):
        raise container.error(f"its program calls into Python ({', '.join(callbacks)})", "do not use it")
    return exported


def _check_weights(container: Container, exported: Any, weights: Any) -> None:
    """Refuses weights whose shapes or dtypes are not those that the program takes."""
    leaves = jax.tree_util.tree_leaves(weights)
    wanted = [(tuple(a.shape), str(a.dtype)) for a in exported.in_avals[: len(leaves)]]
    if [(tuple(w.shape), str(w.dtype)) for w in leaves] != wanted:
        raise container.error("its weights are not those that its program takes", "export the model again")
