"""What is learned of a model from data, and the repairs that follow without training.

In come the float function, its variables and batches of data; out come ranges (`calibrate`), reports of where the error comes
from (`compare`, `sensitivity`), or changed variables (`bias_correction`, `equalization`, `batch_norm_folding`). Nothing here
changes how a function is evaluated, and nothing knows of files.
"""
