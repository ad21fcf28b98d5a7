"""The options that several commands share, and functions that turn their values into models, inputs and configurations."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq8.cli.inputs import Item, Reader, imported, stacked
from jaxq8.cli.lists import add_files, add_list, split
from jaxq8.cli.models import Model, load_model
from jaxq8.cli.photos import Photos
from jaxq8.cli.problems import Failure, Misuse
from jaxq8.config import MODES, Config
from jaxq8.numerics.spec import Spec


def add_model(
    command: argparse.ArgumentParser, what: str = "MODULE:FUNCTION or FILE.py:FUNCTION; see jaxq8 --help"
) -> None:
    """Declares the options for the model and its weights."""
    command.add_argument("model", metavar="MODEL", help=what)
    add_weights(command)


def add_weights(command: argparse.ArgumentParser) -> None:
    """Declares the options for the file of the weights and for keyword arguments of the model."""
    command.add_argument(
        "--params", metavar="FILE", help="weights: .safetensors, .npz, .msgpack, an orbax folder, or a .q8"
    )
    command.add_argument("--keyword", action="append", default=[], metavar="NAME=JSON",
                         help="keyword argument of every call of the model, as train=false; may be repeated")  # fmt: skip


def add_inputs(command: argparse.ArgumentParser, batch: int = 1) -> None:
    """Declares the options for inputs and their preparation."""
    group = command.add_argument_group("inputs")
    add_files(group, "--image", metavar="PHOTO", help="photos, or folders of photos")
    add_files(group, "--input", metavar="X.npy",
              help=".npy, or .npz with the model's inputs in order; the first axis counts examples")  # fmt: skip
    add_files(group, "--text", metavar="FILE.txt", help="one text a line; needs --preprocess")
    group.add_argument(
        "--batch", type=positive, default=batch, metavar="N", help=f"examples a call (default {batch})"
    )
    add_preparation(command)


def add_preparation(command: argparse.ArgumentParser) -> None:
    """Declares the options that say how photos and texts become arrays."""
    group = command.add_argument_group("preparation of photos and texts")
    group.add_argument("--preprocess", metavar="MODULE:FUNCTION",
                       help="of a photo (PIL.Image) to an array with no batch axis, or of a list of texts")  # fmt: skip
    add_list(group, "--size", positive, "a positive integer", "224,224", metavar="N",
             help="height and width of photos: 224, or 224,320")  # fmt: skip
    add_list(group, "--mean", float, "a number", "123,117,104", [0.0], metavar="M",
             help="subtracted from the 0..255 of photos; one, or one a channel: 123,117,104 or 123 117 104")  # fmt: skip
    add_list(
        group, "--std", float, "a number", "58,57,57", [1.0], metavar="S", help="divides after that; likewise"
    )
    group.add_argument(
        "--channels", choices=["rgb", "bgr"], default="rgb", help="order of the channels (default rgb)"
    )


def add_shape(command: argparse.ArgumentParser) -> None:
    """Declares the option for the shapes of the inputs, for users without example inputs."""
    command.add_argument("--input-shape", action="append", type=shape, default=[], metavar="1,224,224,3[:DTYPE]",
                         help="shape with the axis of the batch, and dtype, of one input, with commas or spaces; "
                         "repeat it for more")  # fmt: skip


def add_config(command: argparse.ArgumentParser) -> None:
    """Declares the options that say what becomes eight bits, and how."""
    group = command.add_argument_group("quantization")
    group.add_argument(
        "--mode",
        choices=MODES,
        default="eightbit",
        help="default eightbit; docs/COMMAND_LINE.md explains them",
    )
    group.add_argument("--bits", type=int, choices=range(2, 9), metavar="2..8",
                       help="width of weights, in mode round of results (default 8; of quantize --target 4)")  # fmt: skip
    group.add_argument(
        "--group", type=positive, metavar="N", help="one scale for each N neighbouring weights of a channel"
    )
    group.add_argument(
        "--rounding", default="half_even", metavar="NAME", help="a registered rounding (default half_even)"
    )
    group.add_argument("--attention", action="store_true", help="also quantize products of two activations")
    group.add_argument("--kernels", default="auto", metavar="NAME",
                       help="auto (float where eight bits do not pay), xla (never float), reference, simulate")  # fmt: skip
    group.add_argument("--override", nargs="+", action="append", default=[], metavar="PATTERN FIELD=VALUE",
                       help="other settings for sites whose name matches: '*/head/*' mode=off, op:dot bits=4,mode=weights; "
                       "fields: mode, bits, rounding, kernels; may be repeated")  # fmt: skip


def add_output_form(command: argparse.ArgumentParser) -> None:
    """Declares the options for the form of the output: --json for programs, and --quiet."""
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    command.add_argument("--quiet", action="store_true", help="no progress bars and no notes")


def add_page(command: argparse.ArgumentParser, what: str) -> None:
    """Declares the option for a page that shows the results in a browser."""
    command.add_argument("--html", metavar="OUT.html", help=f"also write a page for a browser: {what}")


def page_path(options: argparse.Namespace) -> str | None:
    """The file of --html, which is checked before anything is computed; None without the option."""
    if options.html is None:
        return None
    path = Path(options.html)
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise Misuse(f"--html {path}: {wrong}; name a file, such as report.html, in an existing folder")
    return str(path)


def class_names(path: str) -> list[str]:
    """The names of classes in the file of --labels.

    Raises:
      Failure: The file is not readable as text, or as the JSON list that it begins as.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else text.strip().splitlines()
    except (OSError, ValueError) as error:
        raise Failure(
            f"--labels {path}: cannot be read ({error}); give one name a line, or a JSON list"
        ) from error
    return [str(name).strip() for name in found]


