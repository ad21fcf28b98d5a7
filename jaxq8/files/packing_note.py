"""The note in a file that a weight was packed, and how; the file itself holds the plain codes.

A file is read on other machines than the one that wrote it, so packed bytes, which one processor's kernels understand, are not
stored. With the note, a process that would pack the weight in the same way does so while it loads, without looking for a layout
again; every other reader, older ones too, ignores the note and has the plain codes.
"""

from __future__ import annotations

import math
from typing import Any

from jaxq8.errors import TensorError
from jaxq8.numerics.packed_here import suits
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor

MAXIMUM_INTEGERS = 256  # of a problem or a layout; oneDNN's have up to 12 axes and as many inner blocks


def packing_note(p: PackedTensor) -> dict[str, Any]:
    """What the document says of a packed weight beside what it says of its codes."""
    moves = [[kind, list(argument)] for kind, argument in p.moves]
    return {"isa": p.isa, "problem": list(p.problem), "moves": moves, "layout": list(p.layout.words)}


def isa_of(node: Any) -> str | None:
    """The instruction set that a node says its weight was packed for; None where it says none."""
    note = node.get("packed")
    isa = note.get("isa") if isinstance(note, dict) else None
    return isa if isinstance(isa, str) else None


def repacked(q: QTensor, note: Any) -> QTensor | PackedTensor:
    """The weight as the note says, if this process would pack it so, else as it is.

    Args:
      q: The plain codes.
      note: What the document says; anybody may have written it. One that is not understood, for example that of a later
        version, is ignored, since the plain codes are right in any case.
    """
    if not isinstance(note, dict):
        return q
    isa, problem, moves, words = (note.get(field) for field in ("isa", "problem", "moves", "layout"))
    if not isinstance(isa, str) or not _integers(problem) or not _integers(words) or not _are_moves(moves):
        return q
    assert isinstance(problem, list)
    assert isinstance(words, list)
    assert isinstance(moves, list)
    try:
        layout = PackedLayout.from_words(words)
        if not _is_tight(layout, q) or not suits(isa, tuple(problem), layout):
            return q
        steps = tuple((kind, tuple(argument)) for kind, argument in moves)
        return PackedTensor.pack(q, layout=layout, problem=problem, isa=isa, moves=steps)
    except TensorError:
        return q


def _is_tight(layout: PackedLayout, q: QTensor) -> bool:
    """Whether no axis has more padding than its blocks need, so that a small file cannot ask for much memory."""
    if math.prod(layout.dims) != q.size:
        return False
    blocks = [math.prod(n for a, n in layout.inner if a == axis) for axis in range(len(layout.dims))]
    small = math.prod(blocks) <= 1 << 16
    return small and all(p - d < b for d, p, b in zip(layout.dims, layout.padded, blocks, strict=True))


def _integers(x: Any) -> bool:
    if not isinstance(x, list) or len(x) > MAXIMUM_INTEGERS:
        return False
    return all(type(n) is int and abs(n) < 2**62 for n in x)


def _are_moves(x: Any) -> bool:
    if not isinstance(x, list) or len(x) > MAXIMUM_INTEGERS:
        return False
    pairs = all(isinstance(move, list) and len(move) == 2 and isinstance(move[0], str) for move in x)
    return pairs and all(_integers(move[1]) for move in x)
