"""Fast forms that must not be used on this machine, because they failed the self-check or the user has barred them.

A form is barred for functions that are traced afterwards. Functions that are compiled already keep the form.
"""

from __future__ import annotations

import os

from jaxq8.errors import SpecError

VARIABLE = "JAXQ8_BARRED_FORMS"
# The forms of contractions (`kernels.select.FORMS`), and the other places where a fast form replaces a plain one.
NAMES = (
    "dot", "pointwise", "multiply-adds", "native", "patches", "blocks", "rows", "max_pool", "sum_pool", "weight_sum", "encode",
    "region",
)  # fmt: skip
BARRED = f"barred by the self-check or {VARIABLE}"

_barred: set[str] = set()


def bar_forms(*names: str) -> None:
    """Makes functions that are traced from now on in this process avoid these forms, and no others.

    Without names nothing is barred. The environment variable JAXQ8_BARRED_FORMS (names separated by commas) bars forms as well.

    Args:
      *names: Names from the table that `jaxq8.machine.selfcheck` prints: "dot", "patches", ..., "encode", and "region" for
        native regions.

    Raises:
      SpecError: A name is unknown; the message lists the known ones.

    Example:
      >>> q8.bar_forms("native", "rows")
      >>> q8.bar_forms()  # none any more
    """
    _check(names, "bar_forms")
    _barred.clear()
    _barred.update(names)


def is_barred(name: str) -> bool:
    """Whether a form must not be used."""
    return name in _barred or name in _from_environment()


def barred_forms() -> tuple[str, ...]:
    """All barred forms, in the order of the table."""
    return tuple(name for name in NAMES if is_barred(name))


def _from_environment() -> tuple[str, ...]:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    _check(names, VARIABLE)
    return names


def _check(names: tuple[str, ...], where: str) -> None:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise SpecError(
            f"{where}: unknown form {', '.join(map(repr, unknown))}; known are {', '.join(NAMES)}"
        )
