"""What Linux tells of the processor."""

from __future__ import annotations

import pathlib
import platform


def name() -> str:
    """The processor's name as Linux gives it, such as "AMD EPYC 9R14"; elsewhere what Python knows of it, perhaps nothing."""
    return _described("model name") or platform.processor() or platform.machine()


def flags() -> set[str]:
    """The flags of the first processor in Linux's list; empty where there is no such list."""
    return set((_described("flags") or _described("Features")).split())


def _described(field: str) -> str:
    """One field of the first processor in Linux's list, or an empty string."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""
