"""What can go wrong for a user of the command line, as one line and an exit status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jaxq8.errors import QuantizationError

FAILED, MISUSED, STOPPED = 1, 2, 130
LONGEST = 400


class Failure(QuantizationError):
    """Something that was asked for could not be done: exit status 1."""


class Misuse(QuantizationError):
    """The command line itself is wrong: exit status 2, as argparse's own errors."""


def short(error: BaseException) -> str:
    """Type and message of a foreign exception in one line: messages of JAX and Flax have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def foreign(what: str, remedy: str) -> Iterator[None]:
    """Errors of the user's own code in the block become a `Failure` that says what was tried; ours pass as they are."""
    try:
        yield
    except (QuantizationError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise Failure(f"{what} failed ({short(error)}); {remedy}") from error
