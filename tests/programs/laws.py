"""What every program must satisfy in eight bits: each law is a function of a `Trial` that returns what is wrong.

None instead of a list: the law says nothing about this program.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxq8 as q8
from jaxq8.analysis import batch_axis
from tests.programs import noise
from tests.programs.operations import TABLE
from tests.programs.trial import MOST, Trial, dots, flat

Law = Callable[[Trial], list[str] | None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A law, and the share of programs that are held against it."""

    check: Law
    share: float


LAWS: dict[str, Entry] = {}


def law(name: str, share: float = 1) -> Callable[[Law], Law]:
    """Adds a law for a share of programs: smaller where it costs another compilation and seldom says what others do not."""

    def add(check: Law) -> Law:
        LAWS[name] = Entry(check, share)
        return check

    return add


@law("error")
def _error(t: Trial) -> list[str]:
    """Near the float result, as the noise of rounding every value says."""
    return t.differences(t.exact, t.fast, noise.MARGIN)


@law("simulation", 0.4)
def _simulation(t: Trial) -> list[str]:
    return t.differences(t.compiled("simulate")(t.p, t.x), t.fast)


@law("reference", 0.1)
def _reference(t: Trial) -> list[str]:
    return t.differences(t.compiled("reference")(t.p, t.x), t.fast)


@law("nan")
def _nan(t: Trial) -> list[str] | None:
    """What NaN in one element of the data makes NaN in float is NaN in eight bits."""
    if any(TABLE[s["op"]].masks for s in t.program["steps"]):
        return None
    leaves, tree = jax.tree.flatten(t.x)
    which, element = t.settings.position([leaf.size for leaf in leaves])
    leaves[which] = leaves[which].copy()
    leaves[which].ravel()[element] = np.nan
    x = jax.tree.unflatten(tree, leaves)
    expected = t.disturbed(x)
    found = flat(t.compiled()(t.p, x))
    return [
        f"output {i}: {np.sum(np.isnan(e) & ~np.isnan(f))} of {np.isnan(e).sum()} NaN are lost"
        for i, (e, f) in enumerate(zip(expected, found, strict=True))
        if (np.isnan(e) & ~np.isnan(f)).any()
    ]


@law("encoded", 0.08)
def _encoded(t: Trial) -> list[str] | None:
    """Weights that were encoded beforehand, and came back from a file, are the same weights."""
    if not t.p:
        return None
    encoded = q8.quantize_weights(t.f, t.p, t.x, config=t.settings.config(), correct=None)
    run = t.compiled()
    results = flat(run(encoded, t.x))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.q8"
        q8.save(path, encoded, ranges=t.ranges, config=t.settings.config())
        loaded, ranges, config = q8.load(path)
        again = flat(run(loaded, t.x))
    found = t.differences(results, t.fast)
    found += _other_bits(results, again, "after save and load")
    if config != t.settings.config() or (t.ranges is not None and dict(ranges or {}) != dict(t.ranges)):
        found.append("ranges or configuration are others after save and load")
    return found


