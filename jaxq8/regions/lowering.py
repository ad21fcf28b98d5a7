"""From the equations of a group to a `Program`: every equation becomes a step, or a part of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.epilogue import codes_of
from jaxq8.kernels.forms import ConvForm
from jaxq8.kernels.registry import contraction
from jaxq8.regions import expressions as ex
from jaxq8.regions.arithmetic import clipped
from jaxq8.regions.builder import Builder, Recipe
from jaxq8.regions.candidates import VIEWS, is_stored, takes_first
from jaxq8.regions.data_steps import DataSteps
from jaxq8.regions.element_steps import ElementSteps
from jaxq8.regions.functions import applied
from jaxq8.regions.graph import Graph
from jaxq8.regions.instructions import leaves
from jaxq8.regions.linear import Channels, channels_of, linear
from jaxq8.regions.loop_steps import Body, LoopSteps
from jaxq8.regions.places import Places, stored_dtype
from jaxq8.regions.prepared import Loopable
from jaxq8.regions.program import Program
from jaxq8.regions.steps import NONE, Contract, Copy
from jaxq8.regions.trees import Trees
from jaxq8.regions.weights import Weight, padded_form


@dataclasses.dataclass(frozen=True)
class Region:
    """A program, how its arguments are computed, and which variables each of its results is."""

    program: Program
    recipes: tuple[Recipe, ...]
    outputs: tuple[tuple[Any, ...], ...]


# What a contraction computes of its accumulator is a `Contract` whose tensors are filled in by `_contract`: this one, nothing.
ACCUMULATOR = Contract(NONE, NONE, NONE)


def lower(graph: Graph, weights: Mapping[int, Weight], loops: Mapping[int, Loopable]) -> Region:
    """The region of a group of equations.

    Args:
      graph: The group.
      weights: The packed weight of each contraction, by its position.
      loops: The loop of each scan, by its position.
    """
    return _Lowering(graph, weights, loops).region()


def _body(loop: Loopable) -> Body:
    """The program of a loop's body."""
    body = loop.body
    wanted = [
        v for v in dict.fromkeys(v for v in body.results if not isinstance(v, Literal)) if v in body.makers
    ]
    graph = Graph(body.eqns, loop.members, wanted, body.makers, body.consts)
    return _Lowering(graph, body.weights, body.loops).body(body.results)


