"""``python -m benchmarks.files``: sizes of files, memory while loading and running, and cold starts, float beside eight bits.

For each model: the files, relative to the float32 safetensors; the resident memory that loading adds in a process of its own;
and `jaxq8 run` on one input, from the start of the process to its end: compiling, and with the program from JAX's cache of
compiled programs. The least of several rounds, taking turns. "q8 static" has static ranges: where there are native regions, its
weights are packed, which counts as loading, and it runs natively.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

import jaxq8 as q8
from benchmarks import machine
from benchmarks.models import REAL
from jaxq8.analysis.arguments import path_name
from jaxq8.cli import main as jaxq8_main

MODULES = {
    "efficientnet_lite0": "examples.models.efficientnet_lite:EfficientNetLite0",
    "squeezenet": "examples.models.squeezenet:SqueezeNet",
    "minilm": "examples.models.minilm:MiniLM",
}
# What a process of its own says of itself, less what it has when a tiny model has run and all modules are imported: when the
# weights are on the device, and after two runs; each resident, and at most until then.
CHILD = """
import ctypes, json, re, sys
import jax, numpy as np
import jaxq8 as q8
from jaxq8.cli.models import attribute, load_model
from jaxq8.cli.native import packed
def memory(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
name, params, inputs = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
inputs = [inputs[n] for n in inputs.files]
w = np.ones((256, 256), np.float32)
jax.block_until_ready(jax.jit(q8.quantize(lambda w, x: jax.nn.gelu(x @ w)))(w, w))
if params:
    attribute(name)
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
before = memory("VmRSS")
runner = packed(load_model(name, params or None), inputs)[0].runner()
found = [memory("VmRSS") - before, memory("VmHWM") - before]
for _ in range(2):
    jax.block_until_ready(runner(*inputs))
print(json.dumps([*found, memory("VmRSS") - before, memory("VmHWM") - before]))
"""


def made(name: str, folder: Path) -> dict[str, Path]:
    """The files of a model in a folder; one input is in ``inputs.npz``."""
    loader, examples = REAL[name]
    _, variables = loader().load()
    inputs = examples(loader(), 1)[0]
    np.savez(folder / "inputs.npz", *inputs)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    files = {"float": folder / "float.safetensors"}
    save_file({path_name(path): np.asarray(x, np.float32) for path, x in leaves}, files["float"])
    shapes = [f"--input-shape={','.join(map(str, x.shape))}:{x.dtype}" for x in inputs]
    for label, file, more in (
        ("q8", "model.q8", []),
        ("q8 static", "static.q8", [f"--calibrate={folder / 'inputs.npz'}"]),
        ("4 bits", "four.q8", ["--bits=4"]), ("q8x", "model.q8x", ["--platforms=cpu"]),
    ):  # fmt: skip
        files[label] = folder / file
        line = [
            "quantize",
            MODULES[name],
            f"--params={files['float']}",
            *shapes,
            f"--output={files[label]}",
            *more,
        ]
        with contextlib.redirect_stdout(sys.stderr):
            status = jaxq8_main([*line, "--quiet"])
        if status:
            raise SystemExit(f"{name}: no {file}")
    return files


def ways(name: str, files: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """(model, its weights) of each way to run it; "q8 static" runs natively where there are native regions."""
    module = MODULES[name]
    weights = {label: (module, str(files[label])) for label in ("float", "q8", "q8 static")}
    return {**weights, "q8x": (str(files["q8x"]), "")}


def environment(cache: Path | None) -> dict[str, str]:
    """That of this process, with or without a cache of compiled programs."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    if cache is None:
        return own
    return {**own, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def memory(way: tuple[str, str], folder: Path, cache: Path | None) -> list[int]:
    """Bytes that loading and running add: resident and at most, of each."""
    command = [sys.executable, "-c", CHILD, *way, str(folder / "inputs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(cache))
    return list(json.loads(done.stdout.splitlines()[-1]))


def cold_start(way: tuple[str, str], folder: Path, cache: Path | None) -> tuple[float, int]:
    """(seconds, peak bytes) of a `jaxq8 run`."""
    model, params = way
    command = [
        sys.executable,
        "-m",
        "jaxq8",
        "run",
        model,
        f"--input={folder / 'inputs.npz'}",
        "--quiet",
        "--json",
    ]
    command += [
        f"--output={folder / 'results.jsonl'}",
        "--restart",
        *([f"--params={params}"] if params else []),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(cache))
    return time.perf_counter() - start, json.loads(done.stdout)["peak_memory_bytes"]


def report(name: str, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        files = made(name, folder)
        caches = {"compiled": None, "cached": folder / "cache"}
        cases = {(way, kind): (which, folder, cache)
                 for way, which in ways(name, files).items() for kind, cache in caches.items()}  # fmt: skip
        for case in cases.values():
            cold_start(*case)  # fills the caches: of compiled programs, of Python, and of the disk
        starts = [{key: cold_start(*case) for key, case in cases.items()} for _ in range(rounds)]
        rows = [
            {"way": way, "program": kind, "memory": memory(*case),
             "seconds": min(s[way, kind][0] for s in starts), "peak": min(s[way, kind][1] for s in starts)}
            for (way, kind), case in cases.items()
        ]  # fmt: skip
        sizes = {label: path.stat().st_size for label, path in files.items()}
        return {
            "model": name, "jaxq8": q8.__version__, "native": machine.native(), "bytes": sizes, "rows": rows,
        }  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """The figures of one model as a table."""
    size = found["bytes"]
    lines = [f"\n{found['model']}: float32 safetensors {size['float'] / 1e6:.2f} MB; .q8 of 8 bits "
             f"{size['q8'] / size['float']:.1%}, of 4 bits {size['4 bits'] / size['float']:.1%}; .q8x "
             f"{size['q8x'] / size['float']:.1%}; native regions of \"q8 static\": {found['native']}", "",
             "| file | program | MB | loading adds, MB (peak) | running adds, MB (peak) | cold start, s | its peak, MB |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found["rows"]:
        held, most, running, highest = (f"{n / 1e6:.0f}" for n in row["memory"])
        lines.append(
            f"| {row['way']} | {row['program']} | {size[row['way']] / 1e6:.1f} | {held} ({most}) | {running} ({highest}) | "
            f"{row['seconds']:.1f} | {row['peak'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    options.add_argument("--models", nargs="+", choices=list(MODULES), default=list(MODULES), metavar="NAME")
    options.add_argument("--rounds", type=int, default=3, help="cold starts of each (default 3)")
    options.add_argument("--json", action="store_true", help="print the figures as JSON, one model a line")
    chosen = options.parse_args()
    for name in chosen.models:
        found = report(name, chosen.rounds)
        print(json.dumps(found) if chosen.json else show(found), flush=True)


if __name__ == "__main__":
    main()
