"""`flax.serialization` takes trees with `QTensor` and `CodeBook` leaves, though this library imports no framework.

Flax asks a table which types it can take apart; both are entered into it as soon as Flax's module is there: now, where it was
imported before, or right after it will have been.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

from jaxq8.errors import TensorError
from jaxq8.numerics.codebook import CodeBook
from jaxq8.numerics.qtensor import QTensor

MODULE = "flax.serialization"
REMEDY = (
    "restore into variables of the same model that `q8.quantize_weights` has encoded with the same Config as those "
    "that were saved"
)


def register() -> None:
    """Makes both types known to `flax.serialization`, at once or as soon as it is imported."""
    if MODULE in sys.modules:
        _enter(sys.modules[MODULE])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _enter(serialization: Any) -> None:
    def restored(target: Any, state: Any) -> Any:
        place = serialization.current_path().removeprefix("./")
        children = _checked(target, state, f"{MODULE}: {place}")
        # The children may be anything that Flax restores itself: boxes of metadata, for example.
        return dataclasses.replace(
            target,
            **{
                name: serialization.from_state_dict(child, state[name], name=name)
                for name, child in children.items()
            },
        )

    def taken_apart(tensor: Any) -> dict[str, Any]:
        children = {n: serialization.to_state_dict(c) for n, c in _children(tensor).items()}
        return children | _static(tensor)

    for kind in (QTensor, CodeBook):
        serialization.register_serialization_state(kind, taken_apart, restored, override=True)


def _children(tensor: Any) -> dict[str, Any]:
    """The arrays of a tensor by the names of their fields."""
    return {key.name: child for key, child in tensor.tree_flatten_with_keys()[0]}


def _static(tensor: Any) -> dict[str, Any]:
    """All other fields, as msgpack can hold them: dtypes by name."""
    names = [f.name for f in dataclasses.fields(tensor) if f.name not in _children(tensor)]
    fields = {name: getattr(tensor, name) for name in names}
    return {n: v if isinstance(v, bool | int | str | None) else np.dtype(v).name for n, v in fields.items()}


def _checked(target: Any, state: Any, where: str) -> dict[str, Any]:
    """The target's arrays, after a comparison of all that must be equal in the target and in what is restored.

    Raises:
      TensorError: Something differs; the message names the place, what both have, and the remedy.
    """
    kind, children = type(target).__name__, _children(target)
    if not isinstance(state, dict):
        raise TensorError(
            f"{where}: the state holds {_form(state)}, the target a {kind}; restore float variables into float "
            "variables, and encode these with `q8.quantize_weights`"
        )
    if not children.keys() <= state.keys():
        raise TensorError(
            f"{where}: the state has {', '.join(map(str, state)) or 'nothing'}, the target's {kind} has "
            f"{', '.join(children)}; {REMEDY}"
        )
    # A field that a newer version has added is the target's where an older one wrote the state.
    static = {name: value for name, value in _static(target).items() if name in state}
    both = [(n, state[n], value) for n, value in static.items()]
    both += [(n, _form(state[n]), _form(c)) for n, c in children.items() if hasattr(c, "shape")]
    differ = [
        f"{name} {found} in the state and {expected} in the target"
        for name, found, expected in both
        if found != expected
    ]
    if differ:
        raise TensorError(f"{where}: {', '.join(differ)}; {REMEDY}")
    return children


def _form(x: Any) -> str:
    return f"{np.dtype(x.dtype).name}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets all other finders look for Flax's module, and enters both types when it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Entering(spec.loader)
                return spec
        return None


class _Entering(importlib.abc.Loader):
    """A loader that enters both types into the module that another one has loaded."""

    def __init__(self, loader: Any):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _enter(module)

    def __getattr__(
        self, name: str
    ) -> Any:  # what else a loader can do: the source of a module, for tracebacks
        return getattr(self._loader, name)
