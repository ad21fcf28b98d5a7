"""Writes the file of version 2, the first with code books: ``python -m tests.golden.make_codebook``."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

import jaxq8 as q8

FOLDER = Path(__file__).parent


def main() -> None:
    weight = jax.random.normal(jax.random.key(2), (12, 5))
    book = q8.CodeBook.from_float(weight, q8.Spec(bits=3, granularity="channel", levels="kmeans"))
    q8.save(FOLDER / "version2.q8", {"w": book})
    content = {"indices": np.asarray(book.indices).tolist(), "real": np.asarray(book.dequantize()).tolist()}
    (FOLDER / "version2.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
