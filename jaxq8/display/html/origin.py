"""Says with what and on which machine a page was written."""

from __future__ import annotations

import os
from importlib import metadata

from jaxq8 import _cpuinfo
from jaxq8._version import __version__


def origin() -> str:
    """One sentence: the versions of jaxq8 and JAX, and the processor."""
    cores = os.cpu_count() or 1
    plural = "" if cores == 1 else "s"
    processor = _cpuinfo.name() or "an unknown processor"
    return f"Written by jaxq8 {__version__} with JAX {metadata.version('jax')} on {processor}, {cores} core{plural}."
