"""The options of ``jaxq8 quantize`` that ask for a result (--target) or a correction, and what they do with a model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from jaxq8.cli.inputs import Item, whole_batches
from jaxq8.cli.models import Model
from jaxq8.cli.problems import Misuse, foreign
from jaxq8.cli.text import note, show_progress
from jaxq8.config import Config
from jaxq8.learning.recipe import Compressed, compress
from jaxq8.numerics.ranges import Ranges

NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(dB|%|bytes|kB|MB|GB)")
UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
SECONDS = 180.0


def add_targets(command: argparse.ArgumentParser) -> None:
    """Declares the options."""
    group = command.add_argument_group("what is to be reached (docs/COMMAND_LINE.md tells how)")
    group.add_argument("--target", action="append", type=target, default=[], metavar="30dB|99%|4MB",
                       help="try steps, measured on --calibrate, until the error of the results, the share of float's answers, "
                       "or the size of the weights is reached; may be repeated for several of these")  # fmt: skip
    group.add_argument("--time", type=_seconds, metavar="SECONDS",
                       help=f"(--target) begin no step that would end later (default {SECONDS:.0f})")  # fmt: skip
    group.add_argument("--resume", metavar="FOLDER",
                       help="(--target) keep every step there; the same command goes on from it")  # fmt: skip
    group.add_argument("--correct", choices=["statistics", "none"],
                       help="correct codes and biases by the statistics of norms, without data (the default where weights are "
                       "rounded to the nearest code), or round each weight by itself")  # fmt: skip


def target(text: str) -> tuple[str, float | int]:
    """Reads a target: the argument of `compress` that it means, and its value."""
    match = NUMBER.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no target; write 30dB, 99%, 400kB or 4MB")
    number, unit = float(match[1]), match[2]
    if unit == "dB":
        return "target_db", number
    if unit == "%":
        return "target_agreement", number / 100
    return "target_bytes", int(number * UNITS[unit])


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def check_targets(options: argparse.Namespace) -> None:
    """Refuses options that contradict each other, before anything is loaded.

    Raises:
      Misuse: They do; the message names them.
    """
    if options.correct == "statistics" and options.mode not in ("eightbit", "weights"):
        raise Misuse(f"--correct: mode {options.mode} stores no codes; use --mode eightbit or weights")
    if not options.target:
        for name in ("time", "resume"):
            if getattr(options, name) is not None:
                raise Misuse(f"--{name}: is of --target; add a target, such as --target 30dB")
        return
    kinds = [kind for kind, _ in options.target]
    if len(kinds) > len(set(kinds)):
        raise Misuse("--target: two of one kind; give one in dB, one in % and one in bytes at most")
    if options.mode not in ("eightbit", "weights"):
        raise Misuse(f"--target: mode {options.mode} stores no codes; use --mode eightbit or weights")
    for name, given in (("group", options.group is not None), ("keep-norms", options.keep_norms)):
        if given:
            raise Misuse(f"--{name}: with --target the steps decide that; leave one of both out")
    if set(kinds) != {"target_bytes"} and not options.calibrate:
        raise Misuse(
            "--target: dB and % are measured on data; give --calibrate FILES, or a target in bytes alone"
        )


def reached(
    options: argparse.Namespace, model: Model, config: Config, inputs: tuple[Any, ...], ranges: Ranges | None,
    items: Sequence[Item],
) -> Compressed:  # fmt: skip
    """What `compress` makes of a model for the targets that the options name."""
    batches = list(whole_batches(items, options.batch)) if items else None
    with foreign(f"compressing {model.name}", "check that --calibrate holds inputs of this model"):
        return compress(
            model.fn, model.variables, *inputs, batches=batches, bits=options.bits, seconds=options.time or SECONDS,
            resume=options.resume, progress=show_progress(options.quiet), config=config, ranges=ranges,
            **dict(options.target),
        )  # fmt: skip


def describe(found: Compressed) -> dict[str, Any]:
    """What --json says of the steps."""
    return {
        "met": found.met,
        "ended": found.ended,
        "measured_on": found.measured_on,
        "steps": list(found.steps.rows),
    }


def print_steps(found: Compressed) -> None:
    """Prints the table of steps, and on stderr whether a target was missed."""
    print(f"steps    {found.ended}; measured on {found.measured_on}")
    for line in str(found.steps).splitlines():
        print(f"         {line}")


def warn_of_miss(found: Compressed) -> None:
    """Says on stderr that a target was missed."""
    if not found.met:
        note(f"jaxq8: the target is not met ({found.ended}); the file holds the best that was reached")
