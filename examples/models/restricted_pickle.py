"""Unpickling that can build nothing but what a weight file needs.

A pickle is a program: `pickle.load` of a stranger's file runs what it likes. Here each global that a file
names is looked up in a short table given by the caller, whose entries are plain records; any other name is
refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from examples.models.checks import ModelFileError

Globals = Mapping[tuple[str, str], Any]


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], allowed: Globals, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(file, encoding="latin1")
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise ModelFileError(
                f"it names {module}.{name}, which no weight file of this kind needs"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise ModelFileError("it refers to objects outside the file")
        return self._persistent(pid)


def load(
    file: IO[bytes], path: Path, allowed: Globals, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read one pickle from the position of `file` on.

    Args:
        file: the open file; left behind the pickle.
        path: its name, for messages.
        allowed: what each (module, name) that may occur stands for.
        persistent: maps a persistent id to its object; without it such ids are refused.

    Raises:
        ModelFileError: a global outside `allowed`, or bytes that are no (complete) pickle.
    """
    start = file.tell()
    if file.read(1) != b"\x80":  # every pickle of protocol 2 or later; other files would be taken for opcodes
        raise ModelFileError(
            f"{path} is damaged or no pickle of weights. Give the weight file of this model."
        )
    file.seek(start)
    try:
        return _Restricted(file, allowed, persistent).load()
    except ModelFileError as error:
        raise ModelFileError(f"Refused to read {path}: {error}. Use a file of plain weights only.") from error
    except (
        Exception
    ) as error:  # damage surfaces as almost any exception: Index, Key, Type, Unicode, Memory, ...
        raise ModelFileError(
            f"{path} is damaged or no pickle of weights ({type(error).__name__}: {error}). "
            "Download the file again."
        ) from error
