"""The rules: what each JAX primitive does with eight-bit values. Importing this package registers them."""

from jaxq8.evaluation.rules import activation, affine, contraction, control, layout, lookup, pooling

__all__ = ["activation", "affine", "contraction", "control", "layout", "lookup", "pooling"]
