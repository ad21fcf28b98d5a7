"""Cheap elementwise operations. XLA computes them again in each reader's loop, so their results are views of their inputs."""

from __future__ import annotations

from jaxq8._compat import primitives

ELEMENTWISE = {
    primitives.add_p, primitives.sub_p, primitives.mul_p, primitives.div_p, primitives.neg_p, primitives.max_p,
    primitives.min_p, primitives.abs_p, primitives.select_n_p, primitives.convert_element_type_p, primitives.clamp_p,
    primitives.copy_p,
}  # fmt: skip
