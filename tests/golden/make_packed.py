"""Writes a file whose weight was packed: ``python -m tests.golden.make_packed``. Its version is 1: the note may be ignored."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

import jaxq8 as q8

FOLDER = Path(__file__).parent
# Of a convolution with five input channels in blocks of four and six output channels in blocks of eight, both padded.
LAYOUT = (4, 6, 5, 3, 2, 8, 8, 3, 2, 384, 192, 64, 32, 3, 2, 8, 2, 1, 0, 1, 384)


def main() -> None:
    kernel = jax.random.normal(jax.random.key(3), (3, 2, 5, 6))
    q = q8.QTensor.from_float(kernel, q8.Spec(symmetric=True, granularity="channel"))
    packed = q8.PackedTensor.pack(q, layout=LAYOUT, problem=(7, 11), isa="golden")
    q8.save(FOLDER / "packed.q8", {"w": packed})
    content = {"packed": np.asarray(packed.packed).tolist(), "codes": np.asarray(q.values).tolist()}
    (FOLDER / "packed.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
