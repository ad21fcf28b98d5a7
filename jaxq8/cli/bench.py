"""``jaxq8 bench``: measures how long a call takes, in float and in eight bits, or for several models."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxq8.calibration.calibrate import calibrate
from jaxq8.cli import native
from jaxq8.cli import options as shared
from jaxq8.cli.lists import add_list
from jaxq8.cli.models import Model, fitted, load_model
from jaxq8.cli.problems import Misuse, foreign
from jaxq8.cli.text import note, print_json, show_progress
from jaxq8.display.text_table import table
from jaxq8.weights import quantize_weights


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "bench", help="measure the time of a call, float beside eight bits",
        description="Times calls of each model, taking turns; a MODULE:FUNCTION with float weights is measured in float and in "
        "eight bits; with static ranges also with weights packed for native regions, where there are some (--kernels xla or "
        "JAXQ8_NATIVE=off leaves that out). The fastest call counts: others shared the machine with something.",
        epilog="examples:\n"
        "  jaxq8 bench net.py:load --input-shape 1,224,224,3 --batches 1 8\n"
        "  jaxq8 bench net.py:load --input-shape 1,224,224,3 --native\n"
        "  jaxq8 bench net.q8x four_bits.q8x --json\n",
    )  # fmt: skip
    command.add_argument("models", nargs="+", metavar="MODEL", help="FILE.q8x or MODULE:FUNCTION")
    shared.add_weights(command)
    shared.add_config(command)
    shared.add_shape(command)
    add_list(command, "--batches", shared.positive, "a positive integer", "1,8", [1], metavar="N",
             help="sizes of batches: 1,8 or 1 8 (default 1)")  # fmt: skip
    command.add_argument(
        "--rounds", type=shared.positive, default=20, metavar="N", help="calls of each (default 20)"
    )
    command.add_argument(
        "--native", action="store_true",
        help="a float model also with static ranges, found on the inputs of the measurement, and natively",
    )  # fmt: skip
    shared.add_output_form(command)
    return command


@dataclasses.dataclass(frozen=True)
class Row:
    """The times of one model: milliseconds for each call, and seconds until its first result (without loading)."""

    model: str
    batch: int
    fastest_ms: float
    median_ms: float
    first_seconds: float


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    models = [_loaded(name, options) for name in options.models]
    exported = [model.exported for model in models if model.exported is not None]
    shapes = options.input_shape or (list(exported[0].inputs) if exported else [])
    if not shapes:
        raise Misuse("the shape of the inputs is not known; give --input-shape 1,224,224,3")
    rows = []
    for batch in options.batches:
        inputs = [_random(shape, batch) for shape in shapes]
        candidates = []
        for model in models:
            candidates += _forms(options, model, inputs)
        rows += _measured(candidates, inputs, batch, options)
    if options.json:
        print_json({"rounds": options.rounds, "rows": [dataclasses.asdict(row) for row in rows]})
    else:
        _show(rows)
    return 0


def _loaded(name: str, options: argparse.Namespace) -> Model:
    """A model of the command line; --params and --keyword are for those that are not exported."""
    if name.endswith(".q8x"):
        return load_model(name)
    return load_model(name, options.params, shared.keywords(options))


def _random(shape: Any, batch: int) -> np.ndarray[Any, Any]:
    """An input of normal numbers; for integers and booleans of ones, which are valid as indices and as masks."""
    sizes = (batch, *shape.shape[1:]) if shape.shape else ()
    if not all(isinstance(n, int) for n in sizes):
        raise Misuse(f"an input has the shape {shape.shape}; give --input-shape")
    if np.issubdtype(shape.dtype, np.floating):
        return np.random.default_rng(0).standard_normal(sizes, np.float32).astype(shape.dtype)
    return np.ones(sizes, shape.dtype)


def _forms(
    options: argparse.Namespace, model: Model, inputs: Sequence[Any]
) -> list[tuple[str, Callable[..., Any]]]:
    """The model as it is and, if it is float, also quantized: the name and the compiled function of each."""
    model = fitted(model, inputs)
    if model.quantized:
        name = model.name if model.exported else f"{model.name}, {model.source}"
        return [(name, model.runner()), *_native(options, model, name, inputs)]
    config = shared.config_of(options)
    with foreign(
        f"tracing {model.name}", "check that --params, --input-shape and --keyword belong to this model"
    ):
        # A correction would change numbers and no time.
        encoded = quantize_weights(model.fn, model.variables, *inputs, config=config, correct=None)
    made = dataclasses.replace(model, variables=encoded, config=config, quantized=True)
    forms = [(f"{model.name}, float", model.runner()), (f"{model.name}, {config.mode}", made.runner())]
    if not options.native:
        return forms
    name = f"{model.name}, {config.mode}, static"
    with foreign(f"calibrating {model.name}", "check that its results do not depend on the inputs' shapes"):
        batch = tuple(inputs) if len(inputs) > 1 else inputs[0]
        ranges = calibrate(model.fn, model.variables, [batch], config=config, progress=False)
    static = dataclasses.replace(made, ranges=ranges)
    return [*forms, (name, static.runner()), *_native(options, static, name, inputs)]


def _native(
    options: argparse.Namespace, model: Model, name: str, inputs: Sequence[Any]
) -> list[tuple[str, Callable[..., Any]]]:
    """A quantized model also with packed weights, if it can have native regions; a line says so or why not."""
    if options.kernels != "auto":
        return []
    packed, text = native.packed(model, inputs)
    if text and not options.quiet:
        note(f"jaxq8 bench: {name}: {text}")
    return [(f"{name}, native", packed.runner())] if native.packed_weights(packed.variables) else []


def _measured(
    candidates: list[tuple[str, Callable[..., Any]]],
    inputs: Sequence[Any],
    batch: int,
    options: argparse.Namespace,
) -> list[Row]:
    """The times of all candidates, which take turns in each round."""
    inputs = jax.device_put(tuple(inputs))
    first = [_seconds(call, inputs) for _, call in candidates]
    times: list[list[float]] = [[] for _ in candidates]
    for _ in tqdm(range(options.rounds), unit="round", disable=not show_progress(options.quiet)):
        for found, (_, call) in zip(times, candidates, strict=True):
            found.append(1e3 * _seconds(call, inputs))
    return [
        Row(name, batch, min(found), statistics.median(found), compiled)
        for (name, _), found, compiled in zip(candidates, times, first, strict=True)
    ]


def _seconds(call: Callable[..., Any], inputs: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(*inputs))
    return time.perf_counter() - start


def _show(rows: Sequence[Row]) -> None:
    base: dict[int, float] = {}
    for row in rows:
        base.setdefault(row.batch, row.fastest_ms)
    cells = [
        (r.model, str(r.batch), f"{r.fastest_ms:.2f}", f"{r.median_ms:.2f}", f"{base[r.batch] / r.fastest_ms:.2f}x",
         f"{r.first_seconds:.1f}")
        for r in rows
    ]  # fmt: skip
    header = ("model", "batch", "fastest, ms", "median, ms", "speed", "first call, s")
    print("\n".join(table(header, cells)))
