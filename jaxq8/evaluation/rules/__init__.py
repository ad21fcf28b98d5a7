"""What each JAX primitive means for eight-bit values; importing this package registers the rules."""

from jaxq8.evaluation.rules import activation, affine, contraction, control, layout, lookup, pooling

__all__ = ["activation", "affine", "contraction", "control", "layout", "lookup", "pooling"]
