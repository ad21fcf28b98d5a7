"""Reads trees of variables from JSON nodes and tensors, the form in which files store them.

`jaxq8.files.tree_writer` makes this form of a tree; `jaxq8.files.weights_file` and `jaxq8.files.exported_program` store their
variables in it. A node of the document is one of::

    {"dict": [[key, node], ...]}         keys are strings or integers
    {"list": [node, ...]}  {"tuple": [node, ...]}
    {"value": x}                         None, a boolean, a number or a string
    {"array": name, "dtype": "float32", "shape": [3, 4]}
    {"qtensor": name, "bits": 4, "storage": "int8", "symmetric": true, "dtype": "float32", "shape": [3, 4],
     "scale_dtype": "float32", "scale_shape": [1, 4]}
    {"codebook": name, "bits": 4, "dtype": "float32", "shape": [3, 4], "scale_shape": [1, 4]}        from version 2 on

The codes of a QTensor are the tensor ``name``, packed if they have fewer than eight bits (`jaxq8.files.bit_packing`). Its scale
is the tensor ``name.scale`` and its zero point the tensor ``name.zero_point``; that of a symmetric QTensor is 0 and not
stored. A node of a PackedTensor is that of its QTensor with a field ``packed`` (`jaxq8.files.packing_note`). Of a code book the
tensor ``name`` holds the packed indices, ``name.book`` the values and ``name.scale`` the scale. Equal arrays are stored once:
their nodes have the same name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.files.bit_packing import packed_size, unpack
from jaxq8.files.container import STORABLE, Container
from jaxq8.files.packing_note import repacked
from jaxq8.numerics.codebook import CodeBook
from jaxq8.numerics.qtensor import QTensor

MAXIMUM_DEPTH = 64
MAXIMUM_AXES = 32
CODES = ("int8", "uint8", "int32")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A leaf that is still in its file; `read` reads this leaf alone.

    Attributes:
      name: Its name in the file.
      shape: Shape of the array that it stands for.
      dtype: dtype of the array, or the float dtype that a QTensor or CodeBook stands for.
      bits: Width of a code or of an index; None for an array that is not quantized.
      nbytes: Bytes in the file, scales, zero points and books included.
      container: The open file.
      node: What the document says of the leaf.

    Example:
      >>> q8.save("model.q8", q_vars)
      >>> stored, _, _ = q8.load("model.q8", lazy=True)
      >>> kernel = stored["params"]["Dense_0"]["kernel"]
      >>> kernel.shape, kernel.bits, kernel.nbytes  # 256 * 128 codes, 128 scales of four bytes
      ((256, 128), 8, 33280)
      >>> kernel.read()
      QTensor(256x128, 8 bits signed, ...)
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    bits: int | None
    nbytes: int
    container: Container = dataclasses.field(repr=False)
    node: Mapping[str, Any] = dataclasses.field(repr=False)

    def read(self) -> Any:
        """Reads the array, QTensor or CodeBook onto the default device.

        A weight that was saved packed becomes a PackedTensor where this machine would pack it in the same way, else a QTensor.

        Raises:
          FileError: The data does not match its checksum, or a scale is not positive and finite.
        """
        if self.bits is None:
            return _on_device(self.container.tensor(self.name, self.dtype, self.shape))
        if "codebook" in self.node:
            return _read_codebook(self)
        return repacked(_read_qtensor(self), self.node.get("packed"))


def read_tree(container: Container, node: Any, depth: int = 0) -> Any:
    """The tree that a node describes, with a `StoredTensor` for each array, QTensor and code book.

    Args:
      container: The open file.
      node: What JSON gave for the node; it is checked before it is used.
      depth: How many nodes lie around this one.

    Raises:
      FileError: The document does not have the form that this module's docstring describes; the message names the tensor.
    """
    if depth > MAXIMUM_DEPTH:
        raise container.error(f"tree deeper than {MAXIMUM_DEPTH} levels", "it was not written by jaxq8")
    if not isinstance(node, dict) or not node:
        raise container.error(f"{str(node)[:80]!r} is not a node of a tree", "it was not written by jaxq8")
    kind = next(iter(node))
    if kind == "dict" and isinstance(node[kind], list):
        return _read_dict(container, node[kind], depth)
    if kind in ("list", "tuple") and isinstance(node[kind], list):
        items = [read_tree(container, entry, depth + 1) for entry in node[kind]]
        return items if kind == "list" else tuple(items)
    if kind == "value" and (node[kind] is None or isinstance(node[kind], bool | int | float | str)):
        return node[kind]
    if kind == "array":
        return _stored_array(container, node)
    if kind == "qtensor":
        return _stored_qtensor(container, node)
    if kind == "codebook":
        return _stored_codebook(container, node)
    raise container.error(f"unknown kind of node {kind!r}", "it needs a newer jaxq8, or was changed")


def is_stored(x: Any) -> bool:
    """Whether a leaf is a `StoredTensor`; for ``tree_map(..., is_leaf=is_stored)``."""
    return isinstance(x, StoredTensor)


def _read_dict(container: Container, entries: list[Any], depth: int) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str | int):
            raise container.error(f"{str(entry)[:80]!r} is not [key, node]", "it was not written by jaxq8")
        key, node = entry
        if key in result:
            raise container.error(f"key {key!r} occurs twice", "it was not written by jaxq8")
        if type(key) is not type(entries[0][0]):
            raise container.error("a dict has strings and integers as keys", "it was not written by jaxq8")
        result[key] = read_tree(container, node, depth + 1)
    return result


def _stored_array(container: Container, node: dict[str, Any]) -> StoredTensor:
    name = node["array"]
    shape, dtype, nbytes = _claimed(container, node, name)
    return StoredTensor(name, shape, dtype, None, nbytes, container, node)


def _claimed(container: Container, node: dict[str, Any], name: Any) -> tuple[tuple[int, ...], Any, int]:
    """Shape, dtype and bytes of the array that a node stands for, checked, and noted with `Container.claim`."""
    shape, dtype = _shape(container, node, "shape", name), _dtype(container, node, "dtype", name)
    nbytes = math.prod(shape) * dtype.itemsize
    container.claim(name, nbytes)
    return shape, dtype, nbytes


def _stored_qtensor(container: Container, node: dict[str, Any]) -> StoredTensor:
    name, storage = node["qtensor"], node.get("storage")
    bits: Any = node.get("bits")
    shape, dtype, _ = _claimed(container, node, name)
    scale_shape = _shape(container, node, "scale_shape", name)
    scale_dtype = _dtype(container, node, "scale_dtype", name)
    widths = (32,) if storage == "int32" else (2, 3, 4, 5, 6, 7, 8)
    good_bits = storage in CODES and type(bits) is int and bits in widths
    if not good_bits or not _groups_evenly(scale_shape, shape):
        raise container.error(
            f"tensor {name!r}: {bits!r} bits stored as {storage!r} of shape {list(shape)} with scales of shape "
            f"{list(scale_shape)} is no QTensor", "it was not written by jaxq8",
        )  # fmt: skip
    if scale_dtype.name not in ("float32", "float64") or not jnp.issubdtype(dtype, jnp.floating):
        raise container.error(
            f"tensor {name!r}: scales and what they stand for must be floats", "it was changed"
        )
    zero_point_bytes = 0 if node.get("symmetric") is True else 4
    per_scale = scale_dtype.itemsize + zero_point_bytes
    nbytes = packed_size(math.prod(shape), bits) + math.prod(scale_shape) * per_scale
    return StoredTensor(name, shape, dtype, bits, nbytes, container, node)


def _groups_evenly(scale_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether every axis has one scale, a scale for each element, or a scale for each of several equal groups."""
    if len(scale_shape) != len(shape):
        return False
    return all(s in (1, n) or (s and n % s == 0) for s, n in zip(scale_shape, shape, strict=True))


