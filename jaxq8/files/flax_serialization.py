"""Makes `flax.serialization` accept trees with `QTensor`, `CodeBook` and `PackedTensor` leaves without importing Flax.

The state of a PackedTensor is that of its QTensor, since states are restored on other machines than those that wrote them. It
can be restored into either, and a QTensor's state into a PackedTensor, which packs it.

Flax has a table of the types that it can serialize. The types are registered in that table as soon as Flax's module exists: at
once if it has been imported already, else right after it is imported.
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
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor

MODULE = "flax.serialization"
REMEDY = (
    "restore into variables of the same model that `q8.quantize_weights` has encoded with the same Config as those "
    "that were saved"
)


def register() -> None:
    """Makes the types known to `flax.serialization`, at once or as soon as it is imported."""
    if MODULE in sys.modules:
        _enter(sys.modules[MODULE])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _enter(serialization: Any) -> None:
    def restored(target: Any, state: Any) -> Any:
        place = serialization.current_path().removeprefix("./")
        fields = {}
        for name, child in _checked(target, state, f"{MODULE}: {place}").items():
            # A child may be anything that Flax restores itself, for example a box of metadata.
            fields[name] = serialization.from_state_dict(child, state[name], name=name)
        return dataclasses.replace(target, **fields)

    def taken_apart(tensor: Any) -> dict[str, Any]:
        children = {n: serialization.to_state_dict(c) for n, c in _children(tensor).items()}
        return children | _static(tensor)

    for kind in (QTensor, CodeBook):
        serialization.register_serialization_state(kind, taken_apart, restored, override=True)
    serialization.register_serialization_state(
        PackedTensor,
        lambda packed: taken_apart(packed.unpack()),
        lambda target, state: target.with_codes(restored(target.unpack(), state)),
        override=True,
    )


def _children(tensor: Any) -> dict[str, Any]:
    """The arrays of a QTensor or CodeBook by the names of their fields."""
    return {key.name: child for key, child in tensor.tree_flatten_with_keys()[0]}


def _static(tensor: Any) -> dict[str, Any]:
    """All other fields in a form that msgpack can hold, with dtypes as their names."""
    children = _children(tensor)
    found = {}
    for field in dataclasses.fields(tensor):
        if field.name not in children:
            value = getattr(tensor, field.name)
            is_plain = isinstance(value, bool | int | str | None)
            found[field.name] = value if is_plain else np.dtype(value).name
    return found


def _checked(target: Any, state: Any, where: str) -> dict[str, Any]:
    """The target's arrays, after everything that must be equal in the target and in the state was compared.

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
    # An older version may have written a state without a field that was added later: the target's value is kept then.
    both = [(name, state[name], value) for name, value in _static(target).items() if name in state]
    for name, child in children.items():
        if hasattr(child, "shape"):
            both.append((name, _form(state[name]), _form(child)))
    differ = []
    for name, found, expected in both:
        if found != expected:
            differ.append(f"{name} {found} in the state and {expected} in the target")
    if differ:
        raise TensorError(f"{where}: {', '.join(differ)}; {REMEDY}")
    return children


def _form(x: Any) -> str:
    return f"{np.dtype(x.dtype).name}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders look for Flax's module, and registers the types after the module has been executed."""

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
    """A loader that registers the types in a module after another loader has executed it."""

    def __init__(self, loader: Any):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _enter(module)

    def __getattr__(self, name: str) -> Any:
        # Whatever else a loader can do, for example give the source of a module for tracebacks.
        return getattr(self._loader, name)
