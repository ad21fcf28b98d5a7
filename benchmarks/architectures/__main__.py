"""`python -m benchmarks.architectures [NAME ...]`: measures models and writes their rows of docs/MODELS.md."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import gc
import warnings
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import jax

from benchmarks.architectures import hugging_face, others
from benchmarks.architectures.measure import Row, measure

TARGET = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"
MODELS = {
    **{name: ("transformers", build) for name, build in hugging_face.MODELS.items()},
    **{name: (name.partition("(")[2].rstrip(")"), build) for name, build in others.MODELS.items()},
}
HEAD = """# Models that nobody here wrote

Written by `python -m benchmarks.architectures` (packages: benchmarks/architectures/requirements.txt), with {versions}.
Architectures come from the packages as they are, in small configurations or at 96 x 96 pixels; weights are random (batch norm
has the statistics of eight images under them), so SQNR (dynamic ranges, default `Config()`, against float32) says what the
arithmetic loses, not what a trained model would. Deep nets of depthwise convolutions with such weights amplify every
disturbance: noise 40 dB below the image leaves 5.7 dB at the output of MobileNet (keras) in float32, and MobileNetV3Small falls
from 31.7 to -18.4 dB with statistics of eight images.
"attention" is the share with `Config(attention=True)`. "compile" is lowering and compiling in eight bits over the same in
float, each once. What stays float and why is the Plan's own reason (`Reason`): ATTENTION is a product of two activations,
NOT_FASTER a shape where float is faster. T5 and LongT5 of transformers are left out: their code does not run with this JAX.

{summary}

| model | package | million multiply-adds | in eight bits | attention | SQNR dB | float compile s | compile | stays float |
|---|---|---:|---:|---:|---:|---:|---:|---|
"""


def line(row: Row) -> str:
    """One row of the table."""
    if row.error:
        return f"| {row.name} | {row.package} | | | | | | | failed: {row.error} |"
    cells = [f"{row.macs / 1e6:.1f}", f"{row.share:.1%}", f"{row.share_attention:.1%}", f"{row.sqnr_db:.1f}",
             f"{row.compile_float:.1f}", f"{row.compile_ratio:.1f}x", row.why]  # fmt: skip
    return f"| {row.name} | {row.package} | " + " | ".join(cells) + " |"


def summary(lines: Collection[str]) -> str:
    """Counts: those that run, those with 95% of the work in eight bits, those that failed."""
    good = [cells for cells in (text.split("|") for text in lines) if cells[4].strip()]
    most, more = (sum(float(cells[i].strip(" %")) >= 95 for cells in good) for i in (4, 5))
    return (
        f"{len(good)} of {len(lines)} models run; {most} have at least 95% of their multiply-adds in eight bits, {more} with "
        "attention."
    )


def written() -> dict[str, str]:
    """The rows of the table as it is, by model."""
    rows = (text for text in TARGET.read_text(encoding="utf-8").splitlines() if text.startswith("| "))
    found = {text.split("|")[1].strip(): text for text in rows}
    return {name: found[name] for name in MODELS if name in found}


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    lines = written() if names else {}
    packages = ("jax", "flax", "transformers", "keras", "dm-haiku", "equinox", "flaxmodels")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    for name in names or MODELS:
        package, build = MODELS[name]
        lines[name] = line(measure(name, package, build))
        print(lines[name], flush=True)
        jax.clear_caches()
        gc.collect()
        # After every model, so that an interrupted run keeps what it has.
        ordered = [lines[each] for each in MODELS if each in lines]
        head = HEAD.format(versions=versions, summary=summary(ordered))
        TARGET.write_text(head + "\n".join(ordered) + "\n", encoding="utf-8")
    print(summary(lines.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
