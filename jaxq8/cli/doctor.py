"""``jaxq8 doctor``: prints what a bug report needs: versions, processor, settings, and whether products are exact here."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8 import _cpuinfo
from jaxq8._version import __version__
from jaxq8.cli import options as shared
from jaxq8.cli.problems import FAILED, short
from jaxq8.cli.text import print_json
from jaxq8.display.numbers import size
from jaxq8.kernels import processor
from jaxq8.kernels.barred import barred_forms
from jaxq8.machine.selfcheck import selfcheck
from jaxq8.native import library
from jaxq8.transform import quantize

NEEDED = ("jax", "jaxlib", "flax", "numpy", "ml_dtypes", "optax", "safetensors", "tqdm", "flatbuffers")
OPTIONAL = (
    "pillow", "matplotlib", "orbax-checkpoint", "argcomplete", "onednn-cpu-gomp", "onednn-devel-cpu-gomp", "onnx",
    "onnxruntime", "qwix",
)  # fmt: skip
INSTRUCTIONS = (
    "avx2",
    "avx_vnni",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni_int8",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sme",
)
PREFIXES = ("JAXQ8_", "JAX_", "OMP_", "ONEDNN_")
# The names alone tell what matters: a path says who works where, and a key opens doors.
PATH = re.compile(r"(?<![\w.])(~|[A-Za-z]:)?[/\\][^\s,;:]*")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")
WORST = 0.05  # of the largest result: what eight bits may lose on the example


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="print what a bug report needs",
        description="Prints versions, processor, devices, settings and the result of the self-check: paste it into a bug "
        "report. Paths are left out. The exit status is 1 if something is wrong.",
        epilog="examples:\n  jaxq8 doctor\n  jaxq8 doctor --json > doctor.json\n  jaxq8 doctor --no-selfcheck\n",
    )  # fmt: skip
    shared.add_output_form(command)
    command.add_argument("--no-selfcheck", action="store_true",
                         help="leave out the self-check, which compiles some 30 small programs")  # fmt: skip
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command: each part is printed as soon as it is known, so that a crash shows what came before it."""
    found: dict[str, Any] = {}
    for part, facts in _parts(not options.no_selfcheck):
        found[part] = facts
        if not options.json and not options.quiet:
            print(_line(part, facts), flush=True)
    healthy = all(not isinstance(facts, dict) or facts.get("ok", True) for facts in found.values())
    if options.json:
        print_json({"ok": healthy, **found})
    elif options.quiet:
        print("ok" if healthy else "something is wrong: run `jaxq8 doctor`")
    return 0 if healthy else FAILED


def _parts(with_selfcheck: bool) -> Iterator[tuple[str, Any]]:
    """(name, facts) of each part in order; a part that fails says so and the others follow."""
    parts: dict[str, Callable[[], Any]] = {
        "jaxq8": lambda: __version__,
        "python": lambda: f"{platform.python_implementation()} {platform.python_version()}",
        "packages": lambda: {name: _version(name) for name in NEEDED},
        "optional packages": lambda: {name: _version(name) for name in OPTIONAL},
        "system": platform.platform,
        "processor": _processor,
        "native regions": _native,
        "devices": _devices,
        "variables": variables,
        "example": _example,
    }
    if with_selfcheck:
        parts["self-check"] = _selfcheck
    for name, facts in parts.items():
        try:
            yield name, facts()
        except Exception as error:  # what fails here is what the report is about
            yield name, {"ok": False, "error": without_paths(short(error))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    known = _cpuinfo.flags()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": _cpuinfo.name() or "unknown",
        "machine": platform.machine(),
        "eight-bit instructions": [name for name in INSTRUCTIONS if name in known],
        "taken for": processor.capability(),
        "unsigned activations in products": processor.mixed_dots_are_fast(),
        "compiler options": processor.compiler_options(),
        "usable cores": usable,
        "cores": os.cpu_count(),
        "memory": _memory(),
    }


def _native() -> dict[str, Any]:
    """What runs native regions, or why there are none; the extension is compiled if it never was."""
    status = library.status()
    if not status.available:
        return {"available": False, "why not": without_paths(status.reason)}
    return {
        "available": True,
        "library": f"oneDNN {status.onednn}",
        "instruction set": status.isa,
        "threads": status.threads,
    }


def _devices() -> list[str]:
    kinds = Counter(f"{d.platform} ({d.device_kind})" for d in jax.devices())
    return [f"{count} x {kind}" for kind, count in kinds.items()]


def _memory() -> str | None:
    """The memory of the machine; None where the system does not tell."""
    try:
        return size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None


def variables() -> dict[str, str]:
    """XLA_FLAGS and the variables of JAX, jaxq8, OpenMP and oneDNN, with ``<path>`` for paths and no secrets."""
    chosen = sorted(name for name in os.environ if name.startswith(PREFIXES) or name == "XLA_FLAGS")
    return {name: "<hidden>" if SECRET.search(name) else without_paths(os.environ[name]) for name in chosen}


def without_paths(text: str) -> str:
    """The text with ``<path>`` in place of every absolute path and every path from a home folder."""
    return PATH.sub("<path>", text)


def _example() -> dict[str, Any]:
    """A small product in eight bits beside float: the largest error relative to the largest result."""
    w, x = (
        jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(128, 64), (8, 128)])
    )
    exact = jnp.dot(x, w)
    found = jax.jit(quantize(lambda w, x: jnp.dot(x, w)))(w, x)
    error = float(jnp.abs(found - exact).max() / jnp.abs(exact).max())
    return {"ok": 0 < error < WORST, "largest error": f"{error:.2%} of the largest result"}


def _selfcheck() -> dict[str, Any]:
    start = time.perf_counter()
    report = selfcheck(bar=False, quick=True)
    return {
        "ok": report.ok,
        "checks": len(report.checks),
        "seconds": round(time.perf_counter() - start, 1),
        "wrong": [f"{c.form}, {c.case}: {c.detail}" for c in report.checks if not c.ok],
        "barred": list(barred_forms()),
        "forms used": list(report.used),
    }


def _line(part: str, facts: Any) -> str:
    """A part as text: one line, or one for each of its facts."""
    if not isinstance(facts, dict):
        return f"{part + ':':<20}{_text(facts)}"
    if part.endswith("packages"):
        return f"{part + ':':<20}{', '.join(f'{name} {_text(value)}' for name, value in facts.items())}"
    if not facts:
        return f"{part + ':':<20}none"
    return "\n".join([f"{part}:", *(f"  {name + ':':<36}{_text(value)}" for name, value in facts.items())])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{key}={each}" for key, each in value.items()]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)
