"""What the numbers were measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sme")
PACKAGES = ("jaxq8", "jax", "jaxlib", "flax", "numpy", "qwix", "onnx", "onnxruntime")


def processor() -> str:
    """The processor's name, as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def describe() -> dict[str, str]:
    """Processor, its features that matter to integer products, usable cores, versions, XLA_FLAGS."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return {
        "processor": processor(),
        "features": ", ".join(f for f in FEATURES if f in flags) or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
