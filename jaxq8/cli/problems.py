"""Errors for users of the command line, each of which becomes one line and an exit status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jaxq8.errors import QuantizationError

FAILED, MISUSED, STOPPED = 1, 2, 130
LONGEST = 400  # characters of a foreign message that are shown


class Failure(QuantizationError):
    """What the user asked for could not be done: exit status 1."""


class Misuse(QuantizationError):
    """The command line itself is wrong: exit status 2, as for argparse's own errors."""


def short(error: BaseException) -> str:
    """Type and message of another library's exception in one line; messages of JAX and Flax have many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def foreign(what: str, remedy: str) -> Iterator[None]:
    """Turns errors of the user's own code in the block into a `Failure` that says what was tried.

    jaxq8's own errors pass unchanged.
    """
    try:
        yield
    except (QuantizationError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise Failure(f"{what} failed ({short(error)}); {remedy}") from error
