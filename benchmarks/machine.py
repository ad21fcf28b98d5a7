"""What the numbers were measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import jaxq8 as q8
from jaxq8 import _cpuinfo

FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sme")
VARIABLES = ("XLA_FLAGS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA", "JAXQ8_NATIVE")
PACKAGES = ("jaxq8", "jax", "jaxlib", "flax", "numpy", "qwix", "onnx", "onnxruntime")


def describe() -> dict[str, str]:
    """Processor, its features that matter to integer products, usable cores, threads, versions, oneDNN, variables."""
    flags = _cpuinfo.flags()
    return {
        "processor": _cpuinfo.name(),
        "features": ", ".join(f for f in FEATURES if f in flags) or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": _threads(),
        "native regions": native(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        **{name: os.environ.get(name, "") for name in VARIABLES},
    }


def native() -> str:
    """Which library computes native regions, or why there are none."""
    status = q8.native_status()
    if not status.available:
        return f"none: {status.reason}"
    return f"oneDNN {status.onednn}, {status.isa}, {_counted(status.threads, 'thread')}"


def _threads() -> str:
    """XLA and ONNX Runtime are given a thread for each usable core; native regions have what their library decides."""
    cores, status = len(os.sched_getaffinity(0)), q8.native_status()
    more = f", native regions {status.threads}" if status.available else ""
    return f"XLA {cores}, ONNX Runtime {cores}{more}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
