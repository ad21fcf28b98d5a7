"""Static ranges keep data in eight bits: read from the compiled programs, and told by the plan."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import pytest

import jaxq8 as q8
from examples import assets
from examples.models import efficientnet_lite, squeezenet
from tests.small import PAIR, X
from tests.zoo import ZOO

pytestmark = pytest.mark.compiled

needs_demo = pytest.mark.skipif(
    not assets.is_installed("demo"), reason="run `make assets`: weights are missing"
)
# A range for every site without calibrating: what the program does with data does not depend on the numbers.
GIVEN = q8.Config(activations=q8.Spec(granularity="tensor", range=q8.Range(-1, 6)))
NAMES_NO_DATA = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional"}
FUNCTION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
BUFFER = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = f32\[([\d,]+)\]\S* ([\w-]+)\(")


def float_activations(program: str) -> set[tuple[int, ...]]:
    """Shapes of the float32 buffers of data that a compiled program writes.

    Two positions are none: the multiplier and the offset of each channel, in one array.
    """
    found, inside = set(), False
    for line in program.splitlines():
        function = FUNCTION.match(line)
        if function:
            # What stands inside a fusion or a reduction's function has no buffer of its own.
            inside = "fused" in function[1] or "region" in function[1]
        buffer = BUFFER.match(line)
        if buffer and not inside and buffer[2] not in NAMES_NO_DATA:
            shape = tuple(map(int, buffer[1].split(",")))
            if math.prod(shape[:-1]) > 2 and math.prod(shape) >= 2000:
                found.add(shape)
    return found


def program(fn, variables, image) -> str:
    weights = q8.quantize_weights(fn, variables, image)
    return jax.jit(q8.quantize(fn, GIVEN)).lower(weights, image).compile().as_text()


def stays_eight_bit(fn, variables, image, last: set[tuple[int, ...]]) -> None:
    """No float between what makes codes of the image and the last map, whose mean is the classifier's input."""
    found = float_activations(program(fn, variables, image))
    assert found <= {image.shape} | last, found
    entries = q8.explain(fn, variables, image, config=GIVEN).entries
    assert all(site.reads.startswith("float: ") for site in entries)
    assert len(entries) <= 2  # the stem's input, and the mean


@pytest.mark.assets
@needs_demo
def test_squeezenet_has_no_float_activations():
    module, variables = squeezenet.load()
    stays_eight_bit(module.apply, variables, jnp.zeros((1, 224, 224, 3)), {(169, 1000)})


@pytest.mark.slow
@pytest.mark.assets
@needs_demo
def test_efficientnet_has_no_float_activations():
    module, variables = efficientnet_lite.load()
    stays_eight_bit(module.apply, variables, jnp.zeros((1, 224, 224, 3)), {(1, 7, 7, 1280)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"),
    [("resnet50", {(49, 2048), (1, 7, 7, 2048)}), ("mobilenet_v2", {(1, 7, 7, 1280), (49, 1280)})],
)
def test_networks_of_the_benchmark_have_no_float_activations(name, last):
    fn, variables, (image,) = ZOO[name].build(jax.random.key(0), 1)
    stays_eight_bit(fn, variables, image, last)


def test_float_activations_are_found_where_they_are():
    """The reader of programs sees what a dynamic range leaves: it measures a float array before it makes codes of it."""
    module, variables = q8_cnn()
    off = q8.Config(overrides=(("*", {"mode": "off"}),))
    text = jax.jit(q8.quantize(module, off)).lower(variables, jnp.ones((1, 32, 32, 8))).compile().as_text()
    assert (1, 32, 32, 16) in float_activations(text) or (1024, 16) in float_activations(text)


def q8_cnn():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 16))

    def fn(v, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.sin(y) @ v["b"]

    return fn, {"a": kernel, "b": jnp.ones((16, 4))}


def test_the_plan_names_what_stands_between_regions():
    def fn(v, x):
        y = jax.nn.relu(x @ v["w"])
        return jax.lax.erf_inv(jnp.tanh(y @ v["v"])) @ v["u"]

    v = {**PAIR, "u": jnp.ones((PAIR["v"].shape[1], 16))}
    config = q8.Config(kernels="xla")
    ranges = q8.calibrate(fn, v, [X], config=config, progress=False)
    plan = q8.explain(fn, v, X, config=config, ranges=ranges)
    assert plan.regions == (("w:dot", "v:dot"), ("u:dot",))
    assert [site.name for site in plan.entries] == ["w:dot", "u:dot"]
    assert plan["w:dot"].reads == "float: an argument"
    assert plan["v:dot"].reads == "int32"
    assert re.fullmatch(r"float: erf_inv at .*test_regions.py:\d+.*", plan["u:dot"].reads)
    assert "2 eight-bit regions; float becomes codes after: an argument, erf_inv" in str(plan)
    assert q8.Plan.from_json(plan.to_json()) == plan
