"""`Writer` takes trees of variables apart into JSON nodes and tensors; `jaxq8.files.tree_records` describes the nodes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxq8.errors import FileError
from jaxq8.files.bit_packing import pack
from jaxq8.files.container import MAXIMUM_SHARING, STORABLE, checksum
from jaxq8.files.packing_note import packing_note
from jaxq8.files.tree_records import CODES, MAXIMUM_DEPTH
from jaxq8.numerics.codebook import CodeBook, validate_book
from jaxq8.numerics.packed_tensor import PackedTensor, validate_packed
from jaxq8.numerics.qtensor import QTensor, describe, validate


class Writer:
    """Takes trees apart into JSON nodes and tensors.

    Attributes:
      tensors: The tensors of all nodes so far, by name.
      version: The oldest version of the format that has all kinds of nodes so far.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray[Any, Any]] = {}
        self.version = 1
        self._names: dict[Any, str] = {}  # the name of a stored array by its dtype, shape and checksum
        # Bytes that were stored, and bytes that were saved by storing equal arrays once.
        self._stored = self._shared = 0

    def node(self, tree: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
        """Returns the node of a tree and collects the tree's tensors.

        Args:
          tree: Nested dicts, lists and tuples of arrays, QTensors, code books, packed weights, numbers, strings, booleans and
            None.
          path: Where the tree lies in the whole tree, for names and messages.

        Raises:
          FileError: Something in the tree cannot be stored; the message names its path.
        """
        if len(path) > MAXIMUM_DEPTH:
            raise FileError(f"tree deeper than {MAXIMUM_DEPTH} levels at {_text(path)}; flatten it")
        tree = _plain(tree)
        if isinstance(tree, QTensor):
            return self._qtensor(tree, path)
        if isinstance(tree, CodeBook):
            return self._codebook(tree, path)
        if isinstance(tree, PackedTensor):
            validate_packed(tree, _text(path))
            return {**self._qtensor(tree.unpack(), path), "packed": packing_note(tree)}
        if isinstance(tree, Mapping):
            if len({type(k) for k in tree}) > 1:
                raise FileError(
                    f"{_text(path)}: keys of different types, which JAX cannot sort; use strings only"
                )
            return {"dict": [[_key(k, path), self.node(v, (*path, str(k)))] for k, v in tree.items()]}
        if isinstance(tree, list | tuple):
            kind = "list" if isinstance(tree, list) else "tuple"
            return {kind: [self.node(v, (*path, str(i))) for i, v in enumerate(tree)]}
        if tree is None or isinstance(tree, bool | int | float | str):
            return {"value": tree}
        return self._array(tree, path)

    def _array(self, leaf: Any, path: tuple[str, ...]) -> dict[str, Any]:
        data = _data(leaf, path)
        content = (data.dtype, data.shape, checksum(np.ascontiguousarray(data).reshape(-1).view(np.uint8)))
        name = self._names.get(content)
        if name is None or not self._shares(name, data):
            name = self._names[content] = self._add(_text(path), data)
        return {"array": name, "dtype": data.dtype.name, "shape": list(data.shape)}

    def _qtensor(self, q: QTensor, path: tuple[str, ...]) -> dict[str, Any]:
        where = _text(path)
        validate(q, where)
        values, scale, zero_point = (_data(part, path) for part in (q.values, q.scale, q.zero_point))
        if values.dtype.name not in CODES:
            raise FileError(
                f"{where}: codes are {values.dtype} (simulated); encode with mode eightbit to save them"
            )
        name = self._add(where, pack(values, q.bits) if q.bits < 8 else values)
        self.tensors[f"{name}.scale"] = scale
        if not q.symmetric:
            self.tensors[f"{name}.zero_point"] = zero_point.astype(np.int32)
        return {
            "qtensor": name, "bits": q.bits, "storage": values.dtype.name, "symmetric": q.symmetric,
            "dtype": np.dtype(q.dtype).name, "shape": list(values.shape), "scale_dtype": scale.dtype.name,
            "scale_shape": list(scale.shape),
        }  # fmt: skip

    def _codebook(self, b: CodeBook, path: tuple[str, ...]) -> dict[str, Any]:
        where = _text(path)
        validate_book(b, where)
        self.version = 2
        name = self._add(where, pack(_data(b.indices, path), b.bits))
        book, scale = _data(b.book, path), _data(b.scale, path)
        self.tensors[f"{name}.book"] = book
        self.tensors[f"{name}.scale"] = scale
        return {
            "codebook": name, "bits": b.bits, "dtype": np.dtype(b.dtype).name, "shape": list(b.shape),
            "scale_shape": list(b.scale.shape),
        }  # fmt: skip

    def _shares(self, name: str, data: np.ndarray[Any, Any]) -> bool:
        """Whether the stored tensor `name` may stand for `data` too; then the bytes that this saves are counted.

        Models have many equal vectors of ones and zeros. How much they share is limited: see `MAXIMUM_SHARING`.
        """
        shared = self._shared + data.nbytes
        if shared > MAXIMUM_SHARING * self._stored or self.tensors[name].tobytes() != data.tobytes():
            return False
        self._shared = shared
        return True

    def _add(self, name: str, data: np.ndarray[Any, Any]) -> str:
        """Stores a tensor and returns its name, which is made unique, since different paths may have the same text."""
        unique, count = name, 1
        while any(f"{unique}{end}" in self.tensors for end in ("", ".scale", ".zero_point", ".book")):
            count += 1
            unique = f"{name}~{count}"
        self.tensors[unique] = data
        self._stored += data.nbytes
        return unique


def _plain(tree: Any) -> Any:
    """The tree with an NNX state or variable as plain dicts and arrays.

    Flax is not imported for this: if it has not been imported already, the tree cannot hold its objects.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return tree
    if isinstance(tree, nnx.State):
        return nnx.to_pure_dict(tree)
    return tree.get_value() if isinstance(tree, nnx.Variable) else tree


def _data(leaf: Any, path: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The array of a leaf as NumPy's; refuses what a file cannot hold."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise FileError(
            f"{_text(path)}: a {type(leaf).__name__} cannot be stored; files hold dicts, lists, tuples, arrays and numbers"
        )
    if str(leaf.dtype) not in STORABLE:
        raise FileError(
            f"{_text(path)}: dtype {leaf.dtype} cannot be stored; known are {', '.join(sorted(STORABLE))}"
        )
    try:
        return np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileError(
            f"{_text(path)}: {describe(leaf)} has no data to store ({error}); save outside of jit"
        ) from error


def _key(key: Any, path: tuple[str, ...]) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise FileError(
            f"{_text(path)}: key {key!r} is a {type(key).__name__}; files hold strings and integers as keys"
        )
    return key


def _text(path: tuple[str, ...]) -> str:
    return "/".join(path) or "variables"
