"""The analysis of a function before it runs.

The input is a function with its arguments. The output is its jaxpr, its sites and their names, its weights, and facts about it:
which axis holds the examples, what a loop need not repeat, which slices are a decoder's cache, and where factors per channel
may move. Nothing here computes with codes, or depends on kernels or on measured ranges.
"""
