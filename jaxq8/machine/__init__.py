"""Finds out which integer kernels are correct and fast on this machine.

`selfcheck` compares every fast form of a kernel with plain arithmetic on this processor. `tuning` times the forms that a model
could use and remembers the fastest. Nothing here changes what is computed, only which form computes it.
"""
