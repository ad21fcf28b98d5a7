"""Figures as short text."""

from __future__ import annotations

import math


def size(count: float) -> str:
    """A number of bytes in decimal units: ``"4.9 MB"``."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def count(number: float) -> str:
    """A large number in words: ``"385.2 million"``."""
    for limit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= limit:
            return f"{number / limit:.1f} {word}"
    return f"{number:,.0f}"


def decibels(value: float) -> str:
    """Decibels: ``"24.5 dB"``, or ``"no error"`` for infinitely many."""
    if math.isnan(value):
        return "not a number"
    return "no error" if value == math.inf else f"{value:.1f} dB"


def relative_error(sqnr_db: float) -> float:
    """The error that an SQNR in dB means: its root mean square over that of the signal, at most 1."""
    return float(min(10 ** (-sqnr_db / 20), 1.0)) if sqnr_db > 0 else 1.0


def error_share(sqnr_db: float) -> str:
    """The error that an SQNR in dB means, in words."""
    if sqnr_db <= 0:
        return "the error is as large as the signal, or larger"
    return f"the error is {100 * relative_error(sqnr_db):.2g} % of the signal (root mean square)"


def share(part: float, whole: float) -> str:
    """A share in percent; one that is nearly none or nearly all is not rounded to that."""
    if not part or not whole:
        return "0 %"
    if part == whole:
        return "100 %"
    percent = 100 * part / whole
    return "< 0.1 %" if percent < 0.1 else "> 99.9 %" if percent > 99.9 else f"{percent:.1f} %"
