"""``jaxq8 quantize``: makes a file a quarter of the size from a float model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq8.calibration.batch_norm_folding import fold_norms
from jaxq8.calibration.calibrate import calibrate
from jaxq8.calibration.compare import OutputErrors, compare
from jaxq8.cli import options as shared
from jaxq8.cli import targets
from jaxq8.cli.inputs import Item, whole_batches
from jaxq8.cli.lists import add_files, split
from jaxq8.cli.models import Model, fitted
from jaxq8.cli.problems import Failure, Misuse, foreign
from jaxq8.cli.text import note, print_json, show_progress
from jaxq8.config import Config
from jaxq8.display.intervals import decibel_text
from jaxq8.display.numbers import decibels, size
from jaxq8.errors import CalibrationWarning
from jaxq8.files.exported_program import PLATFORMS, export
from jaxq8.files.weights_file import save
from jaxq8.learning.recipe import Compressed
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.observers import observer_names
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Plan
from jaxq8.transform import explain, quantize
from jaxq8.weights import quantize_weights

# The error is measured on at most this many examples: calibration sets may be large, and a share of them is enough.
MEASURED = 64
CORRECT = {None: "auto", "none": None, "statistics": "statistics"}  # what --correct means
EPILOG = """\
modes:
  eightbit         integer codes stored and computed with: speed and size
  weights          codes stored, decoded at use, float arithmetic: size alone, least error
  weights_rounded  float32 stored, with at most 2^bits values a channel: for files that others compress
  round            float32 stored, results rounded to 2^bits steps: what activations lose
  simulate         float32 stored, operands and results go through their codes in float: research, gradients
  off              float32, nothing is quantized: comparison

examples:
  jaxq8 quantize net.py:Net --params net.safetensors --input-shape 1,224,224,3 --output net.q8
  jaxq8 quantize net.py:Net --params net.msgpack --calibrate photos/ --mean 127 --std 128 --size 224 --output net.q8x
  jaxq8 quantize net.py:Net --params net.msgpack --calibrate photos/ --size 224 --target 99% --output small.q8
  jaxq8 quantize bert.py:load --input-shape 1,128:int32 --bits 4 --group 32 --override '*/head/*' bits=8 --output bert.q8
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "quantize", help="make a quantized file from a float model",
        description="Encodes a model's weights and writes them as OUT.q8 (weights, to be run with the model's code) or "
        "OUT.q8x (weights and program, which run alone).",
        epilog=EPILOG,
    )  # fmt: skip
    shared.add_model(command)
    command.add_argument(
        "--output", required=True, metavar="OUT", help="file to write, .q8 or .q8x; replaced in one step"
    )
    shared.add_config(command)
    targets.add_targets(command)
    command.add_argument("--keep-norms", action="store_true",
                         help="leave batch norms as they are, instead of folding them into scales of weights")  # fmt: skip
    _add_inputs(command)
    shared.add_preparation(command)
    shared.add_output_form(command)
    return command


