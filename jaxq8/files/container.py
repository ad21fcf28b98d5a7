"""The container format of jaxq8's files: a safetensors file with a JSON document in its metadata, and checksums.

`write` replaces a file in one step, so that a reader sees either the old file or the new one, even if writing is interrupted.
`Container` opens a file, refuses one that is incomplete or changed, and reads tensors one at a time into memory that JAX uses
without a copy. docs/FORMAT.md describes the layout.
"""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxq8.errors import FileError
from jaxq8.replacement import replacement

FORMAT_VERSION = 2
DOCUMENT_KEY, CHECKSUM_KEY = "jaxq8", "jaxq8.crc32"
# The document of a model with 100,000 tensors has about 20 million characters. A document of more than this many is refused,
# since parsing it would take too much memory.
MAXIMUM_DOCUMENT = 64 << 20
# Equal arrays are stored once. The data that is saved by this may be at most this many times as large as what is stored.
MAXIMUM_SHARING = 7
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip
STORABLE = {np.dtype(dtype).name: np.dtype(dtype) for dtype in DTYPES.values()}


def checksum(data: Any) -> str:
    """zlib's CRC-32 as eight hexadecimal digits; it protects against accidents, not against forgery."""
    return f"{zlib.crc32(data):08x}"


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray[Any, Any]], document: Any) -> None:
    """Writes a file in one step, as `replacement` does.

    Args:
      path: The file to write; an existing file is replaced.
      tensors: Arrays of the dtypes in `DTYPES`, by name.
      document: A dict of what JSON can hold; the checksums of the tensors are added to it.

    Raises:
      FileError: The folder does not exist, is not writable, or the disk is full.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in tensors.items()}
    sums = {name: checksum(a.reshape(-1).view(np.uint8)) for name, a in arrays.items()}
    text = json.dumps({**document, "checksums": sums}, separators=(",", ":"))
    metadata = {DOCUMENT_KEY: text, CHECKSUM_KEY: checksum(text.encode())}
    try:
        with replacement(path) as temporary:
            save_file(arrays, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path}: cannot be written ({error}); check that the folder exists, is writable, and has space"
        ) from error


class Container:
    """An open file, whose document is read at once and whose tensors are read one at a time.

    Args:
      path: A file written by `write`.
      kind: The kind of document that the caller can use ("variables" or "program").

    Attributes:
      path: The file.
      names: The names of its tensors.
      size: Its length in bytes.
      document: Its document, whose checksum and version were checked.

    Raises:
      FileError: The file is missing, incomplete, changed, of another kind, or of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str):
        self.path = Path(path)
        open_safetensors(self.path)  # only for its checks of header, offsets and length
        self._file = self.path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()  # leaves may be read from several threads; the file has one position
        self._start, self._metadata, self._entries = _header(self._file)
        self.names = tuple(self._entries)
        self.size = os.fstat(self._file.fileno()).st_size
        # The tensors that the document has claimed, and how many bytes it has claimed more than once.
        self._claimed, self._shared = set[str](), 0
        self.document = self._document()
        self._check_version()
        if self.document.get("kind") != kind:
            raise FileError(_wrong_kind(self.path, self.document.get("kind"), kind))
        sums = self.document.get("checksums")
        if not isinstance(sums, dict) or set(sums) != set(self.names):
            raise self.error("its tensors are not those that its document lists", "write it again")
        self._sums = sums

    def error(self, wrong: str, remedy: str) -> FileError:
        """A `FileError` that names this file."""
        return FileError(f"{self.path}: {wrong}; {remedy}")

    def claim(self, name: str, nbytes: int) -> None:
        """Notes that the document uses a tensor, and refuses documents that use the same tensors again and again.

        Otherwise a small file could stand for more data than fits into memory (see `MAXIMUM_SHARING`).
        """
        self._shared += nbytes if name in self._claimed else 0
        self._claimed.add(name)
        if self._shared > MAXIMUM_SHARING * self.size:
            raise self.error(
                "its document stands for many times the data in it", "it was not written by jaxq8"
            )

    def tensor(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Reads one tensor of the dtype and shape that the document gives.

        Raises:
          FileError: The file has no such tensor, or its data does not match its checksum.
        """
        if name not in self._sums:
            raise self.error(f"tensor {name!r} is missing", "write the file again")
        entry = self._entries[name]  # there is one, since the names of `_sums` are those of `_entries`
        stored = DTYPES.get(str(entry["dtype"]))
        if stored is None or np.dtype(stored) != np.dtype(dtype) or tuple(entry["shape"]) != shape:
            raise self.error(
                f"tensor {name!r} is {entry['dtype']}{entry['shape']}, its document says "
                f"{np.dtype(dtype).name}{list(shape)}", "the header was changed; get the file again",
            )  # fmt: skip
        data = self._read(*entry["data_offsets"])
        if data.size != math.prod(shape) * np.dtype(dtype).itemsize or checksum(data) != self._sums[name]:
            raise self.error(f"the data of tensor {name!r} does not match its checksum", "get the file again")
        return data.view(dtype).reshape(shape)

    def _read(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """The bytes from `begin` to `end` of the data, or as many of them as the file has."""
        data = aligned(max(0, min(end, self.size) - begin))
        with self._lock:
            self._file.seek(self._start + begin)
            count = 0
            while part := self._file.readinto(data.data[count:]):
                count += part
        return data[:count]

    def _document(self) -> dict[str, Any]:
        """The document, after its length and checksum were checked."""
        text = self._metadata.get(DOCUMENT_KEY)
        if text is None:
            raise self.error(
                "a safetensors file, but not written by jaxq8", "read float models with q8.load_float"
            )
        if len(text) > MAXIMUM_DOCUMENT:
            raise self.error(
                f"its document has {len(text)} characters", f"at most {MAXIMUM_DOCUMENT} are read"
            )
        if checksum(text.encode()) != self._metadata.get(CHECKSUM_KEY):
            raise self.error("its document does not match its checksum", "get the file again")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(f"its document is not valid JSON ({error})", "get the file again") from error
        if not isinstance(document, dict):
            raise self.error("its document is not a JSON object", "get the file again")
        return document

    def _check_version(self) -> None:
        version = self.document.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise self.error(f"format version {version!r} is not a positive integer", "get the file again")
        if version > FORMAT_VERSION:
            writer = self.document.get("library_version")
            raise self.error(
                f"format version {version}, written by jaxq8 {writer}; this one reads up to {FORMAT_VERSION}",
                "upgrade jaxq8",
            )


def _header(file: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The position at which the data begins, the metadata, and what the header says of each tensor."""
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length))
    return 8 + length, entries.pop("__metadata__", None) or {}, entries


def aligned(size: int) -> np.ndarray[Any, Any]:
    """Uninitialized bytes at an address that is a multiple of 64, which XLA:CPU uses without a copy."""
    data = np.empty(size + 64, np.uint8)
    start = -data.ctypes.data % 64
    return data[start : start + size]


def open_safetensors(path: Path) -> Any:
    """Opens a safetensors file; the safetensors library checks header, offsets and length before any tensor is read.

    Raises:
      FileError: There is no such file, or it is incomplete or of another format.
    """
    if not path.is_file():
        raise FileError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} file; check the path")
    try:
        return safe_open(str(path), framework="np").__enter__()
    except (SafetensorError, OSError, ValueError, UnicodeError) as error:
        raise FileError(
            f"{path}: not a whole safetensors file ({error}); it is cut off, changed, or of another format: get it again"
        ) from error


def _wrong_kind(path: Path, found: object, wanted: str) -> str:
    readers = {"variables": "q8.load", "program": "q8.load_exported"}
    if isinstance(found, str) and found in readers:
        return f"{path}: holds a {found!r} document, not {wanted!r}; read it with {readers[found]}"
    return f"{path}: holds an unknown kind of document, {found!r}; it needs a newer jaxq8, or was changed"
