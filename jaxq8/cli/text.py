"""Prints notes and JSON documents."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np


def note(message: str) -> None:
    """Prints a line for people on stderr, so that stdout has only what a script reads."""
    print(message, file=sys.stderr, flush=True)


def show_progress(quiet: bool) -> bool:
    """Whether to draw progress bars: on a terminal, unless --quiet is given."""
    return not quiet and sys.stderr.isatty()


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout; NaN and infinity, which JSON does not have, become null."""
    print(json.dumps(plain(document), indent=1, allow_nan=False))


def plain(x: Any) -> Any:
    """Arrays, tuples and NumPy numbers in the form that JSON can hold."""
    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if hasattr(x, "tolist"):
        return plain(np.asarray(x).tolist())
    return None if isinstance(x, float) and not math.isfinite(x) else x
