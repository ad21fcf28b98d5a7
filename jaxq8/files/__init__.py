"""Writes models to disk and reads them back.

`weights_file` writes and reads ``.q8`` files (variables, ranges, configuration). `exported_program` does the same for ``.q8x``
files, which hold a program that runs without the model's code. Both use the same `container` (docs/FORMAT.md). `float_models`
reads other formats. Nothing here depends on how ranges or weights were found.
"""
