"""The container of jaxq8's files: safetensors, with one JSON document in its metadata, and checksums.

`write` replaces a file in one step: whoever reads sees the old file or the new one, whatever happens in between. `Container`
opens one, refuses what is not whole, and reads tensors one at a time, each into memory that JAX takes as it is. Layout:
docs/FORMAT.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxq8.errors import FileError

FORMAT_VERSION = 2
DOCUMENT_KEY, CHECKSUM_KEY = "jaxq8", "jaxq8.crc32"
# A document of a model with 100,000 tensors has some 20 MB; JSON of more is not worth the memory of parsing it.
MAXIMUM_DOCUMENT = 64 << 20
# Equal arrays are stored once; a file stands for at most so many times its length by that.
MAXIMUM_SHARING = 7
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip
STORABLE = {np.dtype(dtype).name: np.dtype(dtype) for dtype in DTYPES.values()}


def checksum(data: Any) -> str:
    """CRC-32 (zlib's) as eight hexadecimal digits: against accidents, not against forgery."""
    return f"{zlib.crc32(data):08x}"


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray[Any, Any]], document: Any) -> None:
    """Writes a file in one step: temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
      path: Where; an existing file is replaced.
      tensors: Arrays of the dtypes in `DTYPES`, by name.
      document: What JSON can hold; the checksums of the tensors are added to it.

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


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[str]:
    """A temporary file that takes the place of `path` when the block ends well, and is deleted when it does not."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield temporary
        _sync(temporary)
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync(str(path.parent))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's mask of permissions; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: str) -> None:
    """Waits until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Container:
    """An open file: its document, and its tensors one at a time.

    Args:
      path: A file written by `write`.
      kind: The kind of document that the caller can use ("variables" or "program").

    Raises:
      FileError: It is missing, not whole, changed, of another kind, or of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str):
        self.path = Path(path)
        open_safetensors(self.path)  # checks header, offsets and length
        self._file = self.path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()  # leaves may be read from several threads; the file has one position
        self._start, self._metadata, self._entries = _header(self._file)
        self.names = tuple(self._entries)
        self.size = os.fstat(self._file.fileno()).st_size
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
        """Notes that the document names a tensor; refuses one that names the same tensors again and again."""
        self._shared += nbytes if name in self._claimed else 0
        self._claimed.add(name)
        if self._shared > MAXIMUM_SHARING * self.size:
            raise self.error(
                "its document stands for many times the data in it", "it was not written by jaxq8"
            )

    def tensor(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Reads one tensor and checks it against what the document says of it."""
        if name not in self._sums:
            raise self.error(f"tensor {name!r} is missing", "write the file again")
        entry = self._entries.get(name)
        stored = DTYPES.get(str(entry["dtype"])) if entry else None
        if (
            entry is None
            or stored is None
            or np.dtype(stored) != np.dtype(dtype)
            or tuple(entry["shape"]) != shape
        ):
            found = f"{entry['dtype']}{entry['shape']}" if entry else "nowhere"
            raise self.error(
                f"tensor {name!r} is {found}, its document says {np.dtype(dtype).name}{list(shape)}",
                "the header was changed; get the file again",
            )
        data = self._read(*entry["data_offsets"])
        if data.size != math.prod(shape) * np.dtype(dtype).itemsize or checksum(data) != self._sums[name]:
            raise self.error(f"the data of tensor {name!r} does not match its checksum", "get the file again")
        return data.view(dtype).reshape(shape)

    def _read(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Bytes of the data, as many as there are."""
        data = aligned(max(0, min(end, self.size) - begin))
        with self._lock:
            self._file.seek(self._start + begin)
            count = 0
            while part := self._file.readinto(data.data[count:]):
                count += part
        return data[:count]

    def _document(self) -> dict[str, Any]:
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
    """Where the data begins, the metadata, and what the header says of each tensor."""
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length))
    return 8 + length, entries.pop("__metadata__", None) or {}, entries


def aligned(size: int) -> np.ndarray[Any, Any]:
    """Bytes at an address that is a multiple of 64: XLA:CPU takes such memory as it is, without a copy."""
    data = np.empty(size + 64, np.uint8)
    start = -data.ctypes.data % 64
    return data[start : start + size]


def open_safetensors(path: Path) -> Any:
    """Opens a safetensors file; the library checks header, offsets and length before any tensor is read."""
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
