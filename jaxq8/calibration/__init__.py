"""Measures a model on data, and repairs its variables without training.

Given the float function, its variables and batches of data, this folder finds ranges (`calibrate`), reports where the error
comes from (`compare`, `sensitivity`), or returns changed variables (`bias_correction`, `equalization`, `batch_norm_folding`).
Nothing here changes how a function is evaluated, and nothing depends on files.
"""
