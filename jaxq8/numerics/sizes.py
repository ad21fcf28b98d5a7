"""Comparing sizes of which one may be a symbol: a batch size that `jax.export` leaves open."""

from __future__ import annotations

from typing import Any

from jaxq8._compat import InconclusiveSize


def certainly_less(small: Any, large: Any) -> bool:
    """Whether ``small < large`` is known: False if it depends on a symbolic batch size (`jax.export`)."""
    try:
        return bool(small < large)
    except InconclusiveSize:
        return False
