"""Options that take several values: with commas, with spaces, or with both.

``--mean 123,117,104``, ``--mean 123 117 104`` and ``--mean "123, 117, 104"`` mean the same.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SEPARATOR = re.compile(r"\s*,\s*|\s+")
NUMBERS = re.compile(r"[-+.\de]*\d[-+.\de,]*,?")  # one number, or several with commas
# The options whose values, if spaces separate them, can be told from the words after them, above all from the model's name.
MORE = {
    "--input-shape": re.compile(r"\d+,?(:\w+)?"),
    "--platforms": re.compile(r"(cpu|tpu|cuda|rocm),?"),
    "--mean": NUMBERS,
    "--std": NUMBERS,
}


def add_list(
    group: Any, option: str, kind: Callable[[str], Any], what: str, example: str, default: Any = None, **more: Any
) -> None:  # fmt: skip
    """Declares an option that takes several values.

    Args:
      group: The parser or group of options that the option is added to.
      option: Its name.
      kind: A function that makes a value of its text; it raises ValueError for text that is not a value.
      what: What a value is, for messages: "a number".
      example: Values as they may be written, with commas.
      default: The list without the option.
      **more: Other arguments of `add_argument`.
    """
    group.add_argument(
        option, nargs="+", action=_Several, default=default, kind=kind, what=what, example=example, **more
    )


def add_files(group: Any, option: str, **more: Any) -> None:
    """Declares an option that takes several files; an existing file with a comma in its name is taken as one file."""
    group.add_argument(option, nargs="+", action=_Files, default=[], **more)


def split(text: str) -> list[str]:
    """The values of a list that is written with commas, with spaces, or with both; it may end with a comma."""
    return SEPARATOR.split(text.strip().removesuffix(",").strip())


def joined(arguments: Sequence[str]) -> list[str]:
    """A command line in which the values of each option in `MORE` are joined to one word, as argparse needs them.

    Otherwise argparse takes a list that begins with a minus for an option (``--mean -1,-2``), and it cannot know which words of
    ``--input-shape 1 64 net.py:Net`` belong to the list.
    """
    result: list[str] = []
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        result.append(option)
        pattern = MORE.get(option)
        words = []
        while pattern is not None and rest and pattern.fullmatch(rest[0]):
            words.append(rest.pop(0).removesuffix(","))
        if words and words[0].startswith("-"):
            result[-1] = f"{option}={','.join(words)}"
        elif words:
            result.append(",".join(words))
    return result


class _Several(argparse.Action):
    """Stores the values of an option as a list."""

    def __init__(self, *args: Any, kind: Callable[[str], Any], what: str, example: str, **more: Any):
        super().__init__(*args, **more)
        self._kind, self._what, self._example = kind, what, example

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [self._value(text) for text in split(" ".join(values))])

    def _value(self, text: str) -> Any:
        try:
            return self._kind(text)
        except (ValueError, argparse.ArgumentTypeError):
            name, spaced = self.option_strings[0], self._example.replace(",", " ")
            raise argparse.ArgumentError(
                self, f"{text!r} is not {self._what}; write {name} {self._example}, or {name} {spaced}"
            ) from None


class _Files(argparse.Action):
    """Stores the files of an option as a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        files: list[str] = []
        for value in values:
            files += _files(value)
        setattr(namespace, self.dest, files)


def _files(text: str) -> list[str]:
    """The files that one word names: several with commas, unless the word itself is a file or none of them exists."""
    if Path(text).exists():
        return [text]
    names = [name for name in re.split(r"\s*,\s*", text.strip()) if name]
    return names if any(Path(name).exists() for name in names) else [text]
