"""One table: every public name of the modules is a case or is excluded with a reason."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen
import jax
import jax.image
import jax.lax.linalg
import jax.numpy
import jax.ops
import jax.scipy.linalg
import jax.scipy.signal
import jax.scipy.special
import jax.scipy.stats
from flax import nnx

from tests.sweep import lax_cases, layer_cases, numpy_cases, scipy_cases
from tests.sweep.excluded import EXCLUDED


def _names(module: Any) -> set[str]:
    """The public functions and classes of a module: not what is a module, a constant, or an object of another kind."""
    names = (name for name in dir(module) if not name.startswith("_"))
    return {n for n in names if callable(getattr(module, n)) and not inspect.ismodule(getattr(module, n))}


def _together(name: str, submodules: Iterable[str]) -> types.SimpleNamespace:
    """The functions of submodules under dotted names: ``norm.pdf``."""
    found = types.SimpleNamespace()
    for submodule in submodules:
        module = importlib.import_module(f"{name}.{submodule}")
        for function in _names(module):
            setattr(found, f"{submodule}.{function}", getattr(module, function))
    return found


def _with_distributions() -> types.SimpleNamespace:
    """`jax.scipy.stats` and its distributions, each of which is a module."""
    stats = jax.scipy.stats
    found = _together("jax.scipy.stats", [n for n in dir(stats) if inspect.ismodule(getattr(stats, n))])
    for name in _names(stats):
        setattr(found, name, getattr(stats, name))
    return found


MODULES: dict[str, tuple[Any, Any]] = {
    "jax.numpy": (jax.numpy, numpy_cases.NUMPY),
    "jax.numpy.linalg": (jax.numpy.linalg, numpy_cases.LINALG),
    "jax.numpy.fft": (jax.numpy.fft, numpy_cases.FFT),
    "jax.lax": (jax.lax, lax_cases.LAX),
    "jax.lax.linalg": (jax.lax.linalg, lax_cases.LINALG),
    "jax.nn": (jax.nn, lax_cases.NN),
    "jax.image": (jax.image, numpy_cases.IMAGE),
    "jax.ops": (jax.ops, numpy_cases.OPS),
    "jax.scipy.special": (jax.scipy.special, scipy_cases.SPECIAL),
    "jax.scipy.linalg": (jax.scipy.linalg, scipy_cases.LINALG),
    "jax.scipy.signal": (jax.scipy.signal, scipy_cases.SIGNAL),
    "jax.scipy.stats": (_with_distributions(), scipy_cases.STATS),
    "jax.scipy": (_together("jax.scipy", scipy_cases.SMALL.split()), scipy_cases.OTHERS),
    "flax.linen": (flax.linen, layer_cases.LINEN),
    "flax.nnx": (nnx, layer_cases.NNX),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One public function: `call(function, x)` with `x` (8, 8) float32."""

    module: str
    name: str
    call: Callable[..., Any]

    def __call__(self, x: Any) -> Any:
        return self.call(getattr(MODULES[self.module][0], self.name), x)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def public(module: str) -> set[str]:
    """The public names of a module of the table."""
    return _names(MODULES[module][0])


def excluded(module: str) -> dict[str, str]:
    """Name -> why it is not called; Flax gives out functions of jax.nn under its own name."""
    reasons = {n: reason for reason, names in EXCLUDED.get(module, {}).items() for n in names.split()}
    if module.startswith("flax."):
        here = MODULES[module][0]
        same = (n for n in public(module) if getattr(here, n) is getattr(jax.nn, n, None))
        reasons |= dict.fromkeys(same, "the function of jax.nn")
    return reasons


CASES = [
    Case(m, name, call)
    for m, (_, table) in MODULES.items()
    for call, names in table
    for name in names.split()
]
