"""``jaxq8 compare``: runs two models on the same inputs and measures how far their results are apart."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from jaxq8.calibration.compare import Report, compare
from jaxq8.cli import options as shared
from jaxq8.cli.inputs import Item, whole_batches
from jaxq8.cli.models import Model, fitted, load_model
from jaxq8.cli.photos import is_photo
from jaxq8.cli.problems import FAILED, Misuse, foreign
from jaxq8.cli.text import note, show_progress
from jaxq8.display.numbers import decibels
from jaxq8.transform import quantize


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "compare", help="measure how far the results of two models are apart",
        description="Runs A and B on the same inputs. Where A is float and B the .q8 of the same model, every site is measured "
        "too, and the report says where the error comes from.",
        epilog="examples:\n"
        "  jaxq8 compare net.safetensors net.q8 --model net.py:Net --input x.npy\n"
        "  jaxq8 compare net.py:load net.q8x --image photos/ --mean 127 --std 128 --at-least 20\n"
        "  jaxq8 compare net.py:load net.q8 --model net.py:load --image photos/ --html report.html --labels names.txt\n",
    )  # fmt: skip
    _add_models(command)
    shared.add_inputs(command)
    command.add_argument(
        "--plot", metavar="OUT.png", help="also write a picture of the report (needs matplotlib)"
    )
    shared.add_page(command, "the sites with their errors and histograms, and photos with the answers beside")
    command.add_argument(
        "--labels", metavar="FILE", help="names of the classes for --html: one a line, or a JSON list"
    )
    command.add_argument(
        "--at-least", type=float, metavar="DB", help="fail (status 1) if the SQNR of the results is lower"
    )
    shared.add_output_form(command)
    return command


def _add_models(command: argparse.ArgumentParser) -> None:
    """Declares A and B, and the model that they are weights of."""
    for name in ("A", "B"):
        command.add_argument(
            name.lower(), metavar=name, help=".q8x, MODULE:FUNCTION, or a file of weights of --model"
        )
    command.add_argument(
        "--model", metavar="MODULE:FUNCTION", help="the model of A or B where they are weights"
    )
    command.add_argument(
        "--keyword", action="append", default=[], metavar="NAME=JSON", help="keyword argument of --model"
    )


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    page = shared.page_path(options)
    if options.labels and page is None:
        raise Misuse("--labels names the classes of --html; give both")
    classes = shared.class_names(options.labels) if options.labels else None
    first, second = (_side(name, options) for name in (options.a, options.b))
    expected = next((m.exported.inputs for m in (first, second) if m.exported is not None), ())
    items = shared.reader_of(options, expected).items(shared.files_of(options))
    if not items:
        raise Misuse("nothing to compare on; give --image, --input or --text")
    photos = [item.name for item in items] if all(is_photo(Path(item.name)) for item in items) else None
    if classes is not None and photos is None:
        raise Misuse("--labels names the classes of photos; give all inputs with --image")
    report = _report(options, first, second, items, expected)
    if page is not None:
        title = f"{Path(options.a).name} beside {Path(options.b).name}"
        report.html(page, title=title, images=photos, classes=classes)
    print(_json(report) if options.json else _text(report))
    if options.plot:
        report.plot(options.plot)
    if options.at_least is not None and not report.output.sqnr_db >= options.at_least:
        note(
            f"jaxq8 compare: SQNR {decibels(report.output.sqnr_db)} is below the {options.at_least:g} dB of --at-least"
        )
        return FAILED
    return 0


def _side(name: str, options: argparse.Namespace) -> Model:
    """Loads A or B, which is a model by itself or a file of weights of --model."""
    if name.endswith(".q8x"):
        return load_model(name)
    if ":" in name and not Path(name).exists():
        return load_model(name, keywords=shared.keywords(options))
    if not options.model:
        raise Misuse(f"{name} holds weights alone; say of what with --model MODULE:FUNCTION")
    return load_model(options.model, name, shared.keywords(options))


def _report(
    options: argparse.Namespace, first: Model, second: Model, items: list[Item], expected: Any
) -> Report:
    """Compares the results of two models, and their sites if A is float and B quantized weights of a model."""
    shapes = shared.example_inputs(argparse.Namespace(input_shape=[]), items)
    first, second = fitted(first, shapes), fitted(second, shapes)
    with_sites = not first.quantized and second.quantized and second.exported is None
    exact, fast = _function(first), jax.jit(_function(second))
    if not with_sites:
        fast = _results_only(fast)
    with foreign(
        f"comparing {first.name} and {second.name}", "check that the inputs are those of both models"
    ):
        return compare(exact, fast, first.variables, whole_batches(items, options.batch, expected),
                       fast_variables=second.variables, progress=show_progress(options.quiet))  # fmt: skip


def _function(model: Model) -> Any:
    """The function of a model's variables and inputs, quantized if the model is."""
    if not model.quantized or model.exported:
        return model.fn
    return quantize(model.fn, model.config, ranges=model.ranges)


def _results_only(function: Any) -> Any:
    """The function without the settings by which `compare` would look for its sites in the other function."""
    return lambda *inputs: function(*inputs)


def _text(report: Report) -> str:
    """The report as a table; without sites only the lines about the results."""
    if report.sites:
        return str(report)
    *about_results, _about_sites = report.summary()
    return "\n".join(about_results)


def _json(report: Report) -> str:
    """The report as JSON, with the name of the site where the error jumps."""
    document = json.loads(report.to_json())
    jump = report.first_jump
    return json.dumps({**document, "first_jump": jump.name if jump else None}, indent=1)
