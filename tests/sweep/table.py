"""One table: every public name of the modules is a case or is excluded with a reason."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy
import jax.scipy.special
from flax import nnx

from tests.sweep import lax_cases, layer_cases, numpy_cases
from tests.sweep.excluded import EXCLUDED

MODULES: dict[str, tuple[types.ModuleType, Any]] = {
    "jax.numpy": (jax.numpy, numpy_cases.NUMPY),
    "jax.numpy.linalg": (jax.numpy.linalg, numpy_cases.LINALG),
    "jax.numpy.fft": (jax.numpy.fft, numpy_cases.FFT),
    "jax.lax": (jax.lax, lax_cases.LAX),
    "jax.nn": (jax.nn, lax_cases.NN),
    "jax.scipy.special": (jax.scipy.special, numpy_cases.SPECIAL),
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
    """The public functions and classes of a module: not what is a module, a constant, or an object of another kind."""
    found = MODULES[module][0]
    names = (name for name in dir(found) if not name.startswith("_"))
    return {n for n in names if callable(getattr(found, n)) and not inspect.ismodule(getattr(found, n))}


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
