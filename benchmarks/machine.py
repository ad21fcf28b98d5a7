"""What the numbers were measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from jaxq8 import _cpuinfo

FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sme")
PACKAGES = ("jaxq8", "jax", "jaxlib", "flax", "numpy", "qwix", "onnx", "onnxruntime")


def describe() -> dict[str, str]:
    """Processor, its features that matter to integer products, usable cores, versions, XLA_FLAGS."""
    flags = _cpuinfo.flags()
    return {
        "processor": _cpuinfo.name(),
        "features": ", ".join(f for f in FEATURES if f in flags) or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
