"""What the processor can do with eight-bit integers."""

from __future__ import annotations

import functools
import os
import platform

import jax

from jaxq8._cpuinfo import flags
from jaxq8.errors import SpecError

VARIABLE = "JAXQ8_PROCESSOR"
# Capability -> whether dots of uint8 x int8 are the fast ones (YNNPACK has kernels for them on VNNI and AMX only).
MIXED_DOTS = {"amx": True, "avx512_vnni": True, "avx2": False, "x86": False, "arm": False, "other": False}


@functools.cache
def capability() -> str:
    """One of "amx", "avx512_vnni", "avx2", "x86", "arm", "other".

    On Linux it is read from the operating system's list of processor flags; elsewhere the machine's name decides. The
    environment variable JAXQ8_PROCESSOR overrides it.

    Raises:
      SpecError: The environment variable is set to any other name.
    """
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in MIXED_DOTS:
            raise SpecError(f"{VARIABLE}={forced!r}: known are {', '.join(MIXED_DOTS)}")
        return forced
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "arm"
    if machine not in ("x86_64", "amd64"):
        return "other"
    known = flags()
    if "amx_int8" in known:
        return "amx"
    if "avx512_vnni" in known:
        return "avx512_vnni"
    return "avx2" if "avx2" in known else "x86"


def mixed_dots_are_fast() -> bool:
    """Whether this processor's fast dot takes unsigned activations."""
    return MIXED_DOTS[capability()]


def compiler_options() -> dict[str, str]:
    """Options for the outermost `jax.jit` that suit eight-bit programs on this machine.

    On x86 CPUs with AVX-512, XLA's loops use half of the vector width by default. The kernels of products use all of it anyway,
    but the loops around them, depthwise convolutions above all, do not.

    Returns:
      A dict that sets ``xla_cpu_prefer_vector_width`` to "512" on CPUs with AVX-512 VNNI or AMX, an empty dict elsewhere.

    Example:
      >>> fast = jax.jit(q8.quantize(model.apply), compiler_options=q8.compiler_options())
      >>> fast(q_vars, images).shape
      (4, 10)
    """
    wide = jax.default_backend() == "cpu" and capability() in ("amx", "avx512_vnni")
    return {"xla_cpu_prefer_vector_width": "512"} if wide else {}
