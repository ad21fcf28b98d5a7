"""Look-ups in a packed table: the rows are read from the packed bytes, and the table is not unpacked for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8._compat import equation_context, primitives, user_source
from jaxq8.numerics.packed_tensor import unpacked_codes
from jaxq8.regions.equations import Equation


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup(Equation):
    """A gather of rows of a packed table. It reads the packed bytes and the positions.

    Attributes:
      rows: Where in the bytes each row of the table begins, (rows, 1).
      columns: How far from there each column lies.
    """

    rows: np.ndarray
    columns: np.ndarray

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        packed, positions = arrays
        params = {**self.params, "fill_value": -1, "slice_sizes": (1, 1)}
        with user_source(self.eqn), equation_context(self.eqn):
            # Rows begin nowhere else than at 0 or behind it, so that -1 stands for a row outside of the table.
            begins = lax.gather(jnp.asarray(self.rows), positions, **params)
            (axis,) = self.params["dimension_numbers"].offset_dims
            sizes = [1] * begins.ndim
            sizes[axis] = len(self.columns)
            codes = jnp.take(packed, jnp.maximum(begins, 0) + self.columns.reshape(sizes), mode="clip")
            return [jnp.where(begins < 0, jnp.zeros((), codes.dtype), codes)]


def looked_up(eqn: Equation, makers: Mapping[Any, Any]) -> Equation:
    """An equation that looks up rows in a packed table as one that reads the packed bytes; all others as they are."""
    if eqn.primitive is not primitives.gather_p:
        return eqn
    maker = makers.get(eqn.invars[0])
    if maker is None or maker.primitive is not unpacked_codes.primitive or not _reads_rows(eqn):
        return eqn
    moves, layout = maker.params["moves"], maker.params["layout"]
    if any(kind != "transpose" for kind, _ in moves) or len(layout.dims) != 2:
        return eqn
    order: tuple[int, ...] = (0, 1)
    for _, permutation in moves:
        order = tuple(order[axis] for axis in permutation)
    rows, columns = (layout.places(order.index(axis)) for axis in (0, 1))
    reads = (maker.invars[0], eqn.invars[1])
    return Lookup(eqn.eqn, reads, eqn.outvars, rows[:, None].astype(np.int32), columns.astype(np.int32))


def _reads_rows(eqn: Equation) -> bool:
    """Whether a gather reads whole rows of a table with two axes."""
    dimensions, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    plain = (
        dimensions.collapsed_slice_dims == dimensions.start_index_map == (0,)
        and len(dimensions.offset_dims) == 1
    )
    return len(shape) == 2 and plain and tuple(eqn.params["slice_sizes"]) == (1, shape[1])
