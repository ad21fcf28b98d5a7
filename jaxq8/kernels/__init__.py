"""Integer contractions on plain arrays of codes.

In come two checked operands (`Operand`) and a canonical form (`forms`; `canonical` makes one from JAX's dimension numbers);
out comes an int32 accumulator. `select` decides which of the fast forms runs, `registry` holds the kernels that a
configuration can name. Nothing here knows of scales, ranges, sites or jaxprs.
"""
