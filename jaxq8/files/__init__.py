"""What is written to disk and read back.

`weights_file` writes and reads ``.q8`` (variables, ranges, configuration), `exported_program` ``.q8x`` (a program that runs
without the model's code), `float_models` reads other formats. All of it lies in one `container` (docs/FORMAT.md). Nothing here
knows how ranges or weights were found.
"""
