"""Integer contractions on plain arrays of codes.

The input is two checked operands (`Operand`) and a canonical form (`forms`), which `canonical` makes from JAX's dimension
numbers. The output is an int32 accumulator. `select` decides which of the fast forms runs, and `registry` holds the kernels
that a configuration can name. Nothing here depends on scales, ranges, sites or jaxprs.
"""