@law("export", 0.06)
def _export(t: Trial) -> list[str]:
    """The exported program computes the same: the same bits, where it is not for any batch and so another program."""
    encoded = q8.quantize_weights(t.f, t.p, t.x, config=t.settings.config(), correct=None) if t.p else t.p
    settings = {"ranges": t.ranges, "config": t.settings.config(), "platforms": ("cpu",)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = pathlib.Path(folder) / "program.q8x"
        symbolic = None if t.settings.symbolic else False
        q8.export(path, t.f, encoded, t.x, symbolic_batch=symbolic, **settings)
        loaded = flat(q8.load_exported(path)(t.x))
    found = t.differences(t.fast, loaded)
    if not t.settings.symbolic:
        compiled = flat(jax.jit(t.quantized())(encoded, t.x))
        found += _other_bits(compiled, loaded, "as the compiled function's")
    return found


def _other_bits(expected: list[np.ndarray], results: list[np.ndarray], what: str) -> list[str]:
    """A line for each output that is not the same to the last bit."""
    return [
        f"output {i}: not the same bits {what}"
        for i, (a, b) in enumerate(zip(expected, results, strict=True))
        if not np.array_equal(a, b, equal_nan=True)
    ]


@law("sign of dots", 0.1)
def _sign(t: Trial) -> list[str]:
    """Dots of unsigned by signed codes compute what those of signed codes do."""
    with dots(not t.settings.mixed):
        other = jax.jit(t.quantized(), compiler_options=t.options)(t.p, t.x)
    return t.differences(t.fast, other)


@law("vmap", 0.06)
def _vmap(t: Trial) -> list[str] | None:
    """Mapped over examples is a loop over examples."""
    xs = [t.x, jax.tree.map(lambda a: np.float32(0.7) * a, t.x)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *xs)
    try:
        jax.eval_shape(jax.vmap(t.f, (None, 0)), t.p, stacked)
    except Exception:  # what float cannot do is not asked for
        return None
    mapped = flat(jax.jit(jax.vmap(t.quantized(), (None, 0)), compiler_options=t.options)(t.p, stacked))
    found = []
    for i, x in enumerate(xs):
        _, moved, floor = t.deviations(x)
        limits = noise.limits(moved, floor, 1)
        found += noise.differences(flat(t.compiled()(t.p, x)), [m[i] for m in mapped], limits)
    return found


@law("blocks", 0.06)
def _blocks(t: Trial) -> list[str] | None:
    """A batch in blocks of examples, its ranges known, is the batch."""
    if not t.settings.static or t.ranges is None:
        return None
    limits = batch_axis.LARGE_BYTES, batch_axis.BLOCK_BYTES
    batch_axis.LARGE_BYTES, batch_axis.BLOCK_BYTES = 0, 0
    try:
        if q8.explain(t.f, t.p, t.x, config=t.settings.config(), ranges=t.ranges).blocks < 2:
            return None
        blocks = jax.jit(t.quantized(), compiler_options=t.options)(t.p, t.x)
    finally:
        batch_axis.LARGE_BYTES, batch_axis.BLOCK_BYTES = limits
    return t.differences(t.fast, blocks)


@law("native", 0.12)
def _native(t: Trial) -> list[str] | None:
    """Native regions compute what XLA's forms do, and lose no NaN."""
    if t.ranges is None or not t.p or not q8.native_status().available:
        return None
    config = t.settings.config("native")
    encoded = q8.quantize_weights(t.f, t.p, t.x, config=config, correct=None)
    packed = q8.pack(t.f, encoded, t.x, config=config, ranges=t.ranges)
    leaves = jax.tree.leaves(packed, is_leaf=lambda leaf: isinstance(leaf, q8.PackedTensor))
    if not any(isinstance(leaf, q8.PackedTensor) for leaf in leaves):
        return None
    run = jax.jit(t.quantized("native"), compiler_options=t.quick)
    found = t.differences(flat(run(packed, t.x)), t.fast)
    x = jax.tree.map(lambda a: np.full_like(a, np.nan), t.x)
    for i, (other, own) in enumerate(zip(flat(t.compiled()(t.p, x)), flat(run(packed, x)), strict=True)):
        if (np.isnan(other) & ~np.isnan(own)).any():
            found.append(f"output {i}: NaN is lost")
    return found


@law("gradient", 0.05)
def _gradient(t: Trial) -> list[str] | None:
    """The derivative is that of the simulation, and near that of float."""
    if any(s["op"] == "while" for s in t.program["steps"]):
        return None  # float has no derivative backwards through it either
    sizes = [max(float(np.sum(e.astype(np.float64) ** 2)), 1e-30) for e in t.exact]

    def derivative(f: Any) -> Any:
        def loss(arguments: Any, *rest: Any) -> Any:
            return sum(
                jnp.sum(o**2) / s for o, s in zip(jax.tree.leaves(f(*arguments, *rest)), sizes, strict=True)
            )

        return jax.jit(jax.grad(loss), compiler_options=t.quick)

    own = np.float32(t.settings.static)
    disturbed = derivative(lambda p, x, steps: t.chosen(t.noisy(p, x, steps, own)))
    results = noise.deviations(lambda steps: flat(disturbed((t.p, t.x), steps)), t.steps())
    clear = [
        i for i, (exact, moved, floor) in enumerate(zip(*results, strict=True))
        if np.isfinite(exact).all() and noise.norm(exact) > 1e-20 and max(moved, 5 * floor) <= MOST * noise.norm(exact)
    ]  # fmt: skip
    if not clear:
        return None
    exact, moved, floor = ([part[i] for i in clear] for part in results)
    found = (flat(derivative(t.quantized(kernels))((t.p, t.x))) for kernels in ("xla", "simulate"))
    fast, simulated = ([result[i] for i in clear] for result in found)
    return [
        *noise.differences(
            simulated, fast, noise.limits(moved, floor, 1), "from the simulation's, derivative"
        ),
        *noise.differences(exact, fast, noise.limits(moved, floor, noise.MARGIN), "from float's, derivative"),
    ]


@law("eager", 0.01)
def _eager(t: Trial) -> list[str]:
    """Operation by operation: as compiled, and with the fast kernels the very bits of the reference kernel."""
    fast = flat(t.quantized()(t.p, t.x))
    reference = flat(t.quantized("reference")(t.p, t.x))
    return t.differences(t.fast, fast) + _other_bits(reference, fast, "as the reference kernel's")