def _add_inputs(command: argparse.ArgumentParser) -> None:
    """Declares the options for the shape of the inputs, for their ranges, for the sample, and for the exported program."""
    group = command.add_argument_group(
        "inputs: their shape, ranges, and the sample that the error is measured on"
    )
    shared.add_shape(command)
    add_files(group, "--calibrate", metavar="FILE",
              help="photos, folders, .npy, .npz or .txt whose ranges become static")  # fmt: skip
    add_files(group, "--sample", metavar="FILE",
              help=f"inputs to measure the error on (default: the first {MEASURED} of --calibrate)")  # fmt: skip
    group.add_argument(
        "--ranges", metavar="FILE.json", help="static ranges by site, as `jaxq8 inspect --ranges` prints them"
    )
    group.add_argument(
        "--observer", default="minmax", choices=observer_names(), help="of --calibrate (default minmax)"
    )
    group.add_argument(
        "--batch", type=shared.positive, default=8, metavar="N", help="examples a call (default 8)"
    )
    group.add_argument(
        "--fixed-batch", type=shared.positive, metavar="N", help="(.q8x) a program for batches of N only"
    )
    group.add_argument("--platforms", type=split, default=list(PLATFORMS), metavar="NAMES",
                       help=f"(.q8x) what the program is for (default {','.join(PLATFORMS)})")  # fmt: skip


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    _check(options)
    config = shared.config_of(options)
    if options.target:
        config = dataclasses.replace(config, weights=Config().weights)  # the recipe chooses them
    reader = shared.reader_of(options, options.input_shape)
    calibration = reader.items(options.calibrate)
    sample = reader.items(options.sample) or calibration
    model = shared.model_of(options)
    if model.quantized:
        raise Misuse(f"{model.source or model.name} is quantized already; give the float weights")
    inputs = shared.example_inputs(options, sample, options.fixed_batch or 1)
    model = fitted(model, inputs)
    ranges = _ranges(options, model, config, calibration)
    with foreign(
        f"tracing {model.name}", "check that --params, --input-shape and --keyword belong to this model"
    ):
        found = (
            targets.reached(options, model, config, inputs, ranges, calibration) if options.target else None
        )
        if found is None:
            encoded, folded = _encoded(model, config, inputs, options.keep_norms, CORRECT[options.correct])
        else:
            encoded, folded, config = found.variables, 0, found.config
        plan = explain(model.fn, encoded, *inputs, config=config, ranges=ranges)
    _write(options, model, encoded, inputs, ranges, config)
    made = dataclasses.replace(model, variables=encoded, config=config, ranges=ranges, quantized=True)
    errors = _errors(options, model, made, sample[:MEASURED]) if sample else None
    sizes = {**_sizes(model, Path(options.output), config), "folded_norms": folded}
    _print(options, sizes, plan, errors, min(len(sample), MEASURED), found)
    if found is not None:
        targets.warn_of_miss(found)
    return 0 if found is None or found.met else 1


