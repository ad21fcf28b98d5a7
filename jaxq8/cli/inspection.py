"""``jaxq8 inspect``: shows what a file holds."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from jaxq8.cli.files import Contents, Tensor, contents
from jaxq8.cli.problems import Failure
from jaxq8.cli.text import print_json
from jaxq8.display.numbers import size
from jaxq8.display.text_table import table
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.packed_tensor import PackedTensor

BINS, BAR = 16, 50  # of a histogram: the number of its bins, and the characters of its longest bar


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "inspect", help="show what a file holds: tensors, specs, ranges, sizes",
        description="Shows the tensors of a .q8, .q8x or float file, how each is represented, and the file's settings.",
        epilog="examples:\n"
        "  jaxq8 inspect net.q8 --verify\n"
        "  jaxq8 inspect net.q8 --tensor params/head/kernel\n"
        "  jaxq8 inspect net.q8 --ranges > ranges.json\n",
    )  # fmt: skip
    command.add_argument(
        "file", metavar="FILE", help=".q8, .q8x, .safetensors, .npz, .msgpack, or an orbax folder"
    )
    command.add_argument("--tensor", metavar="NAME", help="figures and histogram of one tensor")
    command.add_argument(
        "--ranges", action="store_true", help="print the static ranges as JSON, for `quantize --ranges`"
    )
    command.add_argument(
        "--verify", action="store_true", help="read every tensor and check it against its checksum"
    )
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    found = contents(options.file)
    if options.ranges:
        if found.ranges is None:
            raise Failure(
                f"{found.path}: holds no static ranges; make them with `jaxq8 quantize --calibrate`"
            )
        print(found.ranges.to_json(), end="")
        return 0
    if options.verify:
        for tensor in found.tensors:
            tensor.read()
    if options.tensor:
        _show_tensor(figures(found.tensor(options.tensor)), options.json)
    elif options.json:
        print_json(_document(found))
    else:
        _show(found, options.verify)
    return 0


def _document(found: Contents) -> dict[str, Any]:
    """Everything that the text shows, for --json."""
    document = found.document
    return {
        "path": str(found.path), "kind": found.kind, "file_bytes": _file_size(found),
        "float_bytes": _float_bytes(found),
        "library_version": document.get("library_version"), "format_version": document.get("format_version"),
        "platforms": document.get("platforms"), "symbolic_batch": document.get("symbolic_batch"),
        "config": None if found.config is None else document.get("config"),
        "ranges": None if found.ranges is None else {name: list(r) for name, r in found.ranges.items()},
        "tensors": [
            {"name": t.name, "shape": t.shape, "dtype": t.dtype, "spec": t.spec, "bytes": t.nbytes} for t in found.tensors
        ],
    }  # fmt: skip


def _show(found: Contents, verified: bool) -> None:
    whole, before = _file_size(found), _float_bytes(found)
    share = f", {whole / before:.1%} of {size(before)} in float32" if found.kind != "float" and before else ""
    print(f"{found.path}: {_title(found)}, {size(whole)}{share}")
    if found.config is not None:
        c = found.config
        print(f"config   mode {c.mode}, weights of {c.weights.bits} bits, rounding {c.rounding}, kernels {c.kernels}, "
              f"{len(c.overrides)} override{'s' if len(c.overrides) != 1 else ''}")  # fmt: skip
    for pattern, changes in found.config.overrides if found.config else ():
        print(f"         {pattern}: {', '.join(f'{name} {value}' for name, value in changes)}")
    if found.kind != "float":
        count = len(found.ranges or ())
        print(f"ranges   {f'static for {count} sites' if count else 'none: found in each run'}")
    if verified:
        print(f"verified {len(found.tensors)} tensors")
    rows = [
        (t.name, "x".join(map(str, t.shape)) or "scalar", t.dtype, t.spec, size(t.nbytes))
        for t in found.tensors
    ]
    print("\n" + "\n".join(table(("tensor", "shape", "dtype", "codes", "size"), rows)))
    if found.ranges:
        ranges = [(name, f"{r.minimum:.6g}", f"{r.maximum:.6g}") for name, r in found.ranges.items()]
        print("\n" + "\n".join(table(("site", "minimum", "maximum"), ranges)))


def _title(found: Contents) -> str:
    by = f", written by jaxq8 {found.document.get('library_version')}"
    if found.kind == "float":
        return f"{len(found.tensors)} tensors"
    if found.kind == "variables":
        return f"weights, {len(found.tensors)} tensors{by}"
    batch = "any batch" if found.document.get("symbolic_batch") else "a fixed batch"
    platforms = found.document.get("platforms")
    names = ", ".join(map(str, platforms)) if isinstance(platforms, list) else "unknown platforms"
    return f"program for {names}, {batch}, {len(found.tensors)} tensors{by}"


def _file_size(found: Contents) -> int:
    files = [p for p in found.path.rglob("*") if p.is_file()] if found.path.is_dir() else [found.path]
    return sum(p.stat().st_size for p in files)


def _float_bytes(found: Contents) -> int:
    """The number of bytes that the same numbers take in float32."""
    return sum(int(np.prod(t.shape, dtype=np.int64)) * 4 for t in found.tensors)


def figures(tensor: Tensor) -> dict[str, Any]:
    """Extremes, moments and histogram of a tensor; for a quantized tensor those of its codes (or indices), and its scales."""
    value = tensor.read()
    value = value.unpack() if isinstance(value, PackedTensor) else value
    result: dict[str, Any] = {
        "name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype, "spec": tensor.spec, "bytes": tensor.nbytes,
    }  # fmt: skip
    quantized = is_encoded(value)
    numbers = np.asarray(value.tree_flatten()[0][0] if quantized else value)
    if quantized:
        scale, real = np.asarray(value.scale), np.asarray(value.dequantize())
        result |= {"scale_minimum": float(scale.min()), "scale_maximum": float(scale.max()),
                   "minimum": float(real.min()), "maximum": float(real.max())}  # fmt: skip
    data = numbers.astype(np.float64).ravel()
    finite = data[np.isfinite(data)]
    result["not_finite"] = int(data.size - finite.size)
    if finite.size:
        counts, edges = _histogram(finite, quantized)
        result |= {
            "data_minimum": float(finite.min()), "data_maximum": float(finite.max()), "mean": float(finite.mean()),
            "std": float(finite.std()), "zeros": float(np.mean(finite == 0)), "histogram": counts.tolist(),
            "edges": edges.tolist(),
        }  # fmt: skip
    return result


def _histogram(data: np.ndarray, integers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of equal bins; for integers every bin has the same number of codes."""
    if not integers:
        return np.histogram(data, BINS)
    low, high = int(data.min()), int(data.max())
    width = -(-(high - low + 1) // BINS)
    return np.histogram(data, np.arange(low, high + width + 1, width) - 0.5)


def _show_tensor(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    what = "codes" if found["spec"] else "values"
    print(
        f"{found['name']}: {'x'.join(map(str, found['shape'])) or 'scalar'} {found['dtype']}, {size(found['bytes'])}"
    )
    if found["spec"]:
        print(f"{found['spec']}, scale {found['scale_minimum']:.4g} .. {found['scale_maximum']:.4g}, "
              f"stands for {found['minimum']:.4g} .. {found['maximum']:.4g}")  # fmt: skip
    if found["not_finite"]:
        print(f"{found['not_finite']} values are NaN or infinite")
    if "histogram" not in found:
        return
    print(f"{what}: {found['data_minimum']:.4g} .. {found['data_maximum']:.4g}, mean {found['mean']:.4g}, "
          f"standard deviation {found['std']:.4g}, {found['zeros']:.2%} zeros\n")  # fmt: skip
    most = max(found["histogram"])
    for count, low, high in zip(found["histogram"], found["edges"], found["edges"][1:], strict=False):
        print(f"{low:>11.4g} .. {high:<11.4g} {count:>9}  {'#' * round(BAR * count / most)}")
