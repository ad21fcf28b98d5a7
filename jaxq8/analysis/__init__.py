"""What is known of a function before it runs.

In comes a function with its arguments; out come its jaxpr, its sites and their names, its weights, and facts about it: which
axis holds the examples, what a loop need not repeat, which slices are a decoder's cache, where factors per channel may move.
Nothing here computes with codes, and nothing knows of kernels or ranges that were found.
"""
