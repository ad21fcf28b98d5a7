"""How real numbers are represented by eight-bit codes.

This folder turns real numbers, with a choice of how to represent them (`Spec`), into codes with a scale and a zero point
(`QTensor`, `CodeBook`, `PackedTensor`). Ranges, roundings and observers are here because they decide which real number a code
stands for.
Nothing here depends on functions, jaxprs, sites or models.
"""
