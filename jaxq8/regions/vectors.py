"""Small arrays that regions read: how each is computed from arrays outside of the region, before the call."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

Read = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Vector:
    """A small array as a recipe.

    Attributes:
      shape: Its shape.
      compute: Makes the array, given a function that reads variables outside of the region.
      number: The number that all elements are equal to, if it is known while tracing.
      positive: Whether no element is negative or zero (one may be NaN).
      variables: What `compute` reads.
    """

    shape: tuple[int, ...]
    compute: Callable[[Read], Any]
    number: float | None = None
    positive: bool = False
    variables: tuple[Any, ...] = ()

    @classmethod
    def of(cls, array: Any) -> Vector:
        """A known array or number."""
        array = np.asarray(array, np.float32)
        same = array.size > 0 and bool((array == array.reshape(-1)[0]).all())
        return cls(array.shape, lambda read: array, float(array.reshape(-1)[0]) if same else None)

    @classmethod
    def read(cls, variable: Any) -> Vector:
        """The array of a variable, in float32."""
        shape = tuple(variable.aval.shape)
        return cls(shape, lambda read: jnp.asarray(read(variable), jnp.float32), variables=(variable,))

    def reshaped(self, shape: tuple[int, ...]) -> Vector:
        """The same elements in another shape."""
        return dataclasses.replace(self, shape=shape, compute=lambda read: jnp.reshape(self.compute(read), shape))

    def _with(self, other: Vector, function: Callable[[Any, Any], Any]) -> Vector:
        shape = np.broadcast_shapes(self.shape, other.shape)
        if self.number is not None and other.number is not None:
            with np.errstate(all="ignore"):
                number = np.float32(function(np.float32(self.number), np.float32(other.number)))
            return Vector.of(np.full(shape, number))
        return Vector(
            shape,
            lambda read: function(self.compute(read), other.compute(read)),
            variables=(*self.variables, *other.variables),
        )

    def __add__(self, other: Vector) -> Vector:
        if other.number == 0 and np.broadcast_shapes(self.shape, other.shape) == self.shape:
            return self
        return self._with(other, operator.add)

    def __sub__(self, other: Vector) -> Vector:
        return self._with(other, operator.sub)

    def __mul__(self, other: Vector) -> Vector:
        if other.number == 1 and np.broadcast_shapes(self.shape, other.shape) == self.shape:
            return self
        return self._with(other, operator.mul)

    def __truediv__(self, other: Vector) -> Vector:
        return self._with(other, operator.truediv)

    def by_channel(self, channels: int) -> Vector | None:
        """One number for each channel of the last axis; None if the array varies along another axis."""
        last = self.shape[-1] if self.shape else 1
        if any(n != 1 for n in self.shape[:-1]) or last not in (1, channels):
            return None

        def compute(read: Read) -> Any:
            return jnp.broadcast_to(jnp.reshape(self.compute(read), (-1,)), (channels,))

        return dataclasses.replace(self, shape=(channels,), compute=compute)
