"""`python -m benchmarks.architectures [NAME ...]`: measures the models; without names writes docs/ARCHITECTURES.md."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import gc
import warnings
from importlib.metadata import version
from pathlib import Path

import jax

from benchmarks.architectures import hugging_face, others
from benchmarks.architectures.measure import Row, measure

TARGET = Path(__file__).resolve().parents[2] / "docs" / "ARCHITECTURES.md"
MODELS = {
    **{name: ("transformers", build) for name, build in hugging_face.MODELS.items()},
    **{name: (name.partition("(")[2].rstrip(")"), build) for name, build in others.MODELS.items()},
}
HEAD = """# Models that nobody here wrote

Written by `python -m benchmarks.architectures` (packages: benchmarks/architectures/requirements.txt), with {versions}.
Architectures come from the packages as they are, in small configurations or at 96 x 96 pixels; weights are random, so SQNR
(dynamic ranges, default `Config()`, against float32) says what the arithmetic loses, not what a trained model would.
"attention" is the share with `Config(attention=True)`. "compile" is lowering and compiling in eight bits over the same in
float, each once. What stays float and why is the Plan's own reason (`Reason`): ATTENTION is a product of two activations,
NOT_FASTER a shape where float is faster.

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


def summary(rows: list[Row]) -> str:
    """Counts: those that run, those with 95% of the work in eight bits, those that failed."""
    good = [row for row in rows if not row.error]
    most = sum(row.share >= 0.95 for row in good)
    more = sum(row.share_attention >= 0.95 for row in good)
    return (
        f"{len(good)} of {len(rows)} models run; {most} have at least 95% of their multiply-adds in eight bits, {more} with "
        "attention."
    )


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    rows = []
    for name in names or MODELS:
        package, build = MODELS[name]
        rows.append(measure(name, package, build))
        print(line(rows[-1]), flush=True)
        jax.clear_caches()
        gc.collect()
        if not names:  # after every model, so that an interrupted run keeps what it has
            packages = ("jax", "flax", "transformers", "keras", "dm-haiku", "equinox", "flaxmodels")
            versions = ", ".join(f"{package} {version(package)}" for package in packages)
            text = HEAD.format(versions=versions, summary=summary(rows)) + "\n".join(map(line, rows)) + "\n"
            TARGET.write_text(text, encoding="utf-8")
    print(summary(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
