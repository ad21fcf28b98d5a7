"""`tune`: times the candidate forms of a model's contractions once on this machine, so that the planner takes the fastest."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq8.config import Config
from jaxq8.display.text_table import table
from jaxq8.errors import FileError
from jaxq8.kernels import epilogue, float_forms, select, tuned
from jaxq8.kernels.forms import MAXIMUM_TERMS, ConvForm, DotForm, Form
from jaxq8.kernels.processor import capability
from jaxq8.kernels.reference import plain
from jaxq8.numerics.ranges import Range
from jaxq8.replacement import replacement
from jaxq8.transform import explain

TUNING_VERSION = 1
# In each round all candidates take turns, so that a disturbance of the machine affects all of them.
ROUNDS = 5
KINDS: dict[str, type[DotForm] | type[ConvForm]] = {"dot": DotForm, "conv": ConvForm}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The times that `tune` measured; ``print`` shows them as a table.

    Attributes:
      times: Form -> {name of a candidate: microseconds}; "float" is the float contraction.
      machine: The machine that the times hold for: the processor's capability and JAX's version.

    Example:
      >>> tuning = q8.tune(model.apply, variables, images, seconds=0.001)
      >>> print(tuning)
      contraction          fastest  microseconds
      ...
      >>> tuning.save("tuned.json")
    """

    times: Mapping[Form, Mapping[str, float]]
    machine: Mapping[str, str]

    def __str__(self) -> str:
        rows = []
        for form, found in self.times.items():
            fastest = min(found, key=found.__getitem__)
            rows.append((_text(form), fastest, ", ".join(f"{n} {t:.0f}" for n, t in found.items())))
        return "\n".join(table(("contraction", "fastest", "microseconds"), rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON that `load_tuning` reads; an existing file is replaced in one step.

        Raises:
          FileError: The file cannot be written.
        """
        document = {
            "version": TUNING_VERSION,
            "machine": dict(self.machine),
            "forms": [{**_to_json(form), "microseconds": dict(found)} for form, found in self.times.items()],
        }
        try:
            with replacement(Path(path)) as temporary:
                Path(temporary).write_text(json.dumps(document, indent=1), encoding="utf-8")
        except OSError as error:
            raise FileError(f"{path}: cannot be written ({error}); check the folder") from error

    def use(self) -> None:
        """Makes functions that are traced afterwards in this process take the fastest forms."""
        tuned.use(self.times)


def tune(
    fn: Callable[..., Any], *args: Any, config: Config | None = None, ranges: Mapping[str, Range] | None = None,
    path: str | os.PathLike[str] | None = None, seconds: float = 0.02, progress: bool = True, **kwargs: Any,
) -> Tuning:  # fmt: skip
    """Times every form that can run each contraction of a function, and the float contraction, on this machine.

    The choice holds for functions that are traced afterwards in this process; with `path` it is stored for other processes
    (`load_tuning`). All forms are exact, so results depend on the choice only at sites that change between eight bits and
    float. The times are those of one contraction and the encoding of its activation, without its neighbours. Expect little on
    a machine for which the planner's table is right already (AVX-512 VNNI).

    Args:
      fn: The function as it is given to `quantize`.
      *args: Its arguments: arrays, QTensors or `jax.ShapeDtypeStruct`; the choice is made for these shapes.
      config: As for `quantize`.
      ranges: As for `quantize`.
      path: A JSON file for the times; forms whose times it holds already are not measured again.
      seconds: Time for each candidate in each of five rounds.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A `Tuning`; print it.

    Raises:
      FileError: The file at `path` was not written by `tune`, belongs to another machine, or cannot be written.

    Example:
      >>> tuning = q8.tune(model.apply, variables, images, path="tuned.json", seconds=0.001)
      >>> fast = jax.jit(q8.quantize(model.apply))  # takes the fastest forms
    """
    known = dict(_read(Path(path)).times) if path is not None and Path(path).exists() else {}
    with tuned.noting() as forms:
        explain(fn, *args, config=config, ranges=ranges, **kwargs)
    new = [form for form in forms if form not in known and form.terms <= MAXIMUM_TERMS]
    for form in tqdm(new, desc="tuning", unit="form", disable=not progress):
        known[form] = _timed(form, seconds)
    result = Tuning(known, _machine())
    if path is not None:
        result.save(path)
    result.use()
    return result


def load_tuning(path: str | os.PathLike[str]) -> Tuning:
    """Reads what `tune` stored and uses it for functions that are traced afterwards in this process.

    Raises:
      FileError: The file cannot be read, was not written by `tune`, or was measured with another kind of processor or JAX.

    Example:
      >>> q8.tune(model.apply, variables, images, seconds=0.001).save("tuned.json")
      >>> tuning = q8.load_tuning("tuned.json")
    """
    result = _read(Path(path))
    result.use()
    return result


def _timed(form: Form, seconds: float) -> dict[str, float]:
    """Microseconds of each candidate, the shortest time of all rounds."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(_shapes(form)[0]), jnp.float32)
    w = jnp.asarray(np.random.default_rng(1).integers(-127, 128, _shapes(form)[1]), jnp.int8)
    calls: dict[str, Callable[[], Any]] = {
        entry.name: functools.partial(jax.jit(functools.partial(_eight_bit, entry, form)), x, w)
        for entry in select.possible(form)
    }
    real = jax.jit(functools.partial(_real, form))
    calls["float"] = functools.partial(real, x, w.astype(jnp.float32))
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(ROUNDS):
        for name, call in calls.items():
            best[name] = min(best[name], _fastest(call, seconds))
    return {name: round(1e6 * t, 1) for name, t in best.items()}


def _fastest(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call, in seconds, of calls that take about `seconds` together."""
    end, best = time.perf_counter() + seconds, float("inf")
    while True:
        start = time.perf_counter()
        jax.block_until_ready(call())
        stop = time.perf_counter()
        best = min(best, stop - start)
        if stop > end:
            return best


def _eight_bit(entry: select.Candidate, form: Form, x: Any, w: Any) -> Any:
    codes = epilogue.encode(x, jnp.float32(40), jnp.float32(128), 0.0, 255.0, jnp.uint8)
    return entry.run(form, codes, w, jnp.int32(128)).astype(jnp.float32) * jnp.float32(0.01)


def _real(form: Form, x: Any, w: Any) -> Any:
    if isinstance(form, ConvForm) and form.depthwise and float_forms.pays(form):
        return float_forms.depthwise(form, x, w)
    return plain(form, x, w, 0, jnp.float32)


def _shapes(form: Form) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(form, DotForm):
        lead = (form.batch,) if form.batch else ()
        return (*lead, form.m, form.k), (*lead, form.k, form.n)
    return (form.batch, *form.spatial, form.c_in), (*form.kernel, form.c_in // form.groups, form.c_out)


def _machine() -> dict[str, str]:
    return {"processor": capability(), "jax": jax.__version__}


def _text(form: Form) -> str:
    """A form as a cell of the table: kind, shapes of the operands, strides and groups."""
    sizes = " x ".join("x".join(map(str, shape)) for shape in _shapes(form))
    if isinstance(form, DotForm):
        return f"dot {sizes}"
    parts = [sizes]
    if set(form.strides) != {1}:
        parts.append(f"stride {'x'.join(map(str, form.strides))}")
    if form.groups > 1:
        parts.append(f"{form.groups} groups")
    return f"conv {', '.join(parts)}"


def _to_json(form: Form) -> dict[str, Any]:
    kind = next(name for name, cls in KINDS.items() if isinstance(form, cls))
    return {"kind": kind, **dataclasses.asdict(form)}


def _read(path: Path) -> Tuning:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != TUNING_VERSION:
            raise ValueError(f"version {document['version']!r}")
        times = dict(map(_from_json, document["forms"]))
        machine = {str(k): str(v) for k, v in document["machine"].items()}
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path}: not a document of q8.tune version {TUNING_VERSION} ({error})") from error
    if machine != _machine():
        told = ", ".join(f"{k} {v}" for k, v in machine.items())
        raise FileError(
            f"{path}: measured on {told}; here it must be measured again: delete it and call q8.tune"
        )
    return Tuning(times, machine)


def _from_json(entry: dict[str, Any]) -> tuple[Form, dict[str, float]]:
    fields = {k: _tuples(v) for k, v in entry.items() if k not in ("kind", "microseconds")}
    names = {candidate.name for candidate in select.FORMS} | {"float"}
    found = {str(name): float(t) for name, t in entry["microseconds"].items()}
    if unknown := set(found) - names:
        raise ValueError(f"unknown form {sorted(unknown)[0]!r}")
    if not found or not all(t > 0 for t in found.values()):
        raise ValueError("times must be above 0")
    return KINDS[entry["kind"]](**fields), found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
