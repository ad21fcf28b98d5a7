"""`load_float`: reads safetensors, Flax msgpack, orbax checkpoint folders and ``.npz`` as nested dicts of NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError

from jaxq8.errors import FileError
from jaxq8.files.container import open_safetensors

# A folder that holds a file of one of these names is an orbax checkpoint.
ORBAX = ("_METADATA", "manifest.ocdbt", "checkpoint")


def load_float(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a float model; the name of the file or its first bytes tell which kind it is.

    Flat names become nested dicts: they are split at "/" if any of them contains one, else at ".". Nothing is unpickled.

    Args:
      path: ``.safetensors``, ``.msgpack`` (`flax.serialization.to_bytes`), ``.npz``, or the folder of an orbax checkpoint.

    Returns:
      Nested dicts of NumPy arrays.

    Raises:
      FileError: The file is missing, unreadable or of an unknown kind, or the package that reads it is missing.

    Example:
      >>> np.savez("model.npz", **{"params/Dense_0/kernel": np.ones((256, 128), np.float32)})
      >>> q8.load_float("model.npz")["params"]["Dense_0"]["kernel"].shape
      (256, 128)
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path}: no such file or folder; check the path")
    read = _reader(path)
    try:
        return read(path)
    except FileError:
        raise
    except Exception as error:  # the library of each format raises errors of its own
        raise FileError(
            f"{path}: cannot be read as {read.__name__.strip('_')} ({type(error).__name__}: {str(error)[:200]}); "
            "it is cut off, changed, or of another kind"
        ) from error


def nested(flat: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Turns arrays with flat names into nested dicts.

    Args:
      flat: Arrays by name.
      path: The file that they come from, for messages.

    Raises:
      FileError: A name is the beginning of another name, so that it would be an array and a dict at once.
    """
    separator = "/" if any("/" in name for name in flat) else "."
    result: dict[str, Any] = {}
    for name, array in flat.items():
        *folders, last = name.split(separator)
        inner: Any = result
        for folder in folders:
            inner = inner.setdefault(folder, {})
            if not isinstance(inner, dict):
                raise FileError(
                    f"{path}: {name!r} lies inside {folder!r}, which is an array; rename one of them"
                )
        if last in inner:
            raise FileError(
                f"{path}: {name!r} is an array and the beginning of other names; rename one of them"
            )
        inner[last] = array
    return result


def _reader(path: Path) -> Any:
    if path.is_dir():
        return _orbax
    kinds = {".safetensors": _safetensors, ".msgpack": _msgpack, ".npz": _npz}
    if path.suffix in kinds:
        return kinds[path.suffix]
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04":
        return _npz
    if start[8:9] == b"{":
        return _safetensors
    raise FileError(f"{path}: unknown kind of file; known are {', '.join(kinds)} and orbax folders")


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with open_safetensors(path) as file:
            return nested({name: np.asarray(file.get_tensor(name)) for name in file.keys()}, path)  # noqa: SIM118
    except SafetensorError as error:
        raise FileError(f"{path}: {error}; get it again") from error


def _msgpack(path: Path) -> dict[str, Any]:
    serialization = _package("flax.serialization", "flax", path)
    return _checked(serialization.msgpack_restore(path.read_bytes()), path)


def _npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return nested({name: file[name] for name in file.files}, path)


def _orbax(path: Path) -> dict[str, Any]:
    if not any((path / name).exists() for name in ORBAX):
        raise FileError(
            f"{path}: a folder without a checkpoint of orbax; name the one that holds {ORBAX[0]} (of a CheckpointManager's, "
            "STEP/default)"
        )
    checkpoint = _package("orbax.checkpoint", "orbax-checkpoint", path)
    with checkpoint.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path.resolve()).item_metadata.tree
        # Restored as NumPy arrays, since this machine may not have the devices that the checkpoint was written on.
        kinds = jax.tree_util.tree_map(lambda _: checkpoint.RestoreArgs(restore_type=np.ndarray), tree)
        return _checked(reader.restore(path.resolve(), restore_args=kinds), path)


def _checked(tree: Any, path: Path) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise FileError(
            f"{path}: holds a {type(tree).__name__}, not a dict of variables; save the variables themselves"
        )
    return _as_numpy(tree)


def _as_numpy(tree: Any) -> Any:
    """The tree with the arrays of any library as NumPy arrays; dicts, lists and tuples stay as they are."""
    if isinstance(tree, Mapping):
        return {key: _as_numpy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_as_numpy(value) for value in tree)
    return np.asarray(tree) if hasattr(tree, "dtype") else tree


def _package(module: str, package: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FileError(f"{path}: reading it needs {package} ({error}); pip install {package}") from error
