"""``jaxq8 dequantize``: writes the weights of a quantized file as float32, for other programs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxq8.cli.files import contents, real
from jaxq8.cli.problems import Failure, Misuse
from jaxq8.cli.text import print_json
from jaxq8.display.numbers import size
from jaxq8.files.float_models import nested
from jaxq8.replacement import replacement

Arrays = dict[str, np.ndarray[Any, Any]]


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "dequantize", help="write the weights of a file as float32",
        description="Writes the numbers that a quantized file stands for as float32, under names like params/head/kernel.",
        epilog="examples:\n"
        "  jaxq8 dequantize net.q8 --output net.safetensors\n",
    )  # fmt: skip
    command.add_argument("file", metavar="FILE", help=".q8 or .q8x")
    command.add_argument("--output", required=True, metavar="OUT",
                         help="file to write: .safetensors, .npz or .msgpack; replaced in one step")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    path = Path(options.output)
    writers = {".safetensors": _safetensors, ".npz": _npz, ".msgpack": _msgpack}
    if path.suffix not in writers:
        raise Misuse(f"--output {path}: end it in {', '.join(writers)}")
    found = contents(options.file)
    if found.kind == "float":
        raise Failure(f"{found.path}: is a float file already; give a .q8 or .q8x")
    arrays = {tensor.name: real(tensor) for tensor in found.tensors}
    if len(arrays) < len(found.tensors):
        raise Failure(f"{found.path}: has two tensors whose paths read the same; load it with q8.load")
    _write(path, lambda temporary: writers[path.suffix](temporary, arrays))
    _print(options, path, len(arrays))
    return 0


def _write(path: Path, write: Callable[[str], None]) -> None:
    try:
        with replacement(path) as temporary:
            write(temporary)
    except (OSError, SafetensorError) as error:
        raise Failure(
            f"{path}: cannot be written ({error}); check that the folder exists, is writable, and has space"
        ) from error


def _safetensors(path: str, arrays: Arrays) -> None:
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)


def _npz(path: str, arrays: Arrays) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _msgpack(path: str, arrays: Arrays) -> None:
    from flax.serialization import msgpack_serialize  # imported here, since importing Flax takes long

    with open(path, "wb") as file:
        file.write(msgpack_serialize(nested(arrays, path)))


def _print(options: argparse.Namespace, path: Path, count: int) -> None:
    written = os.path.getsize(path)
    if options.json:
        print_json({"output": str(path), "tensors": count, "file_bytes": written})
    else:
        print(f"{path}: {count} tensors, {size(written)}")
