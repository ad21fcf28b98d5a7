"""Kernels: integer contractions on raw arrays of codes, one interface, several implementations."""

from __future__ import annotations

from typing import Any

from jaxq8.kernels.base import Form, Kernel
from jaxq8.kernels.dot import weight_sum
from jaxq8.kernels.reference import Reference
from jaxq8.kernels.select import candidate
from jaxq8.kernels.simulate import Simulate


class Xla:
    """The fast forms, in pure JAX."""

    name = "xla"

    def supports(self, form: Form) -> str | None:
        entry, refused = candidate(form)
        obstacle = Reference().supports(form)
        return obstacle or (None if entry else "; ".join(f"{name}: {why}" for name, why in refused))

    def run(self, form: Form, x: Any, w: Any, x_zero: Any) -> Any:
        entry, _refused = candidate(form)
        if entry is None:
            return Reference().run(form, x, w, x_zero)
        return entry.run(form, x, w, x_zero)


KERNELS: dict[str, Kernel] = {"reference": Reference(), "simulate": Simulate(), "xla": Xla()}

__all__ = ["KERNELS", "Kernel", "weight_sum"]
