"""``jaxq8 explain``: shows what runs in eight bits, and why the rest does not."""

from __future__ import annotations

import argparse
from typing import Any

from jaxq8.cli import options as shared
from jaxq8.cli.models import fitted
from jaxq8.cli.problems import Failure, foreign
from jaxq8.transform import explain


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "explain", help="show what runs in eight bits, and why the rest does not",
        description="One row for each site of the model: shapes, representation, kernel, or the reason for float. Nothing is "
        "computed.",
        epilog="examples:\n"
        "  jaxq8 explain net.py:load --input-shape 1,224,224,3\n"
        "  jaxq8 explain net.py:Net --params net.q8 --input-shape 1,224,224,3 --json\n"
        "  jaxq8 explain net.py:load --input-shape 1,224,224,3 --html plan.html\n",
    )  # fmt: skip
    shared.add_model(command)
    shared.add_config(command)
    shared.add_shape(command)
    shared.add_inputs(command)
    shared.add_page(command, "the sites with their shares of arithmetic and weights")
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    page = shared.page_path(options)
    model = shared.model_of(options)
    if model.exported is not None:
        raise Failure(f"{model.name}: an exported program holds no plan; explain its MODULE:FUNCTION")
    items = shared.reader_of(options, options.input_shape).items(shared.files_of(options))
    inputs = shared.example_inputs(options, items, options.batch)
    model = fitted(model, inputs)
    config = model.config if model.config is not None else shared.config_of(options)
    with foreign(
        f"tracing {model.name}", "check that --params, --input-shape and --keyword belong to this model"
    ):
        plan = explain(model.fn, model.variables, *inputs, config=config, ranges=model.ranges)
    if page is not None:
        plan.html(page, title=model.name)
    print(plan.to_json() if options.json else plan)
    return 0