class _Lowering:
    """A program while it is made."""

    def __init__(self, graph: Graph, weights: Mapping[int, Weight], loops: Mapping[int, Loopable]) -> None:
        self.graph, self.weights, self.loops = graph, weights, loops
        self.builder = Builder()
        self.trees = Trees(graph)
        self.places = Places(graph, self.builder)
        self.elements = ElementSteps(self.places, self._accumulator)
        self.data = DataSteps(graph, self.places)
        self.loop_steps = LoopSteps(self.places, _body)

    def region(self) -> Region:
        self._steps()
        names = tuple(tuple(self.graph.names[v]) for v in self.places.results)
        return Region(self.builder.build(), tuple(self.builder.recipes), names)

    def body(self, results: Sequence[Any]) -> Body:
        """The program of a loop's body: each of `results` is a result of its own."""
        self._steps()
        free = {v: number for number, v in enumerate(self.places.results)}
        order = []
        for atom in results:
            variable = self.graph.real(atom)
            number = None if isinstance(variable, Literal) else free.pop(variable, None)
            if number is None:
                number = self.builder.results
                is_literal = isinstance(variable, Literal)
                source = self.places.argument(variable) if is_literal else self.places.tensor(variable)
                target = self.builder.result(atom.aval.shape, atom.aval.dtype)
                self.places.add(Copy(source, target))
            order.append(number)
        return Body(self.builder.build(), tuple(self.builder.recipes), tuple(order))

    def _steps(self) -> None:
        for index in self.graph.members:
            self._emit(index)
        for variable in self.graph.wanted:
            if variable not in self.places.results:
                self.places.results.append(variable)
                target = self.builder.result(variable.aval.shape, stored_dtype(variable.aval.dtype))
                self.places.add(Copy(self.places.tensor(variable), target))

    def _by_channel(self, trees: Sequence[ex.Tree], channels: Channels) -> list[int]:
        """Trees for which `Channels.has` holds as tensors of one number for each channel, computed in one step."""
        tensors = [self._stored_vector(tree, channels.count) for tree in trees]
        missing = [i for i, tensor in enumerate(tensors) if tensor == NONE]
        for i in missing:
            tensors[i] = self.builder.temporary((channels.count,), np.float32)
        if missing:
            homes = [tensors[i] for i in missing]
            self.elements.add_flat([trees[i] for i in missing], homes, (channels.count,))
        return tensors

    def _stored_vector(self, tree: ex.Tree, channels: int) -> int:
        """The tensor of a tree that is nothing but a stored vector of this length; `NONE` for all other trees."""
        if not isinstance(tree, ex.Leaf) or tree.is_first or math.prod(tree.shape) != channels:
            return NONE
        if tree.variable.aval.dtype != np.float32:
            return NONE
        return self.builder.reshaped(self.places.dense(self.places.tensor(tree.variable)), (channels,))

    def _emit(self, index: int) -> None:
        """Adds the steps that store the results of an equation, if they are stored at all."""
        eqn = self.graph.eqns[index]
        p = eqn.primitive
        if is_stored(eqn) or p in VIEWS or (p is primitives.slice_p and not takes_first(eqn)):
            return
        if index in self.loops:
            self.loop_steps.add(self.loops[index])
            return
        (out,) = eqn.outvars
        if self.data.emit(eqn, out):
            return
        if self.graph.roots[out] is out:
            if p is contraction.primitive:
                self._contract(index, self.places.home(out), ACCUMULATOR)
            else:
                self._elementwise(eqn, out)

    def _elementwise(self, eqn: Any, out: Any) -> None:
        """Stores what a tree computes: in the step of its last contraction if it is linear in that, else in its own step."""
        tree = self.trees.of_root(out)
        lo, hi = -math.inf, math.inf
        if eqn.primitive is codes_of.primitive:
            lo, hi = eqn.params["lo"], eqn.params["hi"]
        if out.aval.dtype in (bool, np.int32) or not self._in_contraction(tree, out, lo, hi):
            self._own_step(tree, out, lo, hi)

    def _in_contraction(self, tree: ex.Tree, out: Any, lo: float, hi: float) -> bool:
        """Whether the last contraction of a tree could compute all of it."""
        made = [leaf for leaf in leaves([tree]) if isinstance(leaf, ex.Leaf) and leaf.contraction is not None]
        if not made:
            return False
        main = max(made, key=lambda leaf: leaf.contraction or 0)
        channels = channels_of(main)
        if channels is None or main.shape != tuple(out.aval.shape):
            return False
        form, epilogue = linear(tree, channels), ACCUMULATOR
        if form is None:
            found = applied(tree, channels, self.trees.multiple)
            if found is None:
                return False
            rescale, shift = self._by_channel([found.scale, found.shift], Channels(1, 1))
            form = found.form
            epilogue = dataclasses.replace(ACCUMULATOR, function=found.function, rescale=rescale, shift=shift)
        elif form.is_clipped and out.aval.dtype == jnp.float32:
            return False  # the library's clips make numbers of NaN
        if len(form.coefficients) > 2 or any(
            leaf.shape != main.shape for leaf, _ in form.coefficients.values()
        ):
            return False
        factor = form.coefficients.pop(id(main.variable))[1]
        offset, residual = form.constant, NONE
        for leaf, coefficient in form.coefficients.values():
            if leaf.contraction is not None:
                residual = self._numbers_of(leaf, coefficient)
            elif np.dtype(leaf.variable.aval.dtype).name in ("uint8", "int8", "float32"):
                if ex.known(coefficient) != 1:
                    if math.prod(ex.shape_of(coefficient)) != 1 or epilogue.function:
                        return False
                    # The sum is made in steps of the residual's codes, and then rescaled.
                    (rescale,) = self._by_channel([coefficient], Channels(1, 1))
                    epilogue = dataclasses.replace(epilogue, rescale=rescale)
                    factor, offset = (ex.Node("div", (t, coefficient)) for t in (factor, offset))
                residual = self.places.tensor(leaf.variable)
            if residual == NONE:
                return False
        mult, start = self._by_channel([factor, offset], channels)
        epilogue = dataclasses.replace(
            epilogue, mult=mult, offset=start, residual=residual, lo=max(form.lo, lo), hi=min(form.hi, hi)
        )
        self._contract(main.contraction, self.places.home(out), epilogue)  # type: ignore[arg-type]
        return True

    def _numbers_of(self, leaf: ex.Leaf, coefficient: ex.Tree) -> int:
        """The real numbers of another contraction, whose accumulator is multiplied by `coefficient`; `NONE` if impossible."""
        channels = channels_of(leaf)
        if channels is None or not channels.has(coefficient):
            return NONE
        mult, offset = self._by_channel([coefficient, ex.ZERO], channels)
        home = self.builder.temporary(leaf.shape, np.float32)
        epilogue = dataclasses.replace(ACCUMULATOR, mult=mult, offset=offset)
        self._contract(leaf.contraction, home, epilogue)  # type: ignore[arg-type]
        return home

    def _contract(self, index: int, home: int, epilogue: Contract) -> None:
        """Adds the step of a contraction, with what it computes of its accumulator."""
        eqn = self.graph.eqns[index]
        form = padded_form(eqn.params["form"], eqn.params["zero_border"])
        source, weight = self._source(eqn), self.weights[index]
        shape = tuple(eqn.outvars[0].aval.shape)
        packed = weight.packed
        if packed not in self.places.tensors:
            self.places.tensors[packed] = self.places.argument(packed)
        target = home
        if self.builder.shape(home) != shape:
            target = self.builder.reshaped(home, shape) if self.builder.is_dense(home) else NONE
        if target == NONE:
            target = self.builder.temporary(shape, self.builder.dtype(home))
        residual = epilogue.residual
        if residual != NONE and self.builder.shape(residual) != shape:
            residual = self.builder.reshaped(self.places.dense(residual), shape)
        window: dict[str, Any] = {}
        if isinstance(form, ConvForm):
            low, high = zip(*form.padding, strict=True)
            window = {
                "kernel": form.kernel, "strides": form.strides, "dilation": form.rhs_dilation, "pad_low": low,
                "pad_high": high, "groups": form.groups,
            }  # fmt: skip
        step = dataclasses.replace(
            epilogue, src=source, weights=self.places.tensors[packed], dst=target, residual=residual, problem=weight.problem,
            site=eqn.params["site"], **window,
        )  # fmt: skip
        self.places.add(step)
        if self.builder.shape(home) != shape and not self.builder.is_dense(home):
            self.places.add(Copy(self.builder.reshaped(target, self.builder.shape(home)), home))

    def _source(self, eqn: Any) -> int:
        """The input of a contraction, with its borders if these are filled beforehand."""
        source = self.places.tensor(eqn.invars[0])
        if not self.places.is_filled(eqn):
            return source
        whole = self.places.whole.get(source)
        if whole is not None:
            return whole
        bordered = self.places.bordered(eqn, eqn.invars[0].aval.dtype)
        self.places.add(Copy(source, self.places.inside(eqn, bordered)))
        return bordered

    def _own_step(self, tree: ex.Tree, out: Any, lo: float, hi: float) -> None:
        """A tree as a step of its own."""
        dtype = np.dtype(out.aval.dtype)
        if dtype.itemsize == 1 and dtype.kind in "iu":
            info = np.iinfo(dtype)  # codes saturate there anyway
            lo, hi = lo if lo > info.min else -math.inf, hi if hi < info.max else math.inf
            tree = clipped(ex.as_float(tree), lo, hi)
        home = self.places.home(out)
        shape = tuple(out.aval.shape) or (1,)
        self.elements.add([tree], [self.builder.expanded(home, shape)], shape)

    def _accumulator(self, leaf: ex.Leaf) -> int:
        """The stored int32 result of a leaf's contraction."""
        if leaf.variable not in self.places.tensors:
            self.places.tensors[leaf.variable] = self.builder.temporary(leaf.variable.aval.shape, np.int32)
            self._contract(leaf.contraction, self.places.tensors[leaf.variable], ACCUMULATOR)  # type: ignore[arg-type]
        return self.places.tensors[leaf.variable]
