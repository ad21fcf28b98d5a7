"""Regions of eight-bit work as one call into oneDNN, by an extension that is compiled on first use.

What comes in is a region program, an array of words that says which contractions, loops, copies and pools run on which views,
and the arrays that it reads; what goes out are the arrays that it writes (`calls`). `library` finds oneDNN and says whether
there are native regions on this machine and why not, `build` compiles the sources in `src/`. Nothing here knows JAX's
primitives, scales, ranges, sites or plans: the words hold everything that the program does.
"""
