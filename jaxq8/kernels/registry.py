"""The kernels that a configuration can name: implementations of one interface for contractions of codes."""

from __future__ import annotations

from typing import Any

from jaxq8.kernels.barred import is_barred
from jaxq8.kernels.conv import pointwise_and_sums
from jaxq8.kernels.dot import dot_and_sums, rows_are_split, weight_sum
from jaxq8.kernels.forms import ConvForm, DotForm, Form, Kernel
from jaxq8.kernels.operand import Operand, checked_weight
from jaxq8.kernels.padding import border
from jaxq8.kernels.reference import Reference
from jaxq8.kernels.select import candidate
from jaxq8.kernels.simulate import Simulate


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
        entry, _refused = candidate(form)
        if entry is None:
            return Reference().run(form, x, w)
        return entry.run(form, x.codes, checked_weight(w).codes, border(form, x))

    def run_with_sums(self, form: Form, x: Operand, w: Operand) -> tuple[Any, Any]:
        """The results of `run` and `weight_sum`, in one pass over the weights where the form allows it."""
        entry, _refused = candidate(form)
        codes, weights = x.codes, checked_weight(w).codes
        if entry is not None and not is_barred("weight_sum") and not rows_are_split(codes):
            if entry.name == "dot" and isinstance(form, DotForm) and not form.batch:
                return dot_and_sums(form, codes, weights)
            if entry.name == "pointwise" and isinstance(form, ConvForm):
                return pointwise_and_sums(form, codes, weights)
        return self.run(form, x, w), weight_sum(form, weights)


def run_with_sums(kernel: str, form: Form, x: Operand, w: Operand) -> tuple[Any, Any]:
    """The result of a kernel, and the sum of the weight codes of each channel (see `weight_sum`)."""
    chosen = KERNELS[kernel]
    if isinstance(chosen, Xla):
        return chosen.run_with_sums(form, x, w)
    return chosen.run(form, x, w), weight_sum(form, w.codes)


KERNELS: dict[str, Kernel] = {"reference": Reference(), "simulate": Simulate(), "xla": Xla()}

__all__ = ["KERNELS", "Kernel", "Operand", "run_with_sums", "weight_sum"]
