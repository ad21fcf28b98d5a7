"""Loads the models that the command line names: ``MODULE:FUNCTION`` with its weights, or an exported file."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq8.analysis.arguments import path_name
from jaxq8.cli.problems import Failure, Misuse, foreign
from jaxq8.config import Config
from jaxq8.errors import FileError
from jaxq8.files.exported_program import ExportedModel, load_exported
from jaxq8.files.float_models import load_float
from jaxq8.files.weights_file import load
from jaxq8.kernels.processor import compiler_options
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.ranges import Ranges
from jaxq8.transform import quantize

READABLE = (".q8", ".safetensors", ".npz", ".msgpack")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that can be called, and what is known about it.

    Attributes:
      name: The name that the user gave.
      fn: The float function of (variables, *inputs); for an exported model its program, which ignores the variables.
      variables: Float variables, or eight-bit variables from a ``.q8``.
      config: The configuration of a ``.q8``.
      ranges: The static ranges of a ``.q8``.
      quantized: Whether the weights come from a ``.q8`` or the model was exported.
      module: The Linen module, if the model is one; it tells which variables it expects.
      exported: The exported model, if it is one.
      source: The file of the weights, if there is one.
    """

    name: str
    fn: Callable[..., Any]
    variables: Any = None
    config: Config | None = None
    ranges: Ranges | None = None
    quantized: bool = False
    module: Any = None
    exported: ExportedModel | None = None
    source: Path | None = None

    def runner(self) -> Callable[..., Any]:
        """The compiled function of the inputs alone."""
        if self.exported is not None:
            return self.exported
        function = quantize(self.fn, self.config, ranges=self.ranges) if self.quantized else self.fn
        options = compiler_options() if self.quantized else None
        compiled = jax.jit(function, compiler_options=options)
        variables = jax.device_put(self.variables)

        def call(*inputs: Any) -> Any:
            with foreign(f"running {self.name}", "check that inputs and --params belong to this model"):
                return compiled(variables, *inputs)

        return call

    def identity(self) -> str:
        """A checksum that changes whenever the file, the weights, the configuration or the ranges do."""
        if self.exported is not None:
            return f"{_file_checksum(Path(self.name)):08x}"
        total = zlib.crc32(repr((self.name, self.config, self.ranges, self.quantized)).encode())
        for leaf in jax.tree_util.tree_leaves(self.variables):
            total = zlib.crc32(np.asarray(leaf).tobytes(), total)
        return f"{total:08x}"


def load_model(name: str, params: str | None = None, keywords: Mapping[str, Any] | None = None) -> Model:
    """The model that the user names.

    Args:
      name: ``MODULE:FUNCTION``, ``FILE.py:FUNCTION``, or the path of an exported ``.q8x``.
      params: File of weights: a ``.q8``, or what `load_float` reads.
      keywords: Keyword arguments that every call of the model gets.

    Raises:
      Misuse: `name` does not have one of these forms, or the weights are not given.
      Failure: The model's module cannot be imported, or its code failed.
      FileError: The weights cannot be read.
    """
    if name.endswith(".q8x"):
        if params or keywords:
            raise Misuse(f"{name} holds its weights and arguments; leave out --params and --keyword")
        exported = load_exported(name)
        return Model(name, lambda variables, *x: exported(*x), (), quantized=True, exported=exported)
    found, variables, source = _resolved(name, params)
    fn, module, own = _function(found, name)
    variables = own if variables is None else variables
    fn = functools.partial(fn, **keywords) if keywords else fn
    if source is None:
        if variables is None:
            raise Misuse(f"{name} comes without weights; give their file with --params")
        return Model(name, fn, variables, module=module)
    return _with_weights(Model(name, fn, variables, module=module, source=source))


def _with_weights(model: Model) -> Model:
    """The model with the weights of its source, which are compared with the model's own weights if it has some."""
    assert model.source is not None
    settings: dict[str, Any] = {}
    if model.source.suffix == ".q8":
        found, ranges, config = load(model.source)
        settings = {"config": config, "ranges": ranges, "quantized": True}
    else:
        found = _on_device(load_float(model.source))
    if model.variables is not None:
        found = _rooted(found, model.variables)
        check_tree(model.variables, found, model)
    return dataclasses.replace(model, variables=found, **settings)


def _on_device(tree: Any) -> Any:
    """The tree with its arrays on the default device."""
    return jax.tree_util.tree_map(lambda x: jax.device_put(x) if hasattr(x, "dtype") else x, tree)


def fitted(model: Model, inputs: Sequence[Any]) -> Model:
    """Compares a model's weights with those that its Linen module expects for these inputs; computes nothing.

    Returns:
      The model, with its weights under Flax's outer ``params`` if the module expects that.

    Raises:
      Failure: Names or shapes differ, or weights are not finite; the message lists the first differences.
    """
    if model.module is not None and not model.exported:
        keywords = getattr(model.fn, "keywords", {})
        try:
            expected = jax.eval_shape(
                functools.partial(model.module.init, **keywords), jax.random.key(0), *inputs
            )
        except Exception:  # init may need other random streams or arguments; tracing will show what is wrong
            expected = None
        if expected is not None:
            model = dataclasses.replace(model, variables=_rooted(model.variables, expected))
            check_tree(expected, model.variables, model)
    _check_finite(model)
    return model


