"""From the equations of a group to a `Program`: every equation becomes a step, or a part of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.epilogue import codes_of
from jaxq8.kernels.forms import ConvForm
from jaxq8.kernels.pooling import max_pool, total
from jaxq8.kernels.registry import contraction
from jaxq8.regions import expressions as ex
from jaxq8.regions.builder import Builder, Recipe
from jaxq8.regions.candidates import POOLS, VIEWS, is_elementwise, is_stored
from jaxq8.regions.graph import Graph
from jaxq8.regions.program import ENCODE, NONE, STORE, Contract, Copy, Elementwise, Fill, Pool, Program
from jaxq8.regions.trees import Trees
from jaxq8.regions.vectors import Vector
from jaxq8.regions.weights import padded_form

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """The packed weight of a contraction: the variable of its bytes, and what they were packed for."""

    packed: Any
    problem: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Region:
    """A program, how its arguments are computed, and which variables each of its results is."""

    program: Program
    recipes: tuple[Recipe, ...]
    outputs: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What a contraction's own step computes of its accumulator; fields as those of `program.Contract`."""

    mult: int = NONE
    offset: int = NONE
    residual: int = NONE
    rescale: int = NONE
    lo: float = -math.inf
    hi: float = math.inf


def lower(graph: Graph, weights: Mapping[int, Weight]) -> Region:
    """The region of a group of equations; `weights` has the packed weight of each contraction."""
    return _Lowering(graph, weights).region()


