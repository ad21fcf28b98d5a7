"""The kernels that a configuration can name: implementations of one interface for contractions of codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.kernels.barred import is_barred
from jaxq8.kernels.conv import pointwise_and_sums
from jaxq8.kernels.dot import dot_and_sums, rows_are_split, weight_sum
from jaxq8.kernels.forms import ConvForm, DotForm, Form, Kernel
from jaxq8.kernels.operand import Operand, checked_weight
from jaxq8.kernels.padding import border
from jaxq8.kernels.reference import Reference, plain
from jaxq8.kernels.select import candidate
from jaxq8.kernels.simulate import Simulate
from jaxq8.operations import is_collecting, operation


class Xla:
    """The fast forms, in pure JAX."""

    name = "xla"

    def supports(self, form: Form) -> str | None:
        entry, refused = candidate(form)
        obstacle = Reference().supports(form)
        if obstacle is not None:
            return obstacle
        return None if entry else "; ".join(f"{name}: {why}" for name, why in refused)

    def run(self, form: Form, x: Operand, w: Operand) -> Any:
        fill = border(form, x)
        return contraction(
            x.codes, checked_weight(w).codes, fill, form=form, zero_border=isinstance(fill, np.generic)
        )

    def run_with_sums(self, form: Form, x: Operand, w: Operand) -> tuple[Any, Any]:
        """The results of `run` and `weight_sum`, in one pass over the weights where the form allows it."""
        entry, _refused = candidate(form)
        codes, weights = x.codes, checked_weight(w).codes
        alone = is_collecting() or is_barred("weight_sum") or rows_are_split(codes)
        if entry is not None and not alone:
            if entry.name == "dot" and isinstance(form, DotForm) and not form.batch:
                return dot_and_sums(form, codes, weights)
            if entry.name == "pointwise" and isinstance(form, ConvForm):
                return pointwise_and_sums(form, codes, weights)
        return self.run(form, x, w), sums_of_weights(weights, form=form)


def _shape_of_result(x: Any, w: Any, *others: Any, form: Form, **static: Any) -> Any:
    if isinstance(form, ConvForm):
        shape: tuple[int, ...] = (form.batch, *form.out_spatial, form.c_out)
    else:
        shape = (form.batch, form.m, form.n) if form.batch else (form.m, form.n)
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _for_all_batches(
    operation: Any, arrays: Sequence[Any], has_batch: Sequence[bool], *, form: Form, **params: Any
) -> Any:
    """A contraction of several batches with one weight, as a contraction of more rows or images."""
    if list(has_batch) != [True, False, False] or (isinstance(form, DotForm) and form.batch):
        return NotImplemented
    x, w, fill = arrays
    count = x.shape[0]
    if isinstance(form, ConvForm):
        longer: Form = dataclasses.replace(form, batch=form.batch * count)
    else:
        longer = dataclasses.replace(form, m=form.m * count)
    made = operation.primitive.bind(
        jnp.reshape(x, (count * x.shape[1], *x.shape[2:])), w, fill, form=longer, **params
    )
    return jnp.reshape(made, (count, -1, *made.shape[1:]))


@operation(_shape_of_result, _for_all_batches)
def contraction(x: Any, w: Any, fill: Any, *, form: Form, zero_border: bool) -> Any:
    """The int32 sums of products of codes, by the fast form that suits.

    Args:
      x: Codes of the activation in canonical layout.
      w: Signed codes of the weight in canonical layout.
      fill: The code of borders and holes.
      form: Shapes, strides and padding.
      zero_border: Whether `fill` is known to be 0.
    """
    entry, _refused = candidate(form)
    if entry is None:
        return plain(form, x, w, fill, jnp.int32)
    return entry.run(form, x, w, np.int32(0) if zero_border else fill)


def _shape_of_sums(w: Any, *, form: Form) -> Any:
    if isinstance(form, DotForm):
        return jax.ShapeDtypeStruct((form.batch, 1, form.n) if form.batch else (form.n,), jnp.int32)
    return jax.ShapeDtypeStruct((form.c_out,), jnp.int32)


@operation(_shape_of_sums)
def sums_of_weights(w: Any, *, form: Form) -> Any:
    """The sum of the weight codes of each channel."""
    return weight_sum(form, w)


def run_with_sums(kernel: str, form: Form, x: Operand, w: Operand) -> tuple[Any, Any]:
    """The result of a kernel, and the sum of the weight codes of each channel (see `weight_sum`)."""
    chosen = KERNELS[kernel]
    if isinstance(chosen, Xla):
        return chosen.run_with_sums(form, x, w)
    return chosen.run(form, x, w), weight_sum(form, w.codes)


KERNELS: dict[str, Kernel] = {"reference": Reference(), "simulate": Simulate(), "xla": Xla()}

__all__ = ["KERNELS", "Kernel", "Operand", "run_with_sums", "weight_sum"]