def positive(text: str) -> int:
    """Reads a positive integer of the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def shape(text: str) -> jax.ShapeDtypeStruct:
    """Reads the shape and dtype of an input: ``1,224,224,3`` or ``1,64:int32``."""
    sizes, _, dtype = text.partition(":")
    try:
        return jax.ShapeDtypeStruct(tuple(int(n) for n in split(sizes)), np.dtype(dtype or "float32"))
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not like 1,224,224,3 or 1,64:int32 ({error})"
        ) from None


def keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of the model that --keyword gives."""
    found = {}
    for entry in options.keyword:
        name, equals, value = entry.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals or not name.isidentifier():
            raise Misuse(f"--keyword {entry}: write NAME=JSON, such as train=false")
    return found


def model_of(options: argparse.Namespace) -> Model:
    """The model that the options name."""
    return load_model(options.model, options.params, keywords(options))


def config_of(options: argparse.Namespace) -> Config:
    """The configuration that the options describe."""
    overrides = tuple(_override(entry, options) for entry in options.override)
    changes = _bits(options.bits or 8, options.group, options.mode)
    return Config(
        mode=options.mode, rounding=options.rounding, attention=options.attention, kernels=options.kernels,
        overrides=overrides, **changes,
    )  # fmt: skip


def _bits(bits: int, group: int | None, mode: str) -> dict[str, Any]:
    """The changes of a configuration that --bits and --group mean: of activations in mode round, else of weights."""
    if mode == "round":
        return {"activations": Spec(bits=bits)}
    if group:
        return {"weights": Spec(bits=bits, symmetric=True, granularity="group", group=group)}
    return {"weights": Spec(bits=bits, symmetric=True, granularity="channel")}


def _override(entry: Sequence[str], options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    # A comma before FIELD= or at the end of a word separates fields; any other comma belongs to the pattern.
    words = [part for word in entry for part in re.split(r"\s*,\s*(?=\w+=)", word.removesuffix(","))]
    return words[0], _changes(words[0], words[1:], options)


def _changes(pattern: str, fields: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or name not in ("mode", "bits", "rounding", "kernels"):
            raise Misuse(
                f"--override {pattern} {field}: write FIELD=VALUE; fields are mode, bits, rounding, kernels"
            )
        if name == "bits" and value not in "2345678":
            raise Misuse(f"--override {pattern} bits={value}: bits are 2 to 8")
        changes |= _bits(int(value), options.group, options.mode) if name == "bits" else {name: value}
    if not changes:
        raise Misuse(f"--override {pattern}: says nothing to change; add FIELD=VALUE, such as mode=off")
    return changes


def reader_of(options: argparse.Namespace, expected: Sequence[Any] = ()) -> Reader:
    """The reader that turns files into examples as the options say; `expected` has the shapes of the inputs, if known."""
    size: Any = None
    if len(options.size or ()) > 2:
        raise Misuse("--size: give one number, or two, height and width, such as --size 224,320")
    if options.size:
        size = (options.size[0], options.size[-1])
    elif expected and len(expected[0].shape) == 4:
        size = expected[0].shape[1:3]
    if size is not None and not all(isinstance(n, int) for n in size):
        size = None
    for name in ("mean", "std"):
        if len(getattr(options, name)) not in (1, 3):
            raise Misuse(f"--{name}: give one number, or three, one a channel, such as --{name} 123,117,104")
    photos = Photos(size, tuple(options.mean), tuple(options.std), options.channels == "bgr")
    return Reader(photos, imported(options.preprocess))


def files_of(options: argparse.Namespace) -> list[str]:
    """All files that --image, --input and --text name."""
    for file in options.input:
        if not file.endswith((".npy", ".npz")):
            raise Misuse(
                f"--input {file}: arrays come as .npy or .npz; use --image for photos and --text for texts"
            )
    for file in options.text:
        if not file.endswith(".txt"):
            raise Misuse(f"--text {file}: texts come as .txt, one a line")
    return [*options.image, *options.input, *options.text]


def example_inputs(options: argparse.Namespace, items: Sequence[Item], batch: int = 1) -> tuple[Any, ...]:
    """Inputs to trace the model with: those of --input-shape, or inputs like the first of the given files.

    Raises:
      Misuse: Neither shapes nor files are given.
      InputError: The first file cannot be read.
    """
    if options.input_shape:
        return tuple(options.input_shape)
    if not items:
        raise Misuse(
            "the shape of the inputs is not known; give --input-shape 1,224,224,3, or files of inputs"
        )
    arrays = stacked([(items[0].name, items[0].example())] * batch, ragged=items[0].ragged)
    return tuple(jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)) for a in arrays)
