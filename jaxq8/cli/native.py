"""Native regions on the command line: weights are packed by default where a model has static ranges."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxq8.cli.models import Model
from jaxq8.cli.problems import foreign
from jaxq8.config import KERNELS, Config
from jaxq8.errors import NativeError
from jaxq8.native import library
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.packing import pack
from jaxq8.regions.native_call import is_usable

OFF = "JAXQ8_NATIVE=off switches native regions off"


def add_kernels(command: argparse.ArgumentParser) -> None:
    """Declares the option for the kernels of a model that is quantized already."""
    command.add_argument(
        "--kernels", choices=KERNELS, metavar="NAME",
        help="instead of those of the .q8: auto (native regions where ranges are static), xla, reference, simulate",
    )  # fmt: skip


def with_kernels(model: Model, kernels: str | None) -> Model:
    """A quantized model with other kernels; the model itself where none are given, and if it has no choice of them."""
    if kernels is None or not model.quantized or model.exported is not None:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config or Config(), kernels=kernels))


def is_meant(model: Model) -> bool:
    """Whether a model asks for native regions: its ranges are static, and its kernels and mode leave the choice."""
    config = model.config or Config()
    if not model.quantized or model.exported is not None or not model.ranges:
        return False
    return config.kernels == "auto" and config.mode == "eightbit"


def packed(model: Model, inputs: Sequence[Any]) -> tuple[Model, str]:
    """A model with its weights packed for these inputs if it can have native regions.

    Returns:
      The model, and a line that says what was packed, or why nothing was; "" for models that ask for no native regions.
    """
    if not is_meant(model):
        return model, ""
    status = library.status()
    if not status.available:
        return model, f"no native regions: {status.reason}"
    if not is_usable():
        return model, f"no native regions: they are for CPUs, and programs run on {jax.default_backend()}"
    shapes = [jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for x in inputs]
    try:
        with foreign(
            f"tracing {model.name}", "check that --params, inputs and --keyword belong to this model"
        ):
            variables = pack(model.fn, model.variables, *shapes, config=model.config, ranges=model.ranges)
    except NativeError as error:
        return model, f"no native regions: {error}"
    count = packed_weights(variables)
    if not count:
        return model, "no native regions: none of the weights suits them"
    threads = f"{status.threads} thread{'' if status.threads == 1 else 's'}"
    made = dataclasses.replace(model, variables=variables)
    return made, (
        f"native regions: {count} weight{'' if count == 1 else 's'} packed for oneDNN {status.onednn} ({status.isa}, {threads}); "
        f"{OFF}"
    )


def packed_weights(variables: Any) -> int:
    """How many of the variables are packed."""
    leaves = jax.tree_util.tree_leaves(variables, is_leaf=lambda x: isinstance(x, PackedTensor))
    return sum(isinstance(leaf, PackedTensor) for leaf in leaves)


def backend(model: Model) -> str:
    """What computes a model, as far as its results depend on it: a code on the boundary of two may be rounded otherwise."""
    status = library.status() if is_meant(model) else None
    return "native" if status is not None and status.available and is_usable() else "xla"