class _Lowering:
    """A program while it is made.

    Attributes:
      tensors: The tensor that holds, or is going to hold, a variable.
      results: Variables whose tensor is a result of the program, in order.
    """

    def __init__(self, graph: Graph, weights: Mapping[int, Weight]) -> None:
        self.graph, self.weights = graph, weights
        self.builder = Builder()
        self.trees = Trees(graph)
        self.tensors: dict[Any, int] = {}
        self.results: list[Any] = []
        self._vectors: dict[tuple[int, Shape], int] = {}
        self._kept: list[Vector] = []

    def region(self) -> Region:
        for index in self.graph.members:
            self._emit(index)
        for variable in self.graph.wanted:
            if variable not in self.results:
                self.results.append(variable)
                target = self.builder.result(variable.aval.shape, variable.aval.dtype)
                self._add(Copy(self._tensor(variable), target))
        names = tuple(tuple(self.graph.names[v]) for v in self.results)
        return Region(self.builder.build(), tuple(self.builder.recipes), names)

    def _add(self, step: Any) -> None:
        self.builder.steps.append(step)

    # Where variables are.

    def _tensor(self, variable: Any) -> int:
        """The tensor that holds a variable."""
        variable = self.graph.real(variable)
        if variable not in self.tensors:
            maker = self.graph.maker(variable)
            if maker is None:
                self.tensors[variable] = self._argument(variable)
            elif maker.primitive is primitives.slice_p:
                starts, steps = maker.params["start_indices"], maker.params["strides"]
                source = self._tensor(maker.invars[0])
                self.tensors[variable] = self.builder.cut(source, starts, variable.aval.shape, steps)
            elif maker.primitive in VIEWS:
                source = self._dense(self._tensor(maker.invars[0]))
                self.tensors[variable] = self.builder.reshaped(source, variable.aval.shape)
            else:
                raise AssertionError(f"{maker.primitive} was not stored")
        return self.tensors[variable]

    def _argument(self, variable: Any) -> int:
        if isinstance(variable, Literal):
            value = np.asarray(variable.val)
            return self.builder.argument(value.shape, value.dtype, lambda read: value)
        aval = variable.aval
        return self.builder.argument(aval.shape, aval.dtype, lambda read: read(variable), [variable])

    def _dense(self, tensor: int) -> int:
        """The tensor itself, or a dense copy."""
        if self.builder.is_dense(tensor):
            return tensor
        copy = self.builder.temporary(self.builder.shape(tensor), self.builder.dtype(tensor))
        self._add(Copy(tensor, copy))
        return copy

    def _one_number(self, atom: Any) -> int:
        """An argument of one int32 number, such as the code that fills borders."""
        if isinstance(atom, Literal):
            value = np.asarray(atom.val, np.int32).reshape(1)
            return self.builder.argument((1,), np.int32, lambda read: value)
        return self.builder.argument(
            (1,), np.int32, lambda read: jnp.reshape(read(atom), (1,)).astype(jnp.int32), [atom]
        )

    def _vector(self, vector: Vector, shape: Shape) -> int:
        """An argument that holds a vector in another shape."""
        key = (id(vector), shape)
        if key not in self._vectors:
            self._kept.append(vector)  # so that no other vector gets its id
            compute = vector.reshaped(shape).compute
            self._vectors[key] = self.builder.argument(shape, np.float32, compute, vector.variables)
        return self._vectors[key]

    def _home(self, variable: Any) -> int:
        """Where a step writes a variable: a result, a place inside of its only reader's input or join, or new memory."""
        if variable in self.tensors:
            return self.tensors[variable]
        aval = variable.aval
        if variable in self.graph.wanted:
            self.results.append(variable)
            home = self.builder.result(aval.shape, aval.dtype)
        else:
            home = self._home_in_reader(variable)
            if home is None:
                home = self.builder.temporary(aval.shape, aval.dtype)
        self.tensors[variable] = home
        return home

    def _home_in_reader(self, variable: Any) -> int | None:
        index = self.graph.only_reader(variable)
        if index is None:
            return None
        eqn = self.graph.eqns[index]
        if eqn.primitive is primitives.concatenate_p:
            places = [i for i, v in enumerate(eqn.invars) if self.graph.real(v) is variable]
            if len(places) == 1:
                return self._part(eqn, places[0])
        if eqn.primitive is contraction.primitive and self._is_filled(eqn) and self.graph.real(eqn.invars[0]) is variable:
            return self._inside(eqn, self._bordered(eqn, variable.aval.dtype))
        return None

    def _part(self, join: Any, number: int) -> int:
        """The part of a joined tensor that its operand of this number fills."""
        axis, shape = join.params["dimension"], join.invars[number].aval.shape
        starts = [0] * len(shape)
        starts[axis] = sum(v.aval.shape[axis] for v in join.invars[:number])
        return self.builder.cut(self._home(join.outvars[0]), starts, shape)

    # Borders.

    @staticmethod
    def _is_filled(eqn: Any) -> bool:
        """Whether the borders of a convolution are filled before it, because their code is not known to be 0."""
        form = eqn.params["form"]
        return padded_form(form, eqn.params["zero_border"]) is not form

    def _bordered(self, eqn: Any, dtype: Any) -> int:
        """New memory for the input of a convolution with its borders, filled with their code."""
        form = padded_form(eqn.params["form"], False)
        tensor = self.builder.temporary((form.batch, *form.spatial, form.c_in), dtype)
        self._add(Fill(tensor, self._one_number(eqn.invars[2])))
        return tensor

    def _inside(self, eqn: Any, bordered: int) -> int:
        form = eqn.params["form"]
        starts = (0, *(low for low, _ in form.padding), 0)
        inside = self.builder.cut(bordered, starts, (form.batch, *form.spatial, form.c_in))
        self._whole = {**getattr(self, "_whole", {}), inside: bordered}
        return inside

    # Steps.

    def _emit(self, index: int) -> None:
        """Adds the steps that store the results of an equation, if they are stored at all."""
        eqn = self.graph.eqns[index]
        p = eqn.primitive
        if is_stored(eqn) or p in VIEWS or p is primitives.slice_p:
            return
        (out,) = eqn.outvars
        if p in POOLS:
            self._pool(eqn, out)
        elif p is primitives.concatenate_p:
            home = self._home(out)
            for number, operand in enumerate(eqn.invars):
                part, source = self._part(eqn, number), self._tensor(operand)
                if not self.builder.is_same(part, source):
                    self._add(Copy(source, part))
            assert home == self.tensors[out]
        elif p is primitives.transpose_p:
            source = self.builder.transposed(self._tensor(eqn.invars[0]), eqn.params["permutation"])
            self._add(Copy(source, self._home(out)))
        elif p is primitives.pad_p:
            home = self._home(out)
            self._add(Fill(home, self._one_number(eqn.invars[1])))
            starts = [low for low, _, _ in eqn.params["padding_config"]]
            self._add(Copy(self._tensor(eqn.invars[0]), self.builder.cut(home, starts, eqn.invars[0].aval.shape)))
        elif self.graph.roots[out] is out:
            if p is contraction.primitive:
                self._contract(index, self._home(out), Epilogue())
            else:
                self._elementwise(eqn, out)

    def _pool(self, eqn: Any, out: Any) -> None:
        source, params = self._tensor(eqn.invars[0]), eqn.params
        if eqn.primitive is total.primitive:
            shape = self.builder.shape(source)
            window = shape[1:-1]
            ones, none = (1,) * len(window), (0,) * len(window)
            target = self.builder.reshaped(self._home(out), (shape[0], *ones, shape[-1]))
            self._add(Pool(source, target, window, ones, ones, none, none))
            return
        low, high = zip(*params["padding"][1:-1], strict=True)
        shapes = [tuple(params[name][1:-1]) for name in ("window", "strides", "window_dilation")]
        if eqn.primitive is max_pool.primitive:
            self._add(Pool(source, self._home(out), *shapes, low, high, lowest=params["lowest"]))
        else:
            border = NONE if not any((*low, *high)) else self._one_number(eqn.invars[1])
            self._add(Pool(source, self._home(out), *shapes, low, high, border=border))

    def _elementwise(self, eqn: Any, out: Any) -> None:
        """Stores what a tree computes: in the step of its last contraction if it is linear in that, else in its own step."""
        tree = self.trees.of_root(out)
        lo, hi = -math.inf, math.inf
        if eqn.primitive is codes_of.primitive:
            lo, hi = eqn.params["lo"], eqn.params["hi"]
        if not self._in_contraction(tree, out, lo, hi):
            self._own_step(tree, out, lo, hi)

    def _in_contraction(self, tree: ex.Tree, out: Any, lo: float, hi: float) -> bool:
        """Whether the last contraction of a tree could compute all of it."""
        form = ex.linear(tree)
        leaves = [] if form is None else [leaf for leaf, _ in form.coefficients.values()]
        made = [leaf for leaf in leaves if leaf.contraction is not None]
        shape = tuple(out.aval.shape)
        if form is None or not made or len(leaves) > 2 or any(leaf.shape != shape for leaf in leaves):
            return False
        main = max(made, key=lambda leaf: leaf.contraction or 0)
        factor = form.coefficients.pop(id(main.variable))[1]
        others = list(form.coefficients.values())
        mult, offset = factor.by_channel(shape[-1]), form.constant.by_channel(shape[-1])
        if mult is None or offset is None:
            return False
        residual, rescale = NONE, NONE
        for leaf, coefficient in others:
            if leaf.contraction is not None:
                residual = self._numbers_of(leaf, coefficient)
            elif not self._is_addend(leaf):
                return False
            else:
                residual = self._tensor(leaf.variable)
                if coefficient.number != 1:
                    if math.prod(coefficient.shape) != 1:
                        return False
                    one = coefficient.reshaped((1,))
                    rescale = self._vector(one, (1,))
                    mult, offset = mult / one, offset / one
            if residual == NONE:
                return False
        epilogue = Epilogue(
            self._vector(mult, shape[-1:]), self._vector(offset, shape[-1:]), residual, rescale, max(form.lo, lo),
            min(form.hi, hi) if form.hi >= lo else lo,
        )  # fmt: skip
        self._contract(main.contraction, self._home(out), epilogue)  # type: ignore[arg-type]
        return True

    def _is_addend(self, leaf: ex.Leaf) -> bool:
        return np.dtype(leaf.variable.aval.dtype).name in ("uint8", "int8", "float32")  # type: ignore[attr-defined]

    def _numbers_of(self, leaf: ex.Leaf, coefficient: Vector) -> int:
        """The real numbers of another contraction, whose accumulator is multiplied by `coefficient`; `NONE` if impossible."""
        mult = coefficient.by_channel(leaf.shape[-1])
        if mult is None:
            return NONE
        zero = Vector.of(np.zeros(leaf.shape[-1:], np.float32))
        home = self.builder.temporary(leaf.shape, np.float32)
        epilogue = Epilogue(self._vector(mult, leaf.shape[-1:]), self._vector(zero, leaf.shape[-1:]))
        self._contract(leaf.contraction, home, epilogue)  # type: ignore[arg-type]
        return home

    def _contract(self, index: int, home: int, epilogue: Epilogue) -> None:
        eqn = self.graph.eqns[index]
        form = padded_form(eqn.params["form"], eqn.params["zero_border"])
        source, weight = self._source(eqn), self.weights[index]
        shape = tuple(eqn.outvars[0].aval.shape)
        packed = weight.packed
        if packed not in self.tensors:
            self.tensors[packed] = self._argument(packed)
        target = home
        if self.builder.shape(home) != shape:
            target = self.builder.reshaped(home, shape) if self.builder.is_dense(home) else NONE
        if target == NONE:
            target = self.builder.temporary(shape, self.builder.dtype(home))
        residual = epilogue.residual
        if residual != NONE and self.builder.shape(residual) != shape:
            residual = self.builder.reshaped(self._dense(residual), shape)
        window: dict[str, Any] = {}
        if isinstance(form, ConvForm):
            low, high = zip(*form.padding, strict=True)
            window = {
                "kernel": form.kernel, "strides": form.strides, "dilation": form.rhs_dilation, "pad_low": low,
                "pad_high": high, "groups": form.groups,
            }  # fmt: skip
        fields = dataclasses.asdict(dataclasses.replace(epilogue, residual=residual))
        site = eqn.params["site"]
        self._add(
            Contract(source, self.tensors[packed], target, **fields, **window, problem=weight.problem, site=site)
        )
        if self.builder.shape(home) != shape and not self.builder.is_dense(home):
            self._add(Copy(self.builder.reshaped(target, self.builder.shape(home)), home))

    def _source(self, eqn: Any) -> int:
        """The input of a contraction, with its borders if these are filled beforehand."""
        source = self._tensor(eqn.invars[0])
        if not self._is_filled(eqn):
            return source
        whole = getattr(self, "_whole", {}).get(source)
        if whole is not None:
            return whole
        bordered = self._bordered(eqn, eqn.invars[0].aval.dtype)
        self._add(Copy(source, self._inside(eqn, bordered)))
        return bordered

    def _own_step(self, tree: ex.Tree, out: Any, lo: float, hi: float) -> None:
        """A tree as a step of its own."""
        home = self._home(out)
        shape = tuple(out.aval.shape)
        numbers: dict[int, int] = {}
        inputs: list[int] = []
        for leaf in ex.leaves(tree):
            if isinstance(leaf, Vector):
                tensor = self._vector(leaf, (1,) * (len(shape) - len(leaf.shape)) + leaf.shape)
                key = id(leaf)
            else:
                tensor = self._stored_leaf(leaf)
                if len(self.builder.shape(tensor)) < len(shape):
                    small = self.builder.shape(tensor)
                    tensor = self.builder.reshaped(self._dense(tensor), (1,) * (len(shape) - len(small)) + small)
                key = id(leaf.variable)
            numbers[key] = len(inputs)
            inputs.append(tensor)
        dtype = np.dtype(out.aval.dtype)
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            if lo > info.min:
                tree = ex.Node("max", (tree, Vector.of(lo)))
            if hi < info.max:
                tree = ex.Node("min", (tree, Vector.of(hi)))
        store = (STORE if dtype == np.float32 else ENCODE, 0)
        code = ex.instructions(tree, numbers, store)
        self._add(Elementwise(shape, tuple(inputs), (home,), code))

    def _stored_leaf(self, leaf: ex.Leaf) -> int:
        """The tensor of a leaf; the accumulator of a contraction is stored as int32 for it."""
        if leaf.contraction is None:
            return self._tensor(leaf.variable)
        if leaf.variable not in self.tensors:
            aval = leaf.variable.aval  # type: ignore[attr-defined]
            self.tensors[leaf.variable] = self.builder.temporary(aval.shape, np.int32)
            self._contract(leaf.contraction, self.tensors[leaf.variable], Epilogue())
        return self.builder.reshaped(self.tensors[leaf.variable], leaf.shape)
