"""Opens files of weights of every kind as named tensors, which are read one at a time where the format allows it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq8.analysis.arguments import path_name
from jaxq8.cli.problems import Failure
from jaxq8.config import Config
from jaxq8.errors import FileError
from jaxq8.files.container import DOCUMENT_KEY, Container, open_safetensors
from jaxq8.files.float_models import load_float
from jaxq8.files.packing_note import isa_of
from jaxq8.files.tree_records import StoredTensor, is_stored, read_tree
from jaxq8.files.weights_file import settings
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.ranges import Ranges

OURS = {".q8": "variables", ".q8x": "program"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
      name: Its path in the tree, such as ``params/head/kernel``.
      shape: Shape of the array that it stands for.
      dtype: dtype of that array.
      spec: How it is represented, such as ``s4 symmetric, 10 scales``, and whether it was packed; empty for a float tensor.
      nbytes: Its bytes in the file.
      read: A function that returns the array, the QTensor, the CodeBook or the PackedTensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    nbytes: int
    read: Callable[[], Any] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
      path: The file or folder.
      kind: "variables", "program", or "float".
      tensors: Its tensors, in the order of the file.
      ranges: Static ranges; None if the file has none.
      config: Configuration; None if the file has none.
      document: The document of a ``.q8`` or ``.q8x`` file (docs/FORMAT.md); empty for other files.
    """

    path: Path
    kind: str
    tensors: tuple[Tensor, ...]
    ranges: Ranges | None
    config: Config | None
    document: Mapping[str, Any]

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name.

        Raises:
          Failure: There is no such tensor; the message offers names that are like it.
        """
        import difflib

        by_name = {t.name: t for t in self.tensors}
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=2, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"`jaxq8 inspect {self.path}` lists them"
            raise Failure(f"{self.path}: has no tensor {name!r}; {hint}")
        return by_name[name]


def contents(path: str | Path) -> Contents:
    """Opens a file of weights.

    Raises:
      FileError: The file is missing, cut off, changed, or of an unknown kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path}: no such file or folder; check the path")
    kind = _kind(path)
    if kind is None:
        return Contents(path, "float", _leaves(load_float(path)), None, None, {})
    container = Container(path, kind)
    ranges, config = settings(container)
    if kind == "variables":
        tensors = _leaves(read_tree(container, container.document.get("tree")))
    else:
        tensors = tuple(_tensor(name, read_tree(container, node)) for name, node in _entries(container))
    return Contents(path, kind, tensors, ranges, config, container.document)


def _kind(path: Path) -> str | None:
    """The kind of a file that jaxq8 wrote; None for other files.

    What the file says of itself is only used to choose its reader, which then checks it.
    """
    if path.is_dir() or path.suffix in (".npz", ".msgpack"):
        return None
    with path.open("rb") as file:
        looks_like_safetensors = file.read(9)[8:] == b"{"
    if path.suffix not in (*OURS, ".safetensors") and not looks_like_safetensors:
        return None
    text = (open_safetensors(path).metadata() or {}).get(DOCUMENT_KEY)
    if text is None:
        return OURS.get(path.suffix)
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        kind = json.loads(text).get("kind")
        return kind if kind in OURS.values() else "variables"
    return "variables"


def _entries(container: Container) -> Iterator[tuple[str, Any]]:
    """The name and the node of each weight of an exported program."""
    entries = container.document.get("weights")
    if not isinstance(entries, list):
        raise container.error("its document names no weights", "export the model again")
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2:
            raise container.error(f"{str(entry)[:80]!r} is not [name, node]", "export the model again")
        yield str(entry[0]), entry[1]


def _leaves(tree: Any) -> tuple[Tensor, ...]:
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_stored)
    return tuple(
        _tensor(path_name(path), leaf) for path, leaf in flat if is_stored(leaf) or hasattr(leaf, "dtype")
    )


def _tensor(name: str, leaf: Any) -> Tensor:
    if isinstance(leaf, StoredTensor):
        return Tensor(name, leaf.shape, np.dtype(leaf.dtype).name, _spec(leaf), leaf.nbytes, leaf.read)
    return Tensor(name, np.shape(leaf), np.dtype(leaf.dtype).name, "", leaf.nbytes, lambda: leaf)


def _spec(leaf: StoredTensor) -> str:
    """How a leaf is represented, as text."""
    if leaf.bits is None:
        return ""
    count = int(np.prod(leaf.node["scale_shape"], dtype=np.int64))
    if "codebook" in leaf.node:
        return f"{leaf.bits}-bit indices, {count} code book{'s' if count != 1 else ''}"
    sign = "u" if str(leaf.node["storage"]).startswith("u") else "s"
    kind = "symmetric" if leaf.node.get("symmetric") is True else "asymmetric"
    isa = isa_of(leaf.node)
    packed = f", packed for {isa[:40]}" if isa is not None else ""
    return f"{sign}{leaf.bits} {kind}, {count} scale{'s' if count != 1 else ''}{packed}"


def real(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The real numbers that a tensor stands for."""
    found = tensor.read()
    return np.asarray(found.dequantize() if is_encoded(found) else found)
