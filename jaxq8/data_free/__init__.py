"""Corrections of rounded weights that need no data.

The input is a function, its variables and their codes. The statistics that batch norms keep tell the mean and the spread of
what most contractions read. With them the codes of a channel are chosen so that their errors cancel, and the mean error that is
left is taken out of the vector after the contraction. The output is better codes and vectors of the same shapes, so a program
that runs with them is the same program. Nothing here runs in eight bits, or reads data.
"""
