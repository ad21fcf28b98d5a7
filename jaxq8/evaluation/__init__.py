"""The evaluation of a traced function in eight bits.

The input is a traced call with its configuration and ranges; the output is its results. `interpreter` walks the jaxpr, `rules`
say what each primitive does with `values`, `encoding` turns real numbers into codes, `measured_ranges` finds a range in the
data, and `probes` let other code watch the values. Nothing here depends on files, on batches of calibration data, or on how
`quantize` is called.
"""
