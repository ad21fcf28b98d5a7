"""The times of forms that `jaxq8.tune` measured on this machine. `kernels.select` prefers them to its table.

They hold for functions that are traced afterwards. Functions that are compiled already keep their forms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

from jaxq8.kernels.forms import Form

_choices: dict[Form, Mapping[str, float]] = {}
_noted: ContextVar[dict[Form, None] | None] = ContextVar("noted", default=None)


def use(choices: Mapping[Form, Mapping[str, float]]) -> None:
    """Replaces the measured times of this process; an empty mapping forgets them."""
    _choices.clear()
    _choices.update(choices)


def times(form: Form) -> Mapping[str, float] | None:
    """Microseconds of each kernel's form that was measured for these shapes; None if they were not."""
    noted = _noted.get()
    if noted is not None:
        noted[form] = None
        return None  # a new measurement is under way: earlier times must not hide a form from it
    return _choices.get(form)


@contextlib.contextmanager
def noting() -> Iterator[dict[Form, None]]:
    """Collects the forms that are asked for inside, in order, each once."""
    noted: dict[Form, None] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)
