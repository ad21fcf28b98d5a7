"""Where the variables of a region are: arguments, results, memory of their own, or a place inside of their reader's."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, primitives
from jaxq8.kernels.forms import ConvForm
from jaxq8.kernels.registry import contraction
from jaxq8.regions import expressions as ex
from jaxq8.regions.builder import Builder
from jaxq8.regions.candidates import VIEWS
from jaxq8.regions.graph import Graph
from jaxq8.regions.steps import Copy, Fill
from jaxq8.regions.weights import padded_form

Shape = tuple[int, ...]


class Places:
    """The tensors of a region's variables while its program is made.

    Attributes:
      builder: The program.
      tensors: The tensor that holds, or is going to hold, a variable.
      results: Variables whose tensor is a result of the program, in order.
      whole: The input of a convolution with its borders, by the tensor that is its inside.
    """

    def __init__(self, graph: Graph, builder: Builder) -> None:
        self.graph, self.builder = graph, builder
        self.tensors: dict[Any, int] = {}
        self.results: list[Any] = []
        self.whole: dict[int, int] = {}
        self._constants: dict[bytes, int] = {}
        self._numbers: dict[Any, int] = {}

    def add(self, step: Any) -> None:
        """Adds a step to the program."""
        self.builder.steps.append(step)

    def tensor(self, variable: Any) -> int:
        """The tensor that holds a variable."""
        variable = self.graph.real(variable)
        if variable not in self.tensors:
            maker = self.graph.maker(variable)
            if maker is None:
                self.tensors[variable] = self.argument(variable)
            elif maker.primitive is primitives.slice_p:
                starts, steps = maker.params["start_indices"], maker.params["strides"]
                source = self.tensor(maker.invars[0])
                self.tensors[variable] = self.builder.cut(source, starts, variable.aval.shape, steps)
            elif maker.primitive is primitives.transpose_p:
                source = self.tensor(maker.invars[0])
                self.tensors[variable] = self.builder.transposed(source, maker.params["permutation"])
            elif maker.primitive in VIEWS:
                source = self.dense(self.tensor(maker.invars[0]))
                self.tensors[variable] = self.builder.reshaped(source, variable.aval.shape)
            else:
                raise AssertionError(f"{maker.primitive} was not stored")
        return self.tensors[variable]

    def argument(self, variable: Any) -> int:
        if isinstance(variable, Literal):
            value = np.asarray(variable.val)
            return self.builder.argument(value.shape, value.dtype, lambda read: value)
        aval = variable.aval
        if aval.dtype == bool:
            return self.builder.argument(
                aval.shape, np.uint8, lambda read: jnp.asarray(read(variable)).astype(jnp.uint8), [variable]
            )
        return self.builder.argument(
            aval.shape, aval.dtype, lambda read: read(variable), [variable], variable
        )

    def dense(self, tensor: int) -> int:
        """The tensor itself, or a dense copy."""
        if self.builder.is_dense(tensor):
            return tensor
        copy = self.builder.temporary(self.builder.shape(tensor), self.builder.dtype(tensor))
        self.add(Copy(tensor, copy))
        return copy

    def one_number(self, atom: Any) -> int:
        """A tensor of one int32 number, such as the code that fills borders."""
        if self.graph.maker(self.graph.real(atom)) is not None:
            return self.builder.reshaped(self.tensor(atom), (1,))
        if isinstance(atom, Literal):
            value = np.asarray(atom.val, np.int32).reshape(1)
            return self.builder.argument((1,), np.int32, lambda read: value)
        if atom not in self._numbers:
            self._numbers[atom] = self.builder.argument(
                (1,), np.int32, lambda read: jnp.reshape(read(atom), (1,)).astype(jnp.int32), [atom],
                atom if atom.aval.dtype == np.int32 else None,
            )  # fmt: skip
        return self._numbers[atom]

    def constant(self, known: ex.Known, shape: Shape) -> int:
        """An argument that holds known numbers."""
        array = np.ascontiguousarray(known.array)
        content = array.dtype.kind.encode() + array.tobytes()
        if content not in self._constants:
            flat = array.reshape(-1)
            self._constants[content] = self.builder.argument(flat.shape, flat.dtype, lambda read: flat)
        return self.builder.reshaped(self._constants[content], shape)

    def home(self, variable: Any) -> int:
        """Where a step writes a variable: a result, a place inside of its only reader's input or join, or new memory."""
        if variable in self.tensors:
            return self.tensors[variable]
        inner = None if variable in self.graph.wanted else self._home_in_reader(variable)
        if inner is None:
            return self.own_home(variable)
        self.tensors[variable] = inner
        return inner

    def own_home(self, variable: Any) -> int:
        """A result if others read the variable, else new memory of its own."""
        shape, dtype = variable.aval.shape, stored_dtype(variable.aval.dtype)
        if variable not in self.tensors:
            wanted = variable in self.graph.wanted
            if wanted:
                self.results.append(variable)
            self.tensors[variable] = (self.builder.result if wanted else self.builder.temporary)(shape, dtype)
        return self.tensors[variable]

    def _home_in_reader(self, variable: Any) -> int | None:
        index = self.graph.only_reader(variable)
        if index is None:
            return None
        eqn = self.graph.eqns[index]
        if eqn.primitive is primitives.concatenate_p:
            places = [i for i, v in enumerate(eqn.invars) if self.graph.real(v) is variable]
            if len(places) == 1:
                return self.part(eqn, places[0])
        if eqn.primitive is primitives.transpose_p:
            return self.builder.transposed(
                self.home(eqn.outvars[0]), np.argsort(eqn.params["permutation"]).tolist()
            )
        if (
            eqn.primitive is contraction.primitive
            and self.is_filled(eqn)
            and self.graph.real(eqn.invars[0]) is variable
        ):
            return self.inside(eqn, self.bordered(eqn, variable.aval.dtype))
        return None

    def part(self, join: Any, number: int) -> int:
        """The part of a joined tensor that its operand of this number fills."""
        axis, shape = join.params["dimension"], join.invars[number].aval.shape
        starts = [0] * len(shape)
        starts[axis] = sum(v.aval.shape[axis] for v in join.invars[:number])
        return self.builder.cut(self.home(join.outvars[0]), starts, shape)

    @staticmethod
    def is_filled(eqn: Any) -> bool:
        """Whether the borders of a convolution are filled before it, because their code is not known to be 0."""
        form = eqn.params["form"]
        return padded_form(form, eqn.params["zero_border"]) is not form

    def bordered(self, eqn: Any, dtype: Any) -> int:
        """New memory for the input of a convolution with its borders, filled with their code."""
        form = padded_form(eqn.params["form"], False)
        assert isinstance(form, ConvForm)
        tensor = self.builder.temporary((form.batch, *form.spatial, form.c_in), dtype)
        self.add(Fill(tensor, self.one_number(eqn.invars[2])))
        return tensor

    def inside(self, eqn: Any, bordered: int) -> int:
        form = eqn.params["form"]
        starts = (0, *(low for low, _ in form.padding), 0)
        inside = self.builder.cut(bordered, starts, (form.batch, *form.spatial, form.c_in))
        self.whole[inside] = bordered
        return inside


def stored_dtype(dtype: Any) -> Any:
    """The dtype in which a region keeps numbers: truths are the numbers 1.0 and 0.0."""
    return np.float32 if np.dtype(dtype) == np.dtype(bool) else dtype
