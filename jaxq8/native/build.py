"""Compiles the extension with the C++ compiler of the machine, once for each combination of what matters, into a cache."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax.ffi
import jaxlib

from jaxq8 import _cpuinfo
from jaxq8.errors import NativeError

SOURCES = pathlib.Path(__file__).parent / "src"
# The extension is compiled for the processor it runs on, whose flags are part of the cache's key. Float arithmetic neither
# traps nor sets errno here, which lets the compiler vectorise more.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-DNDEBUG",
)
# More flags for one source: here a product and a sum stay two operations, each of which rounds.
OWN_FLAGS = {"scaled": ("-ffp-contract=off",)}
_TIMEOUT = 600  # seconds for one compiler


def compiled(onednn: pathlib.Path, anew: bool = False) -> pathlib.Path:
    """The compiled extension for a oneDNN, from the cache or made now (in any case if `anew`).

    The environment variable JAXQ8_NATIVE_FLAGS holds more flags for the compiler, such as those of sanitizers.

    Several processes may do this at once: each compiles into a folder of its own, and the last one's file stays.

    Raises:
      NativeError: If there is no compiler, no header, no folder to write to, or the compiler fails.
    """
    compiler = _compiler()
    includes = (pathlib.Path(jax.ffi.include_dir()), _headers(onednn))
    flags = [*FLAGS, *shlex.split(os.environ.get("JAXQ8_NATIVE_FLAGS", ""))]
    path = _folder() / _key(compiler, onednn, includes, flags) / "region.so"
    if anew or not path.exists():
        _make(path, compiler, onednn, includes, flags)
    return path


def _make(
    path: pathlib.Path,
    compiler: Sequence[str],
    onednn: pathlib.Path,
    includes: Sequence[pathlib.Path],
    flags: Sequence[str],
) -> None:
    """Compiles the sources and puts the result at `path` in one move."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=path.parent, prefix="making-")
    except OSError as error:
        raise NativeError(f"cannot write to the cache {path.parent}: {error.strerror}") from None
    with work as folder:
        sources = sorted(SOURCES.glob("*.cc"))
        objects = [pathlib.Path(folder, f"{source.stem}.o") for source in sources]
        # Headers of others come by -isystem: their warnings are theirs.
        where = [part for include in includes for part in ("-isystem", str(include))]
        commands = [
            [*compiler, *flags, *OWN_FLAGS.get(source.stem, ()), *where, "-c", str(source), "-o", str(target)]
            for source, target in zip(sources, objects, strict=True)
        ]
        with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(_run, commands))
        result = pathlib.Path(folder, "region.so")
        link = [
            "-shared",
            "-o",
            str(result),
            *map(str, objects),
            str(onednn),
            f"-Wl,-rpath,{onednn.parent}",
            "-ldl",
        ]
        _run([*compiler, *flags, *link, "-pthread"])
        os.replace(result, path)


def _run(command: Sequence[str]) -> None:
    # What is preloaded into this process, such as a sanitizer's runtime, is not the compiler's business.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"the C++ compiler {command[0]} does not run: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise NativeError(f"the C++ compiler {command[0]} fails: {(lines or ['no message'])[0].strip()}")


def _compiler() -> list[str]:
    """The words that call the C++ compiler: $CXX, or the first one found."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise NativeError(f"the C++ compiler CXX={named[0]} is not there")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NativeError("there is no C++ compiler (c++, g++ or clang++); install one or name it by CXX")


def _headers(onednn: pathlib.Path) -> pathlib.Path:
    """The folder with oneDNN's headers: beside the library, or in the environment, or the system's."""
    for folder in (
        onednn.parent.parent / "include",
        pathlib.Path(sys.prefix, "include"),
        pathlib.Path("/usr/include"),
    ):
        if (folder / "oneapi" / "dnnl" / "dnnl.hpp").exists():
            return folder
    raise NativeError(f"oneDNN's headers are not beside {onednn}; install onednn-devel-cpu-gomp")


def _folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base, "jaxq8", "native")


def _key(
    compiler: Sequence[str], onednn: pathlib.Path, includes: Sequence[pathlib.Path], flags: Sequence[str]
) -> str:
    """A name for everything that the compiled file depends on."""
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False
    )
    parts = [
        *compiler,
        version.stdout,
        jaxlib.__version__,
        str(onednn),
        *map(str, includes),
        *flags,
        repr(OWN_FLAGS),
        " ".join(sorted(_cpuinfo.flags())),
    ]
    digest = hashlib.sha256("\0".join(parts).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(b"\0" + source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:32]
