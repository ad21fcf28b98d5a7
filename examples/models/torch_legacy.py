"""Reader of `.pth` files in the layout that torch.save wrote before version 1.6, without torch.

The file is five pickles (a magic number, the protocol version, system facts, the state, the list of storage
keys), then, in the order of that list, each storage as an int64 count and its little-endian elements.
Layout: torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.models import restricted_pickle
from examples.models.checks import ModelFileError, read_bytes

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass(frozen=True)
class _StorageKey:
    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _View:
    """What the pickle says of one tensor: which storage it looks at, from where, and in which steps."""

    storage: _StorageKey
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a legacy `.pth` state dict, by name, each with its declared shape (strides applied).

    Args:
        path: the file.

    Returns:
        C-contiguous float32 and int64 arrays, in file order.

    Raises:
        ModelFileError: another format (a zip from torch >= 1.6, say), a damaged file, or a pickle
            that asks for anything but tensors.
    """
    content = read_bytes(path)
    if content[:2] == b"PK":
        raise ModelFileError(
            f"{path} is a zip archive, the layout of torch >= 1.6. Save it once more with "
            "torch.save(state, file, _use_new_zipfile_serialization=False)."
        )
    file = io.BytesIO(content)
    _check_header([restricted_pickle.load(file, path, {}) for _ in range(3)], path)
    state = restricted_pickle.load(file, path, _ALLOWED, _storage_key)
    keys = restricted_pickle.load(file, path, {})
    views = _views(state, path)
    storages = _read_storages(file, keys, {view.storage.key: view.storage for view in views.values()}, path)
    return {
        name: _strided(storages[view.storage.key], view, f"{path}: {name}") for name, view in views.items()
    }


def _check_header(header: list[Any], path: Path) -> None:
    magic, protocol, system = header
    if magic != MAGIC or protocol != PROTOCOL:
        raise ModelFileError(
            f"{path} is a pickle, but not written by torch.save. Give a .pth file of weights."
        )
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ModelFileError(
            f"{path} was written on a big-endian machine, which this reader does not know. Use another file."
        )


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _View:
    numbers = [offset, *shape, *stride]
    if not isinstance(storage, _StorageKey) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ModelFileError("it describes a tensor that is not one")
    if len(shape) != len(stride):
        raise ModelFileError("it describes a tensor with unequal numbers of sizes and strides")
    return _View(storage, offset, tuple(shape), tuple(stride))


def _storage_key(pid: Any) -> _StorageKey:
    kind, dtype, key, _location, count, *_ = pid
    if (
        kind != "storage"
        or not isinstance(dtype, np.dtype)
        or not isinstance(key, str)
        or type(count) is not int
    ):
        raise ModelFileError("it refers to something other than a tensor storage")
    return _StorageKey(key, dtype, count)


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


def _views(state: Any, path: Path) -> dict[str, _View]:
    if not isinstance(state, dict) or not all(isinstance(view, _View) for view in state.values()):
        raise ModelFileError(f"{path} holds no flat dictionary of tensors. Save model.state_dict() alone.")
    return dict(state)


def _read_storages(
    file: io.BytesIO, keys: Any, wanted: dict[str, _StorageKey], path: Path
) -> dict[str, np.ndarray]:
    if not isinstance(keys, list) or set(keys) != set(wanted):
        raise ModelFileError(f"{path} lists other storages than its tensors use. Download the file again.")
    return {key: _read_storage(file, wanted[key], path) for key in keys}


def _read_storage(file: io.BytesIO, storage: _StorageKey, path: Path) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little", signed=True)
    data = file.read(storage.count * storage.dtype.itemsize) if count == storage.count > 0 else b""
    if not data or len(data) != storage.count * storage.dtype.itemsize:
        raise ModelFileError(f"{path} ends early or is damaged at storage {storage.key}. Download it again.")
    return np.frombuffer(data, storage.dtype)


def _strided(storage: np.ndarray, view: _View, where: str) -> np.ndarray:
    """Apply offset and strides (in elements): a file may keep the axes in any order."""
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.stride, strict=True))
    if 0 in view.shape or last >= storage.size:
        raise ModelFileError(
            f"{where} points outside its storage of {storage.size} elements. Download the file again."
        )
    steps = tuple(step * storage.itemsize for step in view.stride)
    # Only within the storage, as was just checked: as_strided itself checks nothing.
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, steps))
