"""Random chains of elementwise steps, reductions and updates, whose temporary tensors lie where dead ones lay.

All numbers are integers that float32 holds exactly, so results are equal to NumPy's to the last bit.
"""

import itertools

import numpy as np

from tests import native_programs as programs
from tests.native_programs import Program

_MOST = 60


class Chain:
    """A random program; `program` has it."""

    def __init__(self, rng):
        self.rng = rng
        self.lead = [int(n) for n in rng.integers(1, rng.choice([4, 12, 60]), int(rng.integers(0, 4)))]
        self.n = int(rng.choice([1, 3, 16, 31, 49, 100, 384, 500, 1024, 1500, 2100]))
        while np.prod(self.lead, dtype=np.int64) * self.n > 150_000:
            self.lead[int(np.argmax(self.lead))] //= 2
        self.shapes = [
            (*self.lead, self.n),
            (*self.lead, 1),
            (*(1 for _ in self.lead), self.n),
            (*(1 for _ in self.lead), 1),
        ]
        if len(self.lead) > 1:
            self.shapes.append((self.lead[0], *(1 for _ in self.lead[1:]), self.n))
            self.shapes.append((*(1 for _ in self.lead[1:]), self.lead[-1], 1))
        args = [self.numbers(s, rng.choice(["u1", "i1", "i4", "f4"])) for s in self.shapes]
        args.append(self.numbers(self.shapes[0], "f4"))
        results = [np.zeros(self.shapes[0], t) for t in ("f4", "u1", "i4")] + [np.zeros(self.shapes[1], "f4")]
        # The last two results begin with arguments, which updates write over; starts leave the tensors now and then.
        args += [self.numbers(self.shapes[0], "u1"), self.numbers(self.shapes[1], "f4")]
        results += [np.zeros(self.shapes[0], "u1"), np.zeros(self.shapes[1], "f4")]
        args += [
            np.array([n], np.int32) for n in (*rng.integers(-3, 60, 3), rng.choice([-(2**31), 2**31 - 1]))
        ]
        first = len(self.shapes) + 1
        self.program = Program(*args, results=results, aliases=[(first, 4), (first + 1, 5)])
        self.begun = [(self.program.ids[len(args) + i], results[i].shape, results[i].dtype) for i in (4, 5)]
        self.starts = self.program.ids[first + 2 : first + 6]
        # Number, shape and dtype of what can be read.
        given = zip(self.program.ids[:first], args[:first], strict=True)
        self.live = [*((i, a.shape, a.dtype) for i, a in given), *self.begun]
        self.whole = len(self.program.tensors)  # tensors from here on lie in the arena
        self.used = []  # (begin, end, number) in the arena
        self.program.arena = 64
        for _ in range(int(rng.integers(1, 14))):
            self.step()
        for i, result in enumerate(results[:4]):
            self.last(self.program.ids[len(args) + i], result)

    def numbers(self, shape, dtype):
        low = 0 if dtype == "u1" else -_MOST
        return self.rng.integers(low, _MOST + 1, shape).astype(dtype)

    def place(self, shape, dtype):
        """A tensor in the arena, at the first free place, or behind all."""
        strides, itemsize = programs.dense(list(shape)), np.dtype(dtype).itemsize
        if len(shape) > 1 and self.rng.random() < 0.1:  # rows with gaps
            wide = [*shape[:-1], shape[-1] + int(self.rng.integers(1, 9))]
            strides = programs.dense(wide)
        size = (sum((d - 1) * s for d, s in zip(shape, strides, strict=True)) + 1) * itemsize
        begin = 64
        for low, high, _ in sorted(self.used):
            if begin + size <= low:
                break
            begin = max(begin, -(-high // 64) * 64)
        self.program.arena = max(self.program.arena, begin + size)
        number = self.program.tensor(dtype, programs.ARENA, shape, begin, strides)
        self.used.append((begin, begin + size, number))
        return number

    def target(self, shape, dtype, reads):
        """Where a step writes: a new tensor, or one of those that it reads."""
        for number, other, kind in reads:
            if other == shape and kind == dtype and number >= self.whole and self.rng.random() < 0.4:
                return number
        return self.place(shape, dtype)

    def choose(self, shape=None):
        """Something that can be read, more often what is new."""
        found = [t for t in self.live if shape is None or t[1] == shape]
        return found[-1 - min(len(found) - 1, int(self.rng.exponential(2)))] if found else None

    def forget(self):
        """Frees the memory of some tensors."""
        for entry in list(self.used):
            if self.rng.random() < 0.35:
                self.used.remove(entry)
                self.live = [t for t in self.live if t[0] != entry[2]]

    def step(self):
        kind = self.rng.random()
        if kind < 0.35:
            self.reduce()
        elif kind < 0.42:
            self.copy()
        elif kind < 0.52:
            self.update()
        elif kind < 0.58:
            self.take()
        else:
            self.elementwise(self.shapes[int(self.rng.choice([0, 0, 0, 1]))])
        self.forget()

    def reduce(self):
        number, shape, dtype = self.choose()
        to = list(shape)
        axes = (
            [len(shape) - 1] if self.rng.random() < 0.8 else np.flatnonzero(self.rng.random(len(shape)) < 0.5)
        )
        for axis in axes:
            to[axis] = 1
        kind = self.rng.choice(["sum", "max", "min"])
        out = np.dtype("i4") if kind == "sum" and dtype != "f4" else dtype
        dst = self.place(tuple(to), out)
        self.program.reduce(kind, number, dst)
        self.live.append((dst, tuple(to), out))

    def copy(self):
        number, shape, dtype = self.choose()
        dst = self.place(shape, dtype)
        self.program.step(programs.COPY, number, dst)
        self.live.append((dst, shape, dtype))

    def started(self, shape):
        """Where a part begins along each axis: a number that is found in the run, or 0."""
        return [int(self.rng.choice(self.starts)) if self.rng.random() < 0.7 else -1 for _ in shape]

    def update(self):
        """The beginning of something is written into a result that begins with an argument, or into the arena."""
        fits = [t for t in self.live if t[0] >= self.whole] + self.begun
        number, shape, dtype = fits[int(self.rng.integers(len(fits)))]
        sources = [t for t in self.live if t[0] != number and t[2] == dtype]
        if sources:
            source, other, _ = sources[int(self.rng.integers(len(sources)))]
            part = [int(self.rng.integers(1, min(n, m) + 1)) for n, m in zip(shape, other, strict=True)]
            code, place, offset, rank, *rest = self.program.tensors[source]
            view = self.program.tensor(programs.DTYPES[code], place, part, offset, rest[rank:])
            self.program.placed(programs.UPDATE, view, number, self.started(shape))

    def take(self):
        number, shape, dtype = self.choose()
        fits = [s for s in self.shapes if all(n <= m for n, m in zip(s, shape, strict=True))]
        part = fits[int(self.rng.integers(len(fits)))]
        dst = self.place(part, dtype)
        self.program.placed(programs.TAKE, number, dst, self.started(shape))
        self.live.append((dst, part, dtype))

    def elementwise(self, shape, outputs=None):
        rng = self.rng
        fits = [t for t in self.live if all(n in (1, m) for n, m in zip(t[1], shape, strict=True))]
        reads = [
            fits[-1 - min(len(fits) - 1, int(rng.exponential(2)))] for _ in range(int(rng.integers(1, 5)))
        ]
        code = list(itertools.chain(*(self.bounded(i, dtype) for i, (_, _, dtype) in enumerate(reads))))
        last = len(reads) - 1
        for _ in range(int(rng.integers(0, 5))):
            a, b, c, d = (int(rng.integers(0, last + 1)) for _ in range(4))
            name = rng.choice(
                ["add", "sub", "max", "min", "neg", "abs", "select", "lt", "mul", "div", "const", "and"]
            )
            last = min(last + 1, 9)
            if name == "mul":  # at most 60 * 3, and bounded again at the end
                code += [("const", 10, programs.bits(3)), ("mul", last, a, 10)]
            elif name == "div":
                code += [("const", 10, programs.bits(rng.choice([0.5, 0.25]))), ("div", last, a, 10)]
            elif name == "const":
                code.append(("const", last, programs.bits(int(rng.integers(-9, 9)))))
            elif name == "select":
                code.append((name, last, b, c, d))
            else:
                code.append((name, last, a, b) if name not in ("neg", "abs") else (name, last, a))
            code += self.clipped(last)
        if outputs is None:
            dtypes = [
                np.dtype(rng.choice(["f4", "f4", "u1", "i1", "i4"]))
                for _ in range(int(rng.choice([1, 1, 2])))
            ]
            outputs = [(self.target(shape, dtype, reads), dtype) for dtype in dtypes]
            if len({number for number, _ in outputs}) < len(outputs):
                outputs = outputs[:1]
        for i, (_, dtype) in enumerate(outputs):
            value = int(rng.integers(0, last + 1))
            if dtype == "i4":
                code += [("to_int", 11, value), ("store_int", i, 11)]
            else:
                code.append(("store" if dtype == "f4" else "encode", i, value))
        self.program.elementwise(shape, [r[0] for r in reads], [number for number, _ in outputs], code)
        written = {number for number, _ in outputs}
        self.live = [t for t in self.live if t[0] not in written]
        self.live += [(number, shape, dtype) for number, dtype in outputs]

    def bounded(self, i, dtype):
        """An input, between -60 and 60."""
        if dtype == "i4" and self.rng.random() < 0.5:
            low, high = ("const_int", 12, -_MOST), ("const_int", 13, _MOST)
            return [
                ("load_int", i, i),
                low,
                high,
                ("int_max", i, i, 12),
                ("int_min", i, i, 13),
                ("to_float", i, i),
            ]
        return [("load", i, i), *self.clipped(i)]

    def clipped(self, register):
        low, high = ("const", 12, programs.bits(-_MOST)), ("const", 13, programs.bits(_MOST))
        return [
            low,
            high,
            ("max", register, register, 12),
            ("min", register, register, 13),
            ("round", register, register),
        ]

    def last(self, number, result):
        """Fills a result."""
        self.elementwise(result.shape, [(number, result.dtype)])
