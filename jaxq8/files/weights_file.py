"""`save` and `load`: one safetensors file for variables with eight-bit leaves, ranges and configuration (docs/FORMAT.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxq8._version import __version__
from jaxq8.config import Config
from jaxq8.errors import QuantizationError
from jaxq8.files.container import Container, write
from jaxq8.files.tree_records import StoredTensor, is_stored, read_tree
from jaxq8.files.tree_writer import Writer
from jaxq8.numerics.ranges import Range, Ranges

KIND = "variables"


def save(
    path: str | os.PathLike[str], q_vars: Any, *, ranges: Mapping[str, Range] | None = None, config: Config | None = None
) -> None:  # fmt: skip
    """Writes variables, and what is needed to run with them, into one file.

    Args:
      path: The file to write; ``.q8`` by convention. An existing file is replaced in one step.
      q_vars: Nested dicts, lists and tuples of arrays, QTensors (`quantize_weights`) and numbers. An NNX state is stored as a
        plain nested dict and is read back as one; a named tuple is read back as a tuple. Of a `PackedTensor` the plain codes
        are stored, and how they were packed.
      ranges: Static ranges.
      config: How the weights were quantized and how the model is to run.

    Raises:
      FileError: A leaf cannot be stored (the message names it), or the file cannot be written.
      SpecError: `config` holds a rounding function; register it and give its name.

    Example:
      >>> q8.save("model.q8", q_vars, ranges=ranges)
    """
    writer = Writer()
    tree = writer.node(q_vars)
    write(path, writer.tensors, {**header(KIND, writer, ranges, config), "tree": tree})


def load(path: str | os.PathLike[str], *, lazy: bool = False) -> tuple[Any, Ranges | None, Config | None]:
    """Reads what `save` wrote. Nothing in the file is executed, and everything in it is checked before it is used.

    Leaves are read and put on the default device one after the other; no float copy of a weight is made. Codes of fewer
    than eight bits, and indices of code books, are eight bits wide in memory. A weight that was saved packed is packed again
    where this machine would pack it in the same way, and is a `QTensor` elsewhere.

    Args:
      path: The file.
      lazy: Return `StoredTensor` leaves (``.shape``, ``.dtype``, ``.bits``, ``.nbytes``), each read by its ``.read()``.

    Returns:
      (q_vars, ranges, config); ranges and config are None where `save` was given none.

    Raises:
      FileError: The file is missing, cut off, changed, or of a newer version.

    Example:
      >>> q8.save("model.q8", q_vars, ranges=ranges)
      >>> q_vars, ranges, config = q8.load("model.q8")
      >>> logits = jax.jit(q8.quantize(model.apply, config, ranges=ranges))(q_vars, images)
    """
    container = Container(path, KIND)
    tree = read_tree(container, container.document.get("tree"))
    ranges, config = settings(container)
    return (tree if lazy else read_all(tree)), ranges, config


def read_all(tree: Any) -> Any:
    """The tree with each `StoredTensor` leaf replaced by what it reads from the file."""
    return jax.tree_util.tree_map(
        lambda t: t.read() if isinstance(t, StoredTensor) else t, tree, is_leaf=is_stored
    )


def header(
    kind: str, writer: Writer, ranges: Mapping[str, Range] | None, config: Config | None
) -> dict[str, Any]:
    """The fields that every document has; to be called after all nodes are written, which decide the format's version."""
    given = None if ranges is None else Ranges(ranges).to_json()
    return {
        "format_version": writer.version, "kind": kind, "library_version": __version__, "ranges": given,
        "config": None if config is None else config.to_json(),
    }  # fmt: skip


def settings(container: Container) -> tuple[Ranges | None, Config | None]:
    """The ranges and the configuration of a document; None where it has none.

    Raises:
      FileError: They cannot be read.
    """
    return _setting(container, "ranges", Ranges.from_json), _setting(container, "config", Config.from_json)


def _setting(container: Container, field: str, read: Callable[[str], Any]) -> Any:
    text = container.document.get(field)
    if text is None:
        return None
    if not isinstance(text, str):
        raise container.error(f"its {field} are not text", "get the file again")
    try:
        return read(text)
    except QuantizationError as error:
        raise container.error(f"its {field} cannot be read: {error}", "get the file again") from error
