"""Compares sizes that may be symbolic, as the batch size of a program that `jax.export` makes for any batch."""

from __future__ import annotations

from typing import Any

from jaxq8._compat import InconclusiveSize


def certainly_less(small: Any, large: Any) -> bool:
    """Whether ``small < large`` for certain: False if that depends on a symbolic size."""
    try:
        return bool(small < large)
    except InconclusiveSize:
        return False
