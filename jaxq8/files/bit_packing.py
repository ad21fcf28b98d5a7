"""Packs codes of 2 to 7 bits without gaps, in plain NumPy, so that codes of four bits take exactly half the bytes.

Code i occupies bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream, lowest bit first; bit j of the stream is bit
``j % 8`` of byte ``j // 8``. Signed codes are in two's complement. The last byte is filled with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxq8.files.container import aligned

# Codes are packed and unpacked in pieces of this many, since each takes eight bytes on the way. A multiple of 8 codes fills
# whole bytes, whatever their width.
PIECE = 1 << 16


def packed_size(count: int, bits: int) -> int:
    """The number of bytes that `count` codes take when packed."""
    return (count * bits + 7) // 8


def pack(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Packs codes.

    Args:
      codes: int8 or uint8 codes of any shape that fit into `bits`.
      bits: Width of a code, 1 to 8.

    Returns:
      uint8 array of `packed_size` bytes, one axis.

    Example:
      >>> pack(np.uint8([1, 2, 3]), 4)
      array([33,  3], dtype=uint8)
    """
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    pieces = [_pack_piece(flat[i : i + PIECE], bits) for i in range(0, flat.size, PIECE)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)


def unpack(data: np.ndarray[Any, Any], bits: int, count: int, signed: bool) -> np.ndarray[Any, Any]:
    """The first `count` codes that `pack` packed into `data`, in one axis, as int8 if `signed`, else as uint8."""
    result = aligned(count)
    for i in range(0, count, PIECE):
        size = min(PIECE, count - i)
        start = i * bits // 8
        piece = data[start : start + packed_size(size, bits)]
        stream = np.unpackbits(piece, count=size * bits, bitorder="little").reshape(size, bits)
        result[i : i + size] = np.packbits(stream, axis=1, bitorder="little")[:, 0]
    if signed:  # extends the sign bit of two's complement to eight bits
        sign = np.uint8(1 << (bits - 1))
        result ^= sign
        result -= sign
        return result.view(np.int8)
    return result


def _pack_piece(codes: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    stream = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(-1), bitorder="little")
