"""What region programs do to memory, in NumPy: every step reads and writes views of the same bytes that the extension has."""

import numpy as np

from tests import native_programs as programs
from tests.native_programs import DTYPES, OPERATIONS


def interpreted(program):
    """The results of a program of elementwise steps, copies, fills, reductions, products, updates and taken parts."""
    buffers = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in program.args]
    made = [np.zeros(r.nbytes, np.uint8) for r in program.results]
    for argument, result in program.aliases:
        made[result] = buffers[argument].copy()
    arena = np.zeros(program.arena, np.uint8)
    views = []
    for code, place, offset, rank, *rest in program.tensors:
        dtype, dims, strides = np.dtype(DTYPES[code]), rest[:rank], rest[rank:]
        buffer = arena if place == programs.ARENA else [*buffers, *made][place]
        items = np.ndarray(buffer.nbytes - offset, np.uint8, buffer, offset)
        steps = [s * dtype.itemsize for s in strides]
        views.append(np.ndarray(dims, dtype, items, 0, steps) if 0 not in dims else np.zeros(dims, dtype))
    for opcode, _, *payload in program.steps:
        with np.errstate(all="ignore"):
            _step(opcode, payload, views)
    return [m.view(r.dtype).reshape(r.shape) for m, r in zip(made, program.results, strict=True)]


def _step(opcode, payload, views):
    if opcode == programs.COPY:
        views[payload[1]][...] = views[payload[0]].copy()
    elif opcode == programs.FILL:
        dst, value, number = payload
        views[dst][...] = number if value < 0 else views[value].reshape(())
    elif opcode in (programs.UPDATE, programs.TAKE):
        src, dst, _, *starts = payload
        whole, part = (views[i] for i in ((dst, src) if opcode == programs.UPDATE else (src, dst)))
        places = []
        for start, most, size in zip(starts, np.subtract(whole.shape, part.shape), part.shape, strict=True):
            first = 0 if start < 0 else min(max(int(views[start].reshape(())), 0), most)
            places.append(slice(first, first + size))
        if opcode == programs.UPDATE:
            whole[tuple(places)] = part.copy()
        else:
            part[...] = whole[tuple(places)].copy()
    elif opcode == programs.REDUCE:
        src, dst, kind = payload
        views[dst][...] = programs.reduced(list(programs.REDUCTIONS)[kind], views[src], views[dst].shape)
    elif opcode == programs.PRODUCT:
        a, b, dst = (views[i] for i in payload)
        dst[...] = a.astype(np.float64) @ b.astype(np.float64)
    else:
        assert opcode == programs.ELEMENTWISE
        _elementwise(payload, views)


def _elementwise(payload, views):
    words = iter(payload)

    def several():
        return [next(words) for _ in range(next(words))]

    dims, inputs, outputs = tuple(several()), several(), several()
    # The step reads all before it writes: what it stores is kept until its end.
    read = [views[i].copy() for i in inputs]
    stored = {}
    r = {}
    for _ in range(next(words)):
        op, a, b, c, d = (next(words) for _ in range(5))
        name = OPERATIONS[op]
        if name in ("load", "load_int"):
            r[a] = np.broadcast_to(read[b], dims).astype(np.float32 if name == "load" else np.int32)
        elif name in ("const", "const_int"):
            number = np.uint32(b).view(np.float32) if name == "const" else np.int32(b)
            r[a] = np.full(dims, number)
        elif name == "encode":
            stored[outputs[a]] = programs.encoded(r[b].astype(np.float64), views[outputs[a]].dtype)
        elif name in ("store", "store_int"):
            stored[outputs[a]] = r[b]
        else:
            operands = (
                [r[b], r[c], r[d]] if name == "select" else [r[b], r[c]] if name in programs.PAIRS else [r[b]]
            )
            result = programs.MEANINGS[name](*operands)
            whole = (
                name.startswith("int_") or name == "to_int" or (name == "select" and r[c].dtype == np.int32)
            )
            r[a] = np.asarray(result).astype(np.int32 if whole else np.float32)
    for output, values in stored.items():
        views[output][...] = values
