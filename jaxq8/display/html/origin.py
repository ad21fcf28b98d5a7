"""Says with what and on which machine a page was written."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from jaxq8._version import __version__


def origin() -> str:
    """One sentence: the versions of jaxq8 and JAX, and the processor."""
    cores = os.cpu_count() or 1
    plural = "" if cores == 1 else "s"
    return f"Written by jaxq8 {__version__} with JAX {metadata.version('jax')} on {_processor()}, {cores} core{plural}."


def _processor() -> str:
    """The processor's name: on Linux from the system's list, elsewhere what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "an unknown processor"
