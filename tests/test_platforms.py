"""Programs for TPU and CUDA, exported without having one: int8 contractions with int32 results, nothing widened before."""

from __future__ import annotations

import collections
import re

import jax
import jax.numpy as jnp
import pytest

import jaxq8 as q8
from tests.small import ALWAYS
from tests.zoo import FULL, TINY, ZOO

CONTRACTION = re.compile(r"stablehlo\.(dot_general|convolution)\b.* : \((.*)\) -> (tensor<[^>]*>)")
ELEMENT = re.compile(r"[x<]([a-z]+\d+)>")
PLATFORMS = (("tpu",), ("cuda",), ("tpu", "cuda"))
INTEGERS = ("i8", "i8", "i32")


def contractions(text: str) -> collections.Counter:
    """(operation, element types of the operands and the result) -> how often it stands in a StableHLO module."""
    found = [
        (m[1], *(kind for part in (m[2], m[3]) for kind in ELEMENT.findall(part)))
        for m in map(CONTRACTION.search, text.splitlines())
        if m
    ]
    assert len(found) == sum(
        op in line for line in text.splitlines() for op in ("stablehlo.dot_general", "stablehlo.convolution")
    )
    return collections.Counter(found)


def exported(name: str, config: q8.Config, platforms: tuple[str, ...]) -> tuple[collections.Counter, q8.Plan]:
    """The contractions of a zoo model's program, from shapes alone."""
    entry = ZOO[name]
    if entry.size == "tiny":
        fn, variables, inputs = entry.build(jax.random.key(0))
    else:
        assert entry.module is not None
        fn, inputs = entry.module.apply, jax.eval_shape(lambda key: entry.inputs(key, 1), jax.random.key(0))
        variables = jax.eval_shape(entry.module.init, jax.random.key(0), *inputs)
    program = jax.export.export(jax.jit(q8.quantize(fn, config)), platforms=platforms)(variables, *inputs)
    assert program.platforms == platforms
    return contractions(program.mlir_module()), q8.explain(fn, variables, *inputs, config=config)


def assert_integers_where_planned(found: collections.Counter, plan: q8.Plan, platforms: int) -> None:
    sites = [site for site in plan.sites if site.macs]
    kinds = collections.Counter(dict.fromkeys((INTEGERS, ("f32",) * 3), 0))
    for (_op, *kind), count in found.items():
        kinds[tuple(kind)] += count
    assert set(kinds) == {INTEGERS, ("f32",) * 3}
    # Sums of weights are contractions too, and so are the parts of a convolution by rows.
    assert kinds[INTEGERS] >= platforms * sum(site.eight_bit for site in sites) > 0
    assert kinds[("f32",) * 3] == platforms * sum(not site.eight_bit for site in sites)


@pytest.mark.parametrize("platforms", PLATFORMS, ids="+".join)
@pytest.mark.parametrize("name", TINY)
def test_programs_of_tiny_models(name, platforms):
    found, plan = exported(name, ALWAYS, platforms)
    assert_integers_where_planned(found, plan, len(platforms))
    if "conv" in {site.op for site in plan.sites} and "tpu" in platforms:
        assert found["convolution", *INTEGERS] > 0  # a TPU convolves int8 itself


@pytest.mark.slow
@pytest.mark.parametrize("platforms", PLATFORMS, ids="+".join)
@pytest.mark.parametrize("name", FULL)
def test_programs_of_models_of_real_size(name, platforms):
    found, plan = exported(name, q8.Config(), platforms)
    assert_integers_where_planned(found, plan, len(platforms))


def test_one_program_for_all_platforms_runs_here():
    fn, variables, inputs = ZOO["tiny_cnn"].build(jax.random.key(0))
    fast = jax.jit(q8.quantize(fn, ALWAYS))
    program = jax.export.export(fast, platforms=("cpu", "tpu", "cuda"))(variables, *inputs)
    again = jax.export.deserialize(program.serialize())
    here = fast(variables, *inputs)
    assert jnp.abs(again.call(variables, *inputs) - here).max() <= jnp.ptp(here) / 255


def test_the_reader_of_programs_sees_what_is_widened():
    """The test above would fail on a program that widens codes before it contracts them."""
    x, w = jnp.ones((4, 8), jnp.uint8), jnp.ones((8, 4), jnp.int8)
    text = jax.jit(lambda x, w: jax.lax.dot(x.astype(jnp.int32), w.astype(jnp.int32))).lower(x, w).as_text()
    assert contractions(text) == {("dot_general", "i32", "i32", "i32"): 1}
