"""Finds oneDNN, loads the extension, and says whether there are native regions here and why not."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import pathlib
import platform
import sys

from jaxq8.errors import NativeError
from jaxq8.native import build

# Bits of dnnl_cpu_isa_t that say AVX-VNNI and AVX-512 VNNI; the instruction sets with AMX have the second one, too. Below them
# oneDNN's products of uint8 and int8 saturate between their steps.
_VNNI = 0x08 | 0x40
_SONAME = "libdnnl.so.3"


@dataclasses.dataclass(frozen=True)
class Status:
    """Whether native regions run here: what `native_status` returns.

    Attributes:
      available: Whether they do.
      reason: Why not; empty if they do.
      onednn: oneDNN's version.
      library: Where oneDNN is.
      isa: The instruction set that oneDNN uses.
      threads: How many threads a region has.

    Example:
      >>> q8.NativeStatus(False, reason="oneDNN is not installed; pip install jaxq8[native]").available
      False
    """

    available: bool
    reason: str = ""
    onednn: str = ""
    library: str = ""
    isa: str = ""
    threads: int = 0


def status() -> Status:
    """Whether native regions run here, with which library, instruction set and threads, or why not.

    The first call in a process looks for oneDNN, compiles the extension if it is not in the cache, and loads it. What it found
    stays as it is for the process.

    Returns:
      A `NativeStatus`.

    Example:
      >>> status = q8.native_status()
      >>> status.available == (status.reason == "") == (status.threads > 0)
      True
    """
    return _loaded()[0]


@functools.cache
def is_installed() -> bool:
    """Whether there is a oneDNN that may be used here; unlike `status` this compiles nothing."""
    try:
        _find()
    except NativeError:
        return False
    return True


def loaded() -> ctypes.CDLL:
    """The loaded extension.

    Raises:
      NativeError: If there are no native regions here; the message says why.
    """
    found, library = _loaded()
    if library is None:
        raise NativeError(f"no native regions: {found.reason}")
    return library


@functools.cache
def _loaded() -> tuple[Status, ctypes.CDLL | None]:
    try:
        onednn = _find()
        library = _load(onednn)
        buffer = ctypes.create_string_buffer(4096)
        if library.jaxq8_native_describe(buffer, len(buffer)):
            raise NativeError(error_of(library))
        told = json.loads(buffer.value)
    except NativeError as error:
        return Status(False, str(error)), None
    return Status(True, "", told["onednn"], str(onednn), told["isa"], told["threads"]), library


def error_of(library: ctypes.CDLL) -> str:
    """What the last function that failed in this thread says."""
    return library.jaxq8_native_error().decode(errors="replace")


def _find() -> pathlib.Path:
    """The oneDNN that may be used here, checked."""
    if os.environ.get("JAXQ8_NATIVE", "").lower() in ("off", "0"):
        raise NativeError("JAXQ8_NATIVE=off")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NativeError(f"they are for Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    named = os.environ.get("JAXQ8_ONEDNN")
    installed = pathlib.Path(sys.prefix, "lib", _SONAME)
    name = named or (str(installed) if installed.exists() else _SONAME)
    try:
        onednn = ctypes.CDLL(name)
    except OSError as error:
        if named is None and name == _SONAME:
            raise NativeError("oneDNN is not installed; pip install jaxq8[native]") from None
        raise NativeError(f"oneDNN {name} cannot be loaded: {error}") from None
    for function in ("dnnl_version", "dnnl_get_effective_cpu_isa"):
        if not hasattr(onednn, function):
            raise NativeError(f"{name} is not oneDNN: it has no {function}")
    onednn.dnnl_version.restype = ctypes.POINTER(ctypes.c_int)
    major, minor = onednn.dnnl_version()[:2]
    if major != 3:
        raise NativeError(f"oneDNN {name} has version {major}.{minor}, wanted is 3")
    if not onednn.dnnl_get_effective_cpu_isa() & _VNNI:
        raise NativeError("oneDNN finds no VNNI instructions here, and without them its sums saturate")
    return pathlib.Path(name) if os.sep in name else _mapped()


def _mapped() -> pathlib.Path:
    """Where the oneDNN lies that the system's loader has found."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/maps").read_text(errors="replace").splitlines():
            path = line.partition("/")
            if f"/{_SONAME}" in line:
                return pathlib.Path("/" + path[2])
    raise NativeError("the system's oneDNN cannot be found in /proc/self/maps; name it by JAXQ8_ONEDNN")


def _load(onednn: pathlib.Path) -> ctypes.CDLL:
    """The extension, compiled if need be and once more if the cached file is broken."""
    path = build.compiled(onednn)
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        try:
            library = ctypes.CDLL(str(build.compiled(onednn, anew=True)))
        except OSError as error:
            raise NativeError(f"the compiled extension cannot be loaded: {error}") from None
    words = ctypes.POINTER(ctypes.c_int64)
    library.jaxq8_native_error.restype = ctypes.c_char_p
    library.jaxq8_native_describe.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    library.jaxq8_native_layout.argtypes = [words, ctypes.c_int64, words, ctypes.c_int64]
    library.jaxq8_native_implementations.argtypes = [words, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64]
    library.jaxq8_native_type_id.restype = ctypes.c_void_p
    library.jaxq8_native_type_info.restype = ctypes.c_void_p
    return library
