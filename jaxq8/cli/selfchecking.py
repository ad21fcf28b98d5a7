"""``jaxq8 selfcheck``: checks whether the integer forms compute exactly on this machine, and says which of them are used."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax

from jaxq8.cli import options as shared
from jaxq8.cli.problems import FAILED
from jaxq8.cli.text import print_json
from jaxq8.machine.selfcheck import selfcheck


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "selfcheck", help="check that this machine computes exactly",
        description="Compares every fast integer form with plain arithmetic on this machine, and says which form is used "
        "for what. The exit status is 1 if one is wrong; JAXQ8_BARRED_FORMS=NAME,... then keeps models from using it.",
    )  # fmt: skip
    shared.add_output_form(command)
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    report = selfcheck()
    if options.json:
        print_json({
            "ok": report.ok, "processor": report.processor, "platform": jax.default_backend(), "jax": jax.__version__,
            "failed": report.failed, "barred": report.barred, "used": report.used,
            "checks": [dataclasses.asdict(check) for check in report.checks],
        })  # fmt: skip
    elif options.quiet:
        print(report.summary())
    else:
        print(report)
    return 0 if report.ok else FAILED
