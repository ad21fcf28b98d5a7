"""What `compress` keeps on disk after every step, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq8._version import __version__
from jaxq8.analysis.flat_function import array_leaves
from jaxq8.errors import FileError
from jaxq8.files.weights_file import load, save
from jaxq8.learning.recipe_measure import Score
from jaxq8.replacement import replacement

STATE = "state.json"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Variables as they came out of a step, and how they are represented.

    Attributes:
      variables: With weights as codes; batch norms are not folded yet.
      bits: Width of the codes.
      group: Neighbours that share a scale; 0 for one scale a channel.
      raised: Leaves that have eight bits instead.
      floats: Leaves that stay in float.
      bytes: Size of the file, with batch norms folded.
      score: The measured error; None without data.
    """

    variables: Any
    bits: int
    group: int = 0
    raised: tuple[int, ...] = ()
    floats: tuple[int, ...] = ()
    bytes: int = 0
    score: Score | None = None


def identity(
    fn: Callable[..., Any], variables: Any, batches: Sequence[Any], inputs: Any, kwargs: dict[str, Any], arguments: Any
) -> str:  # fmt: skip
    """A hash of the function (its traced program), the variables, the data and the arguments of one run."""
    program = jax.make_jaxpr(lambda v, *x: fn(v, *x, **kwargs))(variables, *inputs)
    text = re.sub(r"0x[0-9a-f]+", "", str(program))  # addresses of functions differ between processes
    total = hashlib.sha256(f"{__version__} {text} {arguments!r}".encode())
    for leaf in jax.tree.leaves([program.consts, variables, list(batches)]):
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


class Memory:
    """The finished steps of a run; with a folder they are kept on disk as well.

    Attributes:
      rows: One for each finished step: its key and its columns in the table of steps.
      notes: Other things that a run remembers, in the form that JSON can hold.
    """

    def __init__(self, folder: str | Path | None, identity: str, variables: Any):
        self._folder = None if folder is None else Path(folder)
        self._identity, self._variables = identity, variables
        self.rows: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self._kept: dict[str, Candidate] = {}
        self._files: dict[str, dict[str, Any]] = {}
        if self._folder is not None:
            self._open(self._folder)

    def done(self, key: str) -> dict[str, Any] | None:
        """The row of a finished step."""
        return next((row for row in self.rows if row["key"] == key), None)

    def candidate(self, name: str) -> Candidate | None:
        """What `keep` was given under this name."""
        return self._kept.get(name)

    def keep(self, name: str, candidate: Candidate) -> None:
        """Remembers a candidate; `write` makes it valid on disk."""
        self._kept[name] = candidate
        if self._folder is None:
            return
        file = f"{name}-{len(self.rows)}.q8"
        flat, arrays, _ = array_leaves(candidate.variables)
        save(self._folder / file, [flat[i] for i in arrays])
        document = {**dataclasses.asdict(dataclasses.replace(candidate, variables=None, score=None))}
        document["score"] = candidate.score.row() if candidate.score else None
        self._files[name] = {**document, "file": file}

    def write(self) -> None:
        """Replaces the state on disk in one step; a reader sees the state before or after it."""
        if self._folder is None:
            return
        document = {"identity": self._identity, "rows": self.rows, "notes": self.notes, "files": self._files}
        with replacement(self._folder / STATE) as temporary:
            Path(temporary).write_text(json.dumps(document), encoding="utf-8")
        used = {entry["file"] for entry in self._files.values()}
        for path in self._folder.glob("*-*.q8"):
            if path.name not in used and re.fullmatch(r"(best|base|raised)-\d+\.q8", path.name):
                path.unlink()

    def _open(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise FileError(f"compress(resume={str(folder)!r}): is a file; name a folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / STATE
            if not path.exists():
                return
            document = json.loads(path.read_text(encoding="utf-8"))
            belongs = document["identity"] == self._identity
            self.rows, self.notes, self._files = document["rows"], document["notes"], document["files"]
            files = {name: folder / entry["file"] for name, entry in self._files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(
                f"compress(resume={str(folder)!r}): cannot be read ({error}); name another folder"
            ) from error
        if not belongs:
            raise FileError(
                f"compress(resume={str(folder)!r}): holds a run of another function, other variables, data or arguments, or "
                "of another version; name another folder, or delete this one"
            )
        self._kept = {name: self._read(path, self._files[name]) for name, path in files.items()}

    def _read(self, path: Path, entry: dict[str, Any]) -> Candidate:
        leaves, _, _ = load(path)
        flat, arrays, tree = array_leaves(self._variables)
        for place, leaf in zip(arrays, leaves, strict=True):
            flat[place] = leaf
        fields = {name: value for name, value in entry.items() if name != "file"}
        fields |= {
            "variables": tree.unflatten(flat), "raised": tuple(entry["raised"]), "floats": tuple(entry["floats"]),
            "score": Score.of_row(entry["score"]) if entry["score"] else None,
        }  # fmt: skip
        return Candidate(**fields)
