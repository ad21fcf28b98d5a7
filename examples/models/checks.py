"""The error of all weight readers, and the comparison of what a file held with what its model expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np


class ModelFileError(ValueError):
    """A weight file that is missing, damaged, of another format, or of another model."""


def read_bytes(path: Path) -> bytes:
    """The content of `path`.

    Raises:
        ModelFileError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"Cannot read the weights {path}: {error.strerror or error}. Give the path of the weight file."
        ) from error


def check_variables(module: nn.Module, variables: Any, path: Path, *inputs: jax.ShapeDtypeStruct) -> None:
    """Compare the tree read from `path` with the one that `module` creates for `inputs`; computes nothing.

    Raises:
        ModelFileError: missing or unknown names, wrong shapes, values that are not finite; in one message.
    """
    expected = dict(_leaves(jax.eval_shape(module.init, jax.random.key(0), *inputs)))
    found = dict(_leaves(variables))
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not part of the model" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        problems += _differences(name, expected[name], found[name])
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ModelFileError(
            f"{path} does not fit {type(module).__name__} in {len(problems)} places: {shown}. "
            "Give a weight file of this model."
        )


def _differences(name: str, expected: Any, found: Any) -> list[str]:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return [
            f"{name} is {found.dtype}{list(found.shape)} instead of {expected.dtype}{list(expected.shape)}"
        ]
    return [] if np.isfinite(found).all() else [f"{name} has values that are not finite"]


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in found]
