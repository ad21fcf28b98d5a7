"""Peak memory of one contender, in a process of its own (Linux)."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.models import MODELS, Model

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_child(model: str, batch: int, contender: str) -> int | None:
    """Bytes above a process with a tiny model that running the model takes at most; None where that cannot be measured."""
    if not CLEAR.exists():
        return None
    command = [sys.executable, "-m", "benchmarks", "--memory-child", "--models", model]
    command += ["--batch", str(batch), "--contenders", contender]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return int(json.loads(lines[-1])["peak_bytes"]) if done.returncode == 0 and lines else None


def measure(build: Callable[[], Model], contender: Contender) -> int:
    """The highest resident memory while running, less what was resident before this model was built.

    A small model goes first, so that libraries which load on first use do not count.
    """
    contender.prepare(MODELS["tiny_cnn"](1)).run()
    gc.collect()
    before = _resident("VmRSS")
    prepared = contender.prepare(build())  # the float model is dropped here, unless the contender keeps it
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # resets the high-water mark
    for _ in range(3):
        prepared.run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])