def _read_qtensor(leaf: StoredTensor) -> QTensor:
    node, container, bits = leaf.node, leaf.container, leaf.bits
    assert bits is not None
    storage, symmetric = np.dtype(node["storage"]), node.get("symmetric") is True
    scale_shape, size = tuple(node["scale_shape"]), math.prod(leaf.shape)
    if bits < 8:
        packed = container.tensor(leaf.name, np.uint8, (packed_size(size, bits),))
        values = unpack(packed, bits, size, storage.kind == "i").reshape(leaf.shape)
    else:
        values = container.tensor(leaf.name, storage, leaf.shape)
    scale = container.tensor(f"{leaf.name}.scale", node["scale_dtype"], scale_shape)
    zero_point = np.zeros(scale_shape, np.int32)
    if not symmetric:
        zero_point = container.tensor(f"{leaf.name}.zero_point", np.int32, scale_shape)
    _check_scale(container, leaf.name, scale)
    on_device = (_on_device(values), _on_device(scale), _on_device(zero_point))
    return QTensor(*on_device, bits, symmetric, np.dtype(leaf.dtype))


def _stored_codebook(container: Container, node: dict[str, Any]) -> StoredTensor:
    name = node["codebook"]
    bits: Any = node.get("bits")
    shape, scale = (_shape(container, node, field, name) for field in ("shape", "scale_shape"))
    dtype = _dtype(container, node, "dtype", name)
    fits = len(scale) == len(shape) and all(s in (1, n) for s, n in zip(scale, shape, strict=True))
    good_bits = type(bits) is int and bits in range(2, 7)
    if not fits or not good_bits or not jnp.issubdtype(dtype, jnp.floating):
        raise container.error(
            f"tensor {name!r}: {bits!r} bits of shape {list(shape)} with books of shape {list(scale)} that stand for {dtype} "
            "are no code book", "it was not written by jaxq8",
        )  # fmt: skip
    container.claim(name, math.prod(shape))
    nbytes = packed_size(math.prod(shape), bits) + math.prod(scale) * (2**bits + 4)
    return StoredTensor(name, shape, dtype, bits, nbytes, container, node)


