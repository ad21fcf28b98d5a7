"""Typical uses of every main public function, for a type checker: this file is checked by `mypy --strict` and never run.

It stands for a user's file. Whoever annotates strictly must be able to write these lines without a cast and without an
ignored error, and the results must have the types that are asserted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

import jaxq8 as q8
from jaxq8.values import Array

Variables = dict[str, Any]


def logits(variables: Variables, images: jax.Array) -> jax.Array:
    return jnp.dot(images, variables["w"])


def quantize(variables: Variables, images: jax.Array) -> None:
    fast = q8.quantize(logits)
    assert_type(fast(variables, images), jax.Array)  # the type of the results is that of the float function
    plain: Callable[..., jax.Array] = q8.quantize(
        logits, q8.Config(mode="weights"), ranges={"w:dot": q8.Range(-1.0, 1.0)}
    )
    plain(variables, q8.QTensor.from_uint8(np.zeros((1, 8), np.uint8)))  # codes instead of an array

    @q8.quantize
    def decorated(w: jax.Array) -> tuple[jax.Array, int]:
        return w @ w, 1

    assert_type(decorated(images), tuple[jax.Array, int])
    encoded = q8.quantize_weights(
        logits, variables, images, config=q8.Config(weights=q8.Spec(bits=4, symmetric=True))
    )
    fast(encoded, images)
    fast(q8.fold_norms(logits, encoded, images), images)
    compiled = jax.jit(fast, compiler_options=q8.compiler_options())
    compiled(variables, images)


def explain(variables: Variables, images: jax.Array) -> None:
    plan = q8.explain(logits, variables, images)
    assert_type(plan, q8.Plan)
    assert_type(plan.eight_bit_share, float)
    assert_type(plan.macs, int)
    assert_type(plan.regions, tuple[tuple[str, ...], ...])
    for site in plan.sites:
        assert_type(site, q8.SiteRecord)
        assert_type(site.reason, q8.Reason)
        assert_type(site.eight_bit, bool)
    assert_type(q8.Plan.from_json(plan.to_json())["w:dot"].kernel, str)


def calibrate(variables: Variables, batches: list[jax.Array]) -> None:
    ranges = q8.calibrate(logits, variables, batches, observer="mse")
    assert_type(ranges, q8.Ranges)
    assert_type(ranges["w:dot"], q8.Range)
    assert_type(ranges["w:dot"].maximum, float)
    assert_type(q8.Ranges.from_json(ranges.to_json()).merge(ranges), q8.Ranges)
    fast = jax.jit(q8.quantize(logits, ranges=ranges))
    report = q8.compare(logits, fast, variables, batches)
    assert_type(report, q8.Report)
    assert_type(report.output.sqnr_db, float)
    worst = report.first_jump
    if worst is not None:
        assert_type(worst.name, str)
    report.plot(Path("error.png"))
    found = q8.sensitivity(logits, variables, batches, ranges=ranges, target_db=30)
    assert_type(found, q8.Sensitivity)
    q8.quantize(logits, q8.Config(overrides=found.overrides))
    better = q8.correct_bias(logits, variables, batches, ranges=ranges)
    even = q8.equalize(logits, variables, batches)
    fast(better, batches[0])
    fast(even, batches[0])


def files(variables: Variables, images: jax.Array, folder: Path) -> None:
    q8.save(folder / "model.q8", variables, ranges={"w:dot": q8.Range(0.0, 1.0)}, config=q8.Config())
    tree, ranges, config = q8.load(folder / "model.q8")
    assert_type(ranges, q8.Ranges | None)
    assert_type(config, q8.Config | None)
    q8.quantize(logits, config, ranges=ranges)(tree, images)
    q8.export(folder / "model.q8x", logits, tree, images, platforms=["cpu"])
    model = q8.load_exported(folder / "model.q8x")
    assert_type(model, q8.ExportedModel)
    model(images)
    assert_type(q8.load_float("net.safetensors"), dict[str, Any])


def learn(variables: Variables, batches: list[jax.Array]) -> None:
    encoded = q8.learn_rounding(logits, variables, batches, method="gptq", key=jax.random.key(0))
    q8.reconstruct(logits, variables, encoded, batches, steps=10)
    spec = q8.Spec(bits=2, symmetric=True)
    step = q8.initial_step(variables["w"], spec)
    assert_type(step, jax.Array)
    assert_type(q8.learned_step(variables["w"], step, spec), q8.QTensor)
    ends = q8.initial_ranges(q8.calibrate(logits, variables, batches))
    assert_type(ends, dict[str, jax.Array])
    assert_type(q8.learned_ranges(ends), q8.Ranges)
    q8.integer_codes(variables)


def metric(exact: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.abs(exact - found).max(-1))


def laboratory(variables: Variables, batches: list[jax.Array]) -> None:
    table = q8.experiment(
        logits, variables, batches, bits=(8, 4), rounding=("half_even",), metrics={"worst": metric}
    )
    assert_type(table, q8.Table)
    assert_type(table.columns, tuple[str, ...])
    table.save("lab.csv")
    table.plot("lab.png", x="bits", by="rounding")
    assert_type(table.where(bits=4), q8.Table)
    assert_type(q8.bootstrap([1.0, 2.0]), tuple[float, float, float])


def machine(variables: Variables, images: jax.Array) -> None:
    report = q8.selfcheck(bar=False, quick=True)
    assert_type(report, q8.SelfCheck)
    assert_type(report.ok, bool)
    assert_type(report.failed, tuple[str, ...])
    q8.bar_forms(*report.failed)
    tuning = q8.tune(logits, variables, images)
    assert_type(tuning, q8.Tuning)
    tuning.save("tuning.json")
    assert_type(q8.load_tuning("tuning.json"), q8.Tuning)
    names = q8.rounding_names() + q8.observer_names() + q8.learned_rounding_names()
    assert_type(names, tuple[str, ...])


def tensors(weight: jax.Array) -> None:
    tensor = q8.QTensor.from_float(weight, q8.Spec(granularity="channel", symmetric=True))
    assert_type(tensor, q8.QTensor)
    assert_type(tensor.dequantize(), jax.Array)
    assert_type(tensor.shape, tuple[int, ...])
    assert_type(tensor.bits, int)
    assert_type(tensor.nbytes, int)
    book = q8.CodeBook.from_float(weight, q8.Spec(bits=4, granularity="channel", levels="kmeans"))
    assert_type(book.dequantize(), jax.Array)
    layout = (2, 4, 4, 4, 4, 4, 1, 0, 16)
    packed = q8.PackedTensor.pack(
        tensor, layout=layout, problem=(1,), isa="any", moves=(("reshape", (4, 4)),)
    )
    assert_type(packed, q8.PackedTensor)
    assert_type(packed.unpack(), q8.QTensor)
    assert_type(packed.nbytes, int)


@q8.register_rounding("half_down")
def half_down(x: jax.Array) -> jax.Array:
    return jnp.ceil(x - 0.5)


@q8.register_observer("three_sigma")
class ThreeSigma:
    """Mean and deviation of the data seen, as a range."""

    def init(self) -> jax.Array:
        return jnp.zeros(3)

    def update(self, state: jax.Array, x: jax.Array) -> jax.Array:
        return state + jnp.stack([jnp.float32(x.size), x.sum(), (x * x).sum()])

    def merge(self, first: jax.Array, second: jax.Array) -> jax.Array:
        return first + second

    def finalise(self, state: jax.Array, spec: q8.Spec) -> q8.Range:
        return q8.Range(float(-state[2]), float(state[2]))


@q8.register_learned_rounding("to_nearest")
def to_nearest(problem: q8.RoundingProblem, key: jax.Array) -> np.ndarray[Any, Any]:
    return problem.nearest()


@q8.register_rule(primitives.erfc_p)
def erfc(ctx: Any, x: Any, **params: Any) -> Array:
    return Array(primitives.erfc_p.bind(ctx.real(x), **params), lo=0.0, hi=2.0)


def after_registering() -> None:
    assert_type(ThreeSigma().init(), jax.Array)  # the decorators give back what they were given
    assert_type(half_down(jnp.zeros(1)), jax.Array)
    q8.Config(rounding="half_down", activations=q8.Spec(range="three_sigma"))


def errors() -> None:
    try:
        q8.load("model.q8")
    except q8.FileError as error:
        assert_type(error, q8.FileError)
    except (
        q8.QuantizationError,
        q8.SpecError,
        q8.RangesError,
        q8.TensorError,
        q8.ArgumentError,
        q8.RuleError,
    ) as other:
        print(other)
