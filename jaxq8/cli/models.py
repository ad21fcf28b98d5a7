"""Models by name: ``MODULE:FUNCTION`` with its weights, or an exported file, as one `Model`."""

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
    """Something that can be called, and what is known of it.

    Attributes:
      name: As the user wrote it.
      fn: The float function of (variables, *inputs); of an exported model the program, which has no variables.
      variables: Float ones, or eight-bit ones from a ``.q8``.
      config: How a ``.q8`` is to run.
      ranges: Static ranges of a ``.q8``.
      quantized: Whether the weights come from a ``.q8`` or the model was exported.
      module: The Linen module, whose own idea of its variables is then known.
      exported: The exported model.
      source: File of the weights, where there is one.
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
        """Changes whenever file, weights, configuration or ranges do."""
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
      Misuse: `name` has no such form, or nothing says where the weights are.
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
    """The model with the weights of its source; compared with its own where it has some."""
    assert model.source is not None
    if model.source.suffix == ".q8":
        found, ranges, config = load(model.source)
        model_of = dataclasses.replace(model, config=config, ranges=ranges, quantized=True)
    else:
        found, model_of = _on_device(load_float(model.source)), model
    if model.variables is not None:
        found = _rooted(found, model.variables)
        check_tree(model.variables, found, model)
    return dataclasses.replace(model_of, variables=found)


def _on_device(tree: Any) -> Any:
    """The arrays of a tree where they will be used; those that were read are not kept beside them."""
    return jax.tree_util.tree_map(lambda x: jax.device_put(x) if hasattr(x, "dtype") else x, tree)


def fitted(model: Model, inputs: Sequence[Any]) -> Model:
    """The model with its weights compared with what a Linen module makes for these inputs; computes nothing.

    Raises:
      Failure: Names or shapes differ, or weights are not finite; the message lists the first.
    """
    if model.module is not None and not model.exported:
        keywords = getattr(model.fn, "keywords", {})
        try:
            expected = jax.eval_shape(
                functools.partial(model.module.init, **keywords), jax.random.key(0), *inputs
            )
        except Exception:  # init may want other random streams or arguments; tracing will show what is wrong
            expected = None
        if expected is not None:
            model = dataclasses.replace(model, variables=_rooted(model.variables, expected))
            check_tree(expected, model.variables, model)
    _check_finite(model)
    return model


def check_tree(expected: Any, found: Any, model: Model) -> None:
    """Refuses weights that lack names, have other ones, or have other shapes than the model's own."""
    wanted, given = _shapes(expected), _shapes(found)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"{name} is not part of the model" for name in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {list(given[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in given and wanted[name] != given[name]
    ]
    if problems:
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
    """Weights saved without Flax's outer ``params``, put under it."""
    alone = isinstance(expected, Mapping) and set(expected) == {"params"}
    return {"params": found} if alone and isinstance(found, Mapping) and "params" not in found else found


def _resolved(name: str, params: str | None) -> tuple[Any, Any, Path | None]:
    """(model, variables or None, file whose weights are still to be read or None) of ``MODULE:FUNCTION``."""
    found = attribute(name)
    source = Path(params) if params else None
    if source is not None and not source.exists():
        raise FileError(f"{source}: no such file or folder; check --params")
    if _is_linen(found) or not _without_arguments(found):
        return found, None, source
    given = []
    if source is not None and source.is_file() and source.suffix not in READABLE:
        given, source = [source], None  # a format that only the model's own loader knows
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
    """(function of (variables, *inputs), Linen module or None, variables that the model itself holds or None)."""
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
    """An NNX model as a function of its plain nested dict; its random streams stay with it."""
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
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _without_arguments(x: Any) -> bool:
    """Whether it is a loader or a class that is made with no arguments, rather than the model's function."""
    nnx = sys.modules.get("flax.nnx")
    if not callable(x) or not _takes(x, 0) or (nnx is not None and isinstance(x, nnx.Module)):
        return False
    kinds = [p.kind for p in inspect.signature(x).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL not in kinds  # def apply(*arguments) is a model


def attribute(name: str) -> Any:
    """What ``MODULE:ATTRIBUTE`` or ``FILE.py:ATTRIBUTE`` names; the current folder is searched first.

    Raises:
      Misuse: The text has no such form.
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
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise Failure(f"{where}: no such file; check the path")
        # A name of its own: a file json.py must not stand in for the module json.
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