def _read_codebook(leaf: StoredTensor) -> CodeBook:
    container, bits, scale_shape = leaf.container, leaf.bits, tuple(leaf.node["scale_shape"])
    assert bits is not None
    size = math.prod(leaf.shape)
    packed = container.tensor(leaf.name, np.uint8, (packed_size(size, bits),))
    indices = unpack(packed, bits, size, signed=False).reshape(leaf.shape)
    book = container.tensor(f"{leaf.name}.book", np.int8, (*scale_shape, 2**bits))
    scale = container.tensor(f"{leaf.name}.scale", np.float32, scale_shape)
    _check_scale(container, leaf.name, scale)
    parts = (_on_device(indices), _on_device(book), _on_device(scale))
    return CodeBook(*parts, bits, np.dtype(leaf.dtype))


def _check_scale(container: Container, name: str, scale: np.ndarray[Any, Any]) -> None:
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise container.error(
            f"tensor {name!r} has scales that are not positive and finite", "quantize the model again"
        )


def _shape(container: Container, node: Mapping[str, Any], field: str, name: object) -> tuple[int, ...]:
    """The shape in a field of a node, checked; the node's name is checked with it."""
    shape = node.get(field)
    if not isinstance(name, str) or not _is_shape(shape):
        raise container.error(f"tensor {name!r}: {field} {str(shape)[:80]} is not a shape", "it was changed")
    assert shape is not None
    return tuple(shape)


def _is_shape(x: Any) -> bool:
    if not isinstance(x, list) or len(x) > MAXIMUM_AXES:
        return False
    return all(type(n) is int and 0 <= n < 2**48 for n in x)


def _dtype(container: Container, node: Mapping[str, Any], field: str, name: object) -> Any:
    """The dtype that a field of a node names, checked."""
    dtype = node.get(field)
    if not isinstance(dtype, str) or dtype not in STORABLE:
        raise container.error(
            f"tensor {name!r}: unknown {field} {str(dtype)[:40]!r}", "it needs a newer jaxq8"
        )
    return STORABLE[dtype]


def _on_device(data: np.ndarray[Any, Any]) -> Any:
    """The array as a JAX array; an array of 64 bits, which JAX would cut to 32, stays a NumPy array."""
    if jax.dtypes.canonicalize_dtype(data.dtype) != data.dtype:
        return data
    return jax.device_put(data)  # on a CPU without a copy; jnp.asarray makes one
