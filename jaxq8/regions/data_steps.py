"""The steps of operations that move, pool, reduce or multiply data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxq8._compat import primitives
from jaxq8.kernels.pooling import max_pool, total
from jaxq8.regions.arithmetic import is_arithmetic
from jaxq8.regions.builder import Builder
from jaxq8.regions.candidates import DOTS, PLACED, POOLS, REDUCTIONS
from jaxq8.regions.graph import Graph
from jaxq8.regions.places import Places
from jaxq8.regions.steps import NONE, Copy, Fill, Pool, Product, Reduce, Take, Update


class DataSteps:
    """Adds such steps to a program while it is made."""

    def __init__(self, graph: Graph, places: Places) -> None:
        self.graph, self.places = graph, places
        self.builder: Builder = places.builder

    def emit(self, eqn: Any, out: Any) -> bool:
        """Adds the steps of an equation; False if it is another kind of equation."""
        p = eqn.primitive
        if p in POOLS:
            self._pool(eqn, out)
        elif p in REDUCTIONS:
            self._reduce(eqn, out)
        elif p in DOTS:
            self._product(eqn, out)
        elif p in PLACED:
            self._placed(eqn, out)
        elif p is primitives.concatenate_p:
            self._concatenate(eqn, out)
        elif p is primitives.transpose_p:
            self._transpose(eqn, out)
        elif p is primitives.pad_p:
            self._pad(eqn, out)
        else:
            return False
        return True

    def _concatenate(self, eqn: Any, out: Any) -> None:
        home = self.places.home(out)
        for number, operand in enumerate(eqn.invars):
            part, source = self.places.part(eqn, number), self.places.tensor(operand)
            if not self.builder.is_same(part, source):
                self.places.add(Copy(source, part))
        assert home == self.places.tensors[out]

    def _placed(self, eqn: Any, out: Any) -> None:
        """A part that is read or written at a place that is found in the run."""
        operands, starts = eqn.invars[: PLACED[eqn.primitive]], eqn.invars[PLACED[eqn.primitive] :]
        tensors = [self.places.tensor(v) for v in operands]
        if len(operands) == 1:
            source, found = self._begun(tensors[0], out.aval.shape, starts)
            self.places.add(Take(source, self.places.home(out), found))
            return
        # A copy that is updated; `Builder` leaves the copy out where nobody reads the original afterwards.
        home = self.places.own_home(out)
        self.places.add(Copy(tensors[0], home))
        target, found = self._begun(home, operands[1].aval.shape, starts)
        self.places.add(Update(tensors[1], target, found))

    def _begun(self, tensor: int, sizes: Sequence[int], starts: Sequence[Any]) -> tuple[int, tuple[int, ...]]:
        """A tensor cut along axes where it is known where a part of these sizes begins, and the starts along all axes."""
        shape, found, known = list(self.builder.shape(tensor)), [], []
        for axis, atom in enumerate(starts):
            most = shape[axis] - sizes[axis]
            number = 0 if most == 0 else self.graph.number(atom)
            known.append(0 if number is None else min(max(number, 0), most))
            found.append(self.places.one_number(atom) if number is None else NONE)
            if number is not None:
                shape[axis] = sizes[axis]
        return self.builder.cut(tensor, known, shape), tuple(found)

    def _pad(self, eqn: Any, out: Any) -> None:
        home = self.places.home(out)
        self.places.add(Fill(home, self.places.one_number(eqn.invars[1])))
        starts = [low for low, _, _ in eqn.params["padding_config"]]
        inside = self.builder.cut(home, starts, eqn.invars[0].aval.shape)
        self.places.add(Copy(self.places.tensor(eqn.invars[0]), inside))

    def _transpose(self, eqn: Any, out: Any) -> None:
        """A transposition: its operand may lie in its place already, and many steps read strided memory as it is."""
        readers = [self.graph.eqns[r] for r in self.graph.readers.get(out, ())]
        as_it_is = all(r.primitive in {*REDUCTIONS, *DOTS} or is_arithmetic(r) for r in readers)
        if out in self.places.tensors or out in self.graph.wanted or not as_it_is:
            source = self.builder.transposed(self.places.tensor(eqn.invars[0]), eqn.params["permutation"])
            home = self.places.home(out)
            if not self.builder.is_same(source, home):
                self.places.add(Copy(source, home))

    def _reduce(self, eqn: Any, out: Any) -> None:
        source, axes = self.places.tensor(eqn.invars[0]), eqn.params["axes"]
        sizes = [1 if axis in axes else n for axis, n in enumerate(self.builder.shape(source))] or [1]
        source = source if self.builder.shape(source) else self.builder.reshaped(source, (1,))
        home = self.places.home(out)
        self.places.add(Reduce(source, self.builder.expanded(home, sizes), REDUCTIONS[eqn.primitive]))

    def _product(self, eqn: Any, out: Any) -> None:
        """A product of matrices. What lies transposed in memory is read and written as it lies."""
        (contracted, batch) = eqn.params["dimension_numbers"]
        views, free = [], []
        for side, atom in enumerate(eqn.invars):
            tensor = self.places.tensor(atom)
            shape, first, (inner,) = self.builder.shape(tensor), batch[side], contracted[side]
            others = [axis for axis in range(len(shape)) if axis not in (*first, inner)]
            order = (*first, *others, inner) if side == 0 else (*first, inner, *others)
            view = self.builder.transposed(tensor, order)
            size = math.prod(shape[axis] for axis in others)
            ends = (size, shape[inner]) if side == 0 else (shape[inner], size)
            if len(others) > 1:
                view = self.places.dense(view)
            views.append(self.builder.expanded(view, (*(shape[axis] for axis in first), *ends)))
            free.append(others)
        shape = (*self.builder.shape(views[0])[:-1], self.builder.shape(views[1])[-1])
        home = self.places.home(out)
        direct = self.builder.is_dense(home) or all(len(others) == 1 for others in free)
        made = self.builder.expanded(home, shape) if direct else self.builder.temporary(shape, np.float32)
        a, b, dst = *views, made
        if self.builder.strides(dst)[-1] != 1 and self.builder.strides(dst)[-2] == 1:
            swapped = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
            b, a, dst = (self.builder.transposed(t, swapped) for t in (a, b, dst))
        self.places.add(Product(a, b, dst))
        if not direct:
            self.places.add(Copy(self.builder.reshaped(made, self.builder.shape(home)), home))

    def _pool(self, eqn: Any, out: Any) -> None:
        source, params = self.places.tensor(eqn.invars[0]), eqn.params
        if eqn.primitive is total.primitive:
            shape = self.builder.shape(source)
            window = shape[1:-1]
            ones, none = (1,) * len(window), (0,) * len(window)
            home = self.places.home(out)
            sums = home if self.builder.is_dense(home) else self.builder.temporary(out.aval.shape, np.int32)
            target = self.builder.reshaped(sums, (shape[0], *ones, shape[-1]))
            self.places.add(Pool(source, target, window, ones, ones, none, none))
            if sums != home:
                self.places.add(Copy(sums, home))
            return
        low, high = zip(*params["padding"][1:-1], strict=True)
        window, strides, dilation = (tuple(params[n][1:-1]) for n in ("window", "strides", "window_dilation"))
        lowest, border = None, NONE
        if eqn.primitive is max_pool.primitive:
            lowest = params["lowest"]
        elif any((*low, *high)):
            border = self.places.one_number(eqn.invars[1])
        home = self.places.home(out)
        self.places.add(Pool(source, home, window, strides, dilation, low, high, lowest, border))
