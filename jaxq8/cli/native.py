"""Native regions on the command line: weights are packed by default where a model has static ranges."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxq8.cli.models import Model
from jaxq8.cli.problems import Misuse, foreign
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
    """A quantized model with other kernels, if some are given.

    Raises:
      Misuse: The model is float, or an exported program, which has its kernels.
    """
    if kernels is None:
        return model
    if not model.quantized or model.exported is not None:
        raise Misuse("--kernels chooses for the weights of a .q8; leave it out, or give a .q8 with --params")
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
    try:
        with foreign(
            f"tracing {model.name}", "check that --params, inputs and --keyword belong to this model"
        ):
            variables = pack(
                model.fn, model.variables, *map(jnp.asarray, inputs), config=model.config, ranges=model.ranges
            )
    except NativeError as error:
        return model, f"no native regions: {error}"
    count = packed_weights(variables)
    if not count:
        return model, "no native regions: none of the weights suits them"
    text = (
        f"native regions: {_counted(count, 'weight')} packed for oneDNN {status.onednn} "
        f"({status.isa}, {_counted(status.threads, 'thread')}); {OFF}"
    )
    return dataclasses.replace(model, variables=variables), text


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def packed_weights(variables: Any) -> int:
    """How many of the variables are packed."""
    leaves = jax.tree_util.tree_leaves(variables, is_leaf=lambda x: isinstance(x, PackedTensor))
    return sum(isinstance(leaf, PackedTensor) for leaf in leaves)


def backend(model: Model) -> str:
    """What computes a model, as far as its results depend on it: a code on the boundary of two may be rounded otherwise."""
    status = library.status() if is_meant(model) else None
    return "native" if status is not None and status.available and is_usable() else "xla"
