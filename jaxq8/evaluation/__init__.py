"""A traced function evaluated in eight bits.

In comes a traced call with its configuration and ranges; out come its results. `interpreter` walks the jaxpr, `rules` say what
each primitive means for `values`, `encoding` makes codes of real numbers, `measured_ranges` finds a range in the data, and
`probes` let others watch. Nothing here knows of files, of batches of calibration data, or of how `quantize` is called.
"""