def _check(options: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before anything is loaded."""
    folder = Path(options.output).parent
    if not options.output.endswith((".q8", ".q8x")):
        raise Misuse(f"--output {options.output}: end it in .q8 (weights) or .q8x (weights and program)")
    if not folder.is_dir():
        raise Failure(f"--output {options.output}: there is no folder {folder}; make it first")
    if Path(options.output).is_dir():
        raise Failure(f"--output {options.output}: is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise Failure(f"--output {options.output}: {folder} is not writable; choose another folder")
    targets.check_targets(options)
    if unknown := set(options.platforms) - {*PLATFORMS, "rocm"}:
        raise Misuse(
            f"--platforms: {', '.join(sorted(unknown))} is unknown; known are {', '.join(PLATFORMS)}, rocm; "
            "write --platforms cpu,cuda"
        )


def _ranges(options: argparse.Namespace, model: Model, config: Config, items: list[Item]) -> Ranges | None:
    """The ranges of --ranges together with those of --calibrate; for a site in both, the range of the file."""
    given = _read_ranges(options.ranges) if options.ranges else None
    if not items:
        return given
    batches = whole_batches(items, options.batch)
    with (
        foreign(f"calibrating {model.name}", "check that --calibrate holds inputs of this model"),
        _files_of_batches(items, options.batch),
    ):
        found = calibrate(model.fn, model.variables, batches, config=config, observer=options.observer,
                          progress=show_progress(options.quiet))  # fmt: skip
    return Ranges({**found, **(given or {})})


@contextlib.contextmanager
def _files_of_batches(items: Sequence[Item], size: int) -> Iterator[None]:
    """Makes calibration warnings of the block, which speak of the number of a batch, name the inputs in that batch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        message = warning.message
        if isinstance(message, CalibrationWarning):
            message = f"--calibrate {_inputs_of(message, items, size)}: {message}"
        warnings.showwarning(message, warning.category, warning.filename, warning.lineno)


def _inputs_of(warning: CalibrationWarning, items: Sequence[Item], size: int) -> str:
    """The names of the inputs that a warning is about: one example, or a whole batch of this size."""
    start = warning.batch * size
    if warning.example is not None:
        start += warning.example
        size = 1
    names = [item.name for item in items[start : start + size]]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _read_ranges(path: str) -> Ranges:
    try:
        return Ranges.from_json(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # RangesError is a ValueError
        raise Failure(f"--ranges {path}: {error}") from error


def _encoded(
    model: Model, config: Config, inputs: tuple[Any, ...], keep_norms: bool, correct: Any
) -> tuple[Any, int]:
    """The variables with weights as codes, and the number of norms that were folded into their scales.

    In mode simulate the weights stay float in the file and are encoded when the file is run.
    """
    if config.mode == "simulate" or config.kernels == "simulate":
        return model.variables, 0
    encoded = quantize_weights(model.fn, model.variables, *inputs, config=config, correct=correct)
    if keep_norms or config.mode not in ("eightbit", "weights"):
        return encoded, 0
    folded = fold_norms(model.fn, encoded, *inputs, config=config)
    before, after = (jax.tree_util.tree_leaves(tree, is_leaf=is_encoded) for tree in (encoded, folded))
    # Folding a norm changes one weight, which has at least two axes, and some vectors.
    count = sum(old is not new and len(new.shape) > 1 for old, new in zip(before, after, strict=True))
    return folded, count


def _write(
    options: argparse.Namespace, model: Model, encoded: Any, inputs: tuple[Any, ...], ranges: Ranges | None, config: Config
) -> None:  # fmt: skip
    if options.output.endswith(".q8"):
        save(options.output, encoded, ranges=ranges, config=config)
        return
    with foreign(f"exporting {model.name}", "write a .q8 instead, which runs with the model's code"):
        export(options.output, model.fn, encoded, *inputs, ranges=ranges, config=config,
               platforms=options.platforms, symbolic_batch=False if options.fixed_batch else None)  # fmt: skip


def _errors(options: argparse.Namespace, model: Model, made: Model, items: list[Item]) -> OutputErrors:
    """The errors of the results of the quantized model, measured on the sample."""
    fast = jax.jit(quantize(model.fn, made.config, ranges=made.ranges))
    with foreign(f"running {model.name}", "check that the sample holds inputs of this model"):
        report = compare(
            model.fn, lambda *args: fast(*args), model.variables, whole_batches(items, options.batch),
            fast_variables=made.variables, progress=show_progress(options.quiet),
        )  # fmt: skip
    return report.output


def _sizes(model: Model, path: Path, config: Config) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves(model.variables)
    before = sum(np.size(x) * 4 for x in leaves if hasattr(x, "dtype"))
    after = path.stat().st_size
    sizes = {"output": str(path), "float_bytes": before, "file_bytes": after, "share": after / max(before, 1)}
    if config.mode == "weights_rounded":  # such files are made to be compressed
        sizes["gzip_bytes"] = _compressed(path)
    return sizes


def _compressed(path: Path) -> int:
    with path.open("rb") as file, tempfile.TemporaryFile() as packed:
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6) as target:
            shutil.copyfileobj(file, target)
        return packed.tell()


def _print(
    options: argparse.Namespace, sizes: dict[str, Any], plan: Plan, errors: OutputErrors | None, count: int,
    found: Compressed | None,
) -> None:  # fmt: skip
    if options.json:
        print_json({
            **sizes, "multiply_adds": plan.macs, "eight_bit_share": plan.eight_bit_share,
            "unused_overrides": plan.unused_overrides,
            **(targets.describe(found) if found else {}),
            "error": None if errors is None else {**dataclasses.asdict(errors), "examples": count},
        })  # fmt: skip
        return
    print(f"weights  {size(sizes['float_bytes'])} in float32 -> {size(sizes['file_bytes'])} "
          f"({sizes['share']:.1%}) in {sizes['output']}")  # fmt: skip
    if sizes["folded_norms"]:
        print(
            f"norms    {sizes['folded_norms']} folded into the scales of the weights (--keep-norms leaves them)"
        )
    if "gzip_bytes" in sizes:
        print(
            f"         {size(sizes['gzip_bytes'])} ({sizes['gzip_bytes'] / sizes['float_bytes']:.1%}) after gzip"
        )
    print(f"runs     {plan.summary()}")
    print(f"error    {_error_text(errors, count)}")
    if found is not None:
        targets.print_steps(found)
    for pattern in plan.unused_overrides:
        note(f"jaxq8: warning: --override {pattern} matches no site; `jaxq8 explain` lists them")


def _error_text(errors: OutputErrors | None, count: int) -> str:
    if errors is None:
        return "not measured; give --sample or --calibrate"
    text = f"SQNR {decibels(errors.sqnr_db)} {decibel_text(errors.sqnr_db_interval)}".rstrip()
    same = "" if errors.same_answer is None else f", same first answer {errors.same_answer}"
    return f"{text}, cosine {errors.cosine:.5f}{same}, of {count} example{'s' if count != 1 else ''}"
