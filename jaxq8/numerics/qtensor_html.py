"""A `QTensor` as the fragment of HTML that a notebook shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxq8.display.html.fragments import fragment, spikes
from jaxq8.display.numbers import size

if TYPE_CHECKING:
    from jaxq8.numerics.qtensor import QTensor

BINS = 64  # of the histogram of codes, at most one for each code
LARGEST = 1 << 22  # elements whose codes are counted; of a larger tensor, about as many that lie evenly in it


def qtensor_fragment(q: QTensor, known: bool) -> str:
    """A line of text, a table of what the tensor is, and where its numbers are known, a histogram of its codes.

    Args:
      q: The tensor.
      known: Whether its numbers are known, which they are not while it is traced.
    """
    if not hasattr(q.values, "dtype"):  # a tree of something else in the form of a QTensor
        return fragment([repr(q)])
    real = q.size * np.dtype(q.dtype).itemsize
    spec = q.spec
    rows = [
        ("codes", f"{q.values.dtype}, from {spec.qmin} to {spec.qmax}"),
        ("scales", f"{int(np.prod(q.scale.shape))}, of shape {list(q.scale.shape)}"),
        ("zero point", "0" if q.symmetric else "one for each scale"),
        ("bytes", f"{size(q.nbytes)}; {size(real)} as {np.dtype(q.dtype).name}"),
    ]
    if not known or not q.size:
        return fragment([repr(q)], ("", ""), rows)
    codes = np.asarray(q.values).ravel()[:: 1 + q.size // LARGEST]
    bins = min(BINS, spec.qmax - spec.qmin + 1)
    counts, _ = np.histogram(codes, bins, (spec.qmin, spec.qmax + 1))
    words = f"How often each code from {spec.qmin} to {spec.qmax} is used, on a logarithmic scale"
    return fragment([repr(q)], ("", ""), rows, spikes(counts.tolist(), words))
