"""`main`: reads the arguments, runs one command, and turns any error into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from jaxq8._version import __version__
from jaxq8.cli import (
    bench,
    comparison,
    dequantize,
    difference,
    doctor,
    explain,
    inspection,
    quantize,
    run,
    selfchecking,
)
from jaxq8.cli.lists import joined
from jaxq8.cli.problems import FAILED, MISUSED, STOPPED, Misuse, short
from jaxq8.errors import QuantizationError

COMMANDS = (
    quantize,
    inspection,
    dequantize,
    explain,
    comparison,
    run,
    bench,
    difference,
    selfchecking,
    doctor,
)
WIDTH = 80  # width of descriptions, which are wrapped; the examples below them are not
EPILOG = """\
a model is named as MODULE:FUNCTION or FILE.py:FUNCTION: a function (variables, *inputs), a Flax module or its class, or a
function without arguments that returns a model or (model, variables).

exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped; of diff: 0 equal, 1 different, 2 trouble.

  jaxq8 quantize mymodel:Net --params net.safetensors --input-shape 1,224,224,3 --output net.q8x
  jaxq8 run net.q8x --image photos/ --mean 127 --std 128 --output results.jsonl
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; the module of each command adds its own parser to it."""
    top = argparse.ArgumentParser(
        prog="jaxq8", description="Eight-bit models from JAX functions: make, look into, compare and run them.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"jaxq8 {__version__}")
    top.add_argument("--traceback", action="store_true", help="show Python's traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        command = module.add(commands)
        command.set_defaults(execute=module.execute, parser=command)
        command.description = textwrap.fill(str(command.description), WIDTH)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``jaxq8``.

    Args:
      arguments: The command line without the program's name; default: the command line of the process.

    Returns:
      The exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped from the keyboard.

    Example:
      >>> main(["inspect", "model.q8"])  # doctest: +SKIP
      0
    """
    commands = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for the ends of a word; see docs/COMMAND_LINE.md
        _complete(commands)
    try:
        options = commands.parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as done:  # argparse has already printed the help or what is wrong
        return int(done.code or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        return _guarded(options)


def _complete(commands: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process; where argcomplete is missing, nothing is answered."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(commands)


def _guarded(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status; errors are reported in one line."""
    trouble = getattr(options, "trouble", FAILED)
    try:
        status = int(options.execute(options))
        sys.stdout.flush()
        return status
    except Misuse as error:
        return _report(options, str(error), MISUSED)
    except QuantizationError as error:
        return _report(options, str(error), trouble)
    except KeyboardInterrupt:
        return _report(options, "stopped", STOPPED)
    except BrokenPipeError:  # the program that reads the output, for example `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _report(
            options, f"{place}{error.strerror or error}; check the path and its permissions", trouble
        )
    except MemoryError as error:
        return _report(options, f"out of memory ({error}); use a smaller --batch", trouble)
    except Exception as error:  # even an unexpected error is reported in one line
        return _report(options, f"{short(error)}; run with `jaxq8 --traceback` and report it", trouble)


def _report(options: argparse.Namespace, message: str, status: int) -> int:
    if options.traceback:
        traceback.print_exc()
    print(f"jaxq8 {options.command}: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    """Prints a warning in one line, without the line of jaxq8's source that Python would show with it."""
    if issubclass(category, UserWarning):
        print(f"jaxq8: warning: {' '.join(str(message).split())}", file=sys.stderr)