def check_tree(expected: Any, found: Any, model: Model) -> None:
    """Refuses weights whose names or shapes are not those of the model's own.

    Raises:
      Failure: They differ; the message lists the first differences.
    """
    wanted, given = _shapes(expected), _shapes(found)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"{name} is not part of the model" for name in sorted(given.keys() - wanted.keys())]
    for name, shape in wanted.items():
        if name in given and shape != given[name]:
            problems.append(f"{name} has shape {list(given[name])} instead of {list(shape)}")
    if not problems:
        return
    shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    raise Failure(
        f"{model.source or 'the weights'} does not fit {model.name} in {len(problems)} places: {shown}; "
        "give the weights of this model"
    )


def _check_finite(model: Model) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables, is_leaf=is_encoded):
        data = leaf.scale if is_encoded(leaf) else leaf
        floating = hasattr(data, "dtype") and jax.numpy.issubdtype(data.dtype, jax.numpy.floating)
        if floating and not np.isfinite(np.asarray(data, np.float32)).all():
            raise Failure(
                f"{model.source or model.name}: weight {path_name(path)} holds NaN or infinity; repair the checkpoint"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_encoded)
    return {path_name(path): tuple(np.shape(leaf)) for path, leaf in found}


def _rooted(found: Any, expected: Any) -> Any:
    """The weights, put under Flax's outer ``params`` if the model expects that and they were saved without it."""
    wants_params = isinstance(expected, Mapping) and set(expected) == {"params"}
    if wants_params and isinstance(found, Mapping) and "params" not in found:
        return {"params": found}
    return found


def _resolved(name: str, params: str | None) -> tuple[Any, Any, Path | None]:
    """What ``MODULE:FUNCTION`` gives: (model, variables or None, file whose weights are still to be read or None)."""
    found = attribute(name)
    source = Path(params) if params else None
    if source is not None and not source.exists():
        raise FileError(f"{source}: no such file or folder; check --params")
    if _is_linen(found) or not _without_arguments(found):
        return found, None, source
    given = []
    if source is not None and source.is_file() and source.suffix not in READABLE:
        given, source = [source], None  # a format that only the model's own loader can read
        if inspect.isclass(found) or not _takes(found, 1):
            raise Failure(
                f"{params}: unknown kind of weights; known are {', '.join(READABLE)} and orbax folders"
            )
    with foreign(f"calling {name}", "it must return a model, or (model, variables)"):
        made = found(*given)
    if isinstance(made, tuple) and len(made) == 2:
        return made[0], made[1], source
    return made, None, source


def _function(model: Any, name: str) -> tuple[Callable[..., Any], Any, Any]:
    """Three parts of a model: its function of (variables, *inputs), its Linen module or None, its own variables or None."""
    nnx = sys.modules.get("flax.nnx")
    if _is_linen(model):
        return model.apply, model, None
    if nnx is not None and isinstance(model, nnx.Module):
        return _nnx_function(nnx, model)
    if not callable(model):
        raise Failure(
            f"{name} is a {type(model).__name__}; name a function (variables, *inputs), a Flax module, or a function that "
            "returns (model, variables)"
        )
    return model, None, None


def _nnx_function(nnx: Any, model: Any) -> tuple[Callable[..., Any], Any, Any]:
    """An NNX model as a function of a plain nested dict of its variables; its random streams stay inside the function."""
    model.eval()
    graph, weights, rest = nnx.split(model, lambda path, v: not isinstance(v, nnx.RngState), ...)

    def fn(pure: Any, *inputs: Any, **keywords: Any) -> Any:
        state = jax.tree_util.tree_map(lambda x: x, weights)
        nnx.replace_by_pure_dict(state, pure)
        return nnx.merge(graph, state, rest)(*inputs, **keywords)

    return fn, None, nnx.to_pure_dict(weights)


def _is_linen(x: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(x, linen.Module)


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with this many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _without_arguments(x: Any) -> bool:
    """Whether this is a loader, or a class that takes no arguments, rather than the function of a model."""
    nnx = sys.modules.get("flax.nnx")
    if not callable(x) or not _takes(x, 0) or (nnx is not None and isinstance(x, nnx.Module)):
        return False
    kinds = [p.kind for p in inspect.signature(x).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL not in kinds  # def apply(*arguments) is a model


def attribute(name: str) -> Any:
    """What ``MODULE:ATTRIBUTE`` or ``FILE.py:ATTRIBUTE`` names; the current folder is searched first.

    Raises:
      Misuse: The text does not have this form.
      Failure: The module cannot be imported, or has no such attribute.
    """
    where, _, what = name.rpartition(":")
    if name.endswith(READABLE):
        raise Misuse(
            f"{name} holds weights alone; name the model, as MODULE:FUNCTION, and give --params {name}"
        )
    if not where or not what:
        raise Misuse(
            f"{name!r} names no model; write MODULE:FUNCTION, FILE.py:FUNCTION, or the path of a .q8x"
        )
    found = _module(where)
    for part in what.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else "check the name"
            raise Failure(f"{where} has no attribute {part!r}; {hint}")
        found = getattr(found, part)
    return found


def _module(where: str) -> Any:
    """Imports a module by its name or from a file."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise Failure(f"{where}: no such file; check the path")
        # The module gets a name of its own, so that a file json.py does not replace the module json.
        spec = importlib.util.spec_from_file_location(f"jaxq8_model_{Path(where).stem}", where)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        with foreign(f"importing {where}", "repair it, or install what it needs"):
            spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise Failure(
                f"there is no module {where!r}; run from the folder that holds it, or set PYTHONPATH"
            ) from error
        raise Failure(f"importing {where} needs {error.name}, which is not installed; install it") from error
    except Exception as error:
        raise Failure(f"importing {where} failed ({type(error).__name__}: {error}); repair it") from error


def _file_checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total
