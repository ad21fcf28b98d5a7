"""The Plan: names, shares, overrides, text and JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxq8 as q8
from jaxq8.analysis.sites import OPERATIONS
from jaxq8.display.text_table import table
from jaxq8.plan_native import NOTHING_PACKED, NativeRegion
from tests.small import ALWAYS, PAIR, X
from tests.zoo import ZOO

GOLDEN = Path(__file__).parent / "golden" / "tiny_cnn_plan.json"
# What the golden plan fixes. Kernels and source lines depend on the processor and on where Flax is installed.
FIELDS = ("name", "op", "eight_bit", "reason", "shapes", "weights", "activations", "range", "macs")


needs_native = pytest.mark.skipif(
    not q8.native_status().available, reason=f"no native regions: {q8.native_status().reason}"
)


def built(name: str, batch: int | None = None):
    return ZOO[name].build(jax.random.key(0), batch)


def plan_of(name: str, batch: int | None = None, **settings) -> q8.Plan:
    fn, variables, inputs = built(name, batch)
    return q8.explain(fn, variables, *inputs, config=q8.Config(**settings))


def names(plan: q8.Plan) -> list[str]:
    """What overrides and ranges address. Which float operations the plan lists beside them may depend on shapes."""
    return [site.name for site in plan.sites if site.op in OPERATIONS.values()]


@pytest.fixture(scope="module")
def plan() -> q8.Plan:
    return plan_of("tiny_cnn", kernels="xla")


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_encoder", "tiny_lstm", "tiny_nnx"])
def test_names_do_not_depend_on_the_batch(name):
    assert names(plan_of(name, 1, kernels="xla")) == names(plan_of(name, 5, kernels="xla"))


@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_encoder"])
def test_names_do_not_depend_on_jit(name):
    fn, variables, inputs = built(name)
    assert names(q8.explain(jax.jit(fn), variables, *inputs)) == names(q8.explain(fn, variables, *inputs))


def test_names_are_paths_of_weights_with_the_operation(plan):
    assert "params/ConvNorm_0/conv/kernel:conv" in names(plan)
    assert "params/Dense_0/kernel:dot" in names(plan)


def test_a_weight_that_is_used_again_gets_a_number():
    def fn(v, x):
        return (x @ v["w"]) @ v["w"] @ v["u"]

    w = jnp.ones((16, 16))
    assert names(q8.explain(fn, {"w": w, "u": w}, w)) == ["w:dot", "w:dot#2", "u:dot"]


def test_share_counts_multiply_adds():
    def fn(v, x):
        return (x @ v["big"]) @ v["small"]

    v, x = {"big": jnp.ones((30, 60)), "small": jnp.ones((60, 10))}, jnp.ones((20, 30))
    plan = q8.explain(fn, v, x, config=q8.Config(kernels="xla", overrides=(("small*", {"mode": "off"}),)))
    assert plan.macs == 20 * 30 * 60 + 20 * 60 * 10
    assert plan["big:dot"].macs == 20 * 30 * 60
    assert plan.eight_bit_share == pytest.approx(0.75)


def test_share_of_a_function_without_contractions_is_one():
    plan = q8.explain(jnp.sin, jnp.ones(3))
    assert (plan.macs, plan.eight_bit_share, plan.sites) == (0, 1.0, ())


def test_scans_count_every_step():
    def fn(v, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, v["w"])[0]

    assert q8.explain(fn, {"w": jnp.ones((7, 16, 16))}, jnp.ones((4, 16))).macs == 7 * 4 * 16 * 16


def test_contractions_without_an_eight_bit_form_count_too():
    def fn(v, x, images):
        grouped = jax.lax.conv_general_dilated(
            images,
            v["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            batch_group_count=2,
        )
        return jax.lax.ragged_dot(x, v["experts"], jnp.array([3, 5, 2])), grouped

    v, x = {"experts": jnp.ones((3, 16, 20)), "kernel": jnp.ones((3, 3, 4, 8))}, jnp.ones((10, 16))
    plan = q8.explain(fn, v, x, jnp.ones((2, 6, 6, 4)), config=q8.Config(kernels="xla"))
    assert plan["experts:ragged_dot"].macs == 10 * 16 * 20
    assert plan["kernel:conv"].macs == 1 * 6 * 6 * 8 * (3 * 3 * 4)
    assert {s.reason for s in plan.sites} == {q8.Reason.NO_RULE, q8.Reason.BATCH_GROUPS}
    assert plan.eight_bit_share == 0
    encoded = q8.quantize_weights(fn, v, x, jnp.ones((2, 6, 6, 4)))
    assert encoded["experts"].scale.shape == (3, 1, 20)


def test_overrides_by_glob_and_by_operation():
    off = {"mode": "off"}
    plan = plan_of(
        "tiny_cnn", kernels="xla", overrides=(("*/ConvNorm_0/*", off), ("op:dot", off), ("no*", off))
    )
    floats = [s.name for s in plan.sites if s.reason is q8.Reason.OFF]
    assert floats == ["params/ConvNorm_0/conv/kernel:conv", "params/Dense_0/kernel:dot"]
    assert plan.unused_overrides == ("no*",)
    assert str(plan).endswith("override 'no*' matched no site")


def test_later_overrides_win():
    back = (("op:conv", {"mode": "off"}), ("*/ConvNorm_0/*", {"mode": "eightbit"}))
    plan = plan_of("tiny_cnn", kernels="xla", overrides=back)
    assert [s.name for s in plan.sites if s.op == "conv" and s.eight_bit] == [
        "params/ConvNorm_0/conv/kernel:conv"
    ]
    assert plan.unused_overrides == ()


def test_explaining_needs_shapes_only():
    fn, variables, inputs = built("tiny_mlp")
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (variables, *inputs))
    assert q8.explain(fn, *abstract) == q8.explain(fn, variables, *inputs)


def test_encoded_variables_have_the_plan_of_float_ones():
    fn, variables, inputs = built("tiny_cnn")
    config = q8.Config(kernels="xla")
    encoded = q8.quantize_weights(fn, variables, *inputs, config=config)
    assert q8.explain(fn, encoded, *inputs, config=config) == q8.explain(
        fn, variables, *inputs, config=config
    )


def test_a_site_is_found_by_its_name(plan):
    assert plan["params/Dense_0/kernel:dot"].op == "dot"
    with pytest.raises(KeyError, match="params/Dense_9"):
        plan["params/Dense_9"]


def test_float_sites_say_why():
    plan = plan_of("tiny_encoder")
    reasons = {s.reason for s in plan.sites if s.macs and not s.eight_bit}
    assert q8.Reason.ATTENTION in reasons
    text = str(plan)
    for site in plan.sites:
        if site.macs and not site.eight_bit:
            assert site.why in text
    assert "quantize it with Config(attention=True)" in plan.summary()


def test_print_shows_every_site_aligned(plan):
    lines = str(plan).splitlines()
    assert lines[0] == plan.summary()
    assert lines[0].startswith(f"{plan.eight_bit_share:.1%} of {plan.macs / 1e6:.1f} million multiply-adds")
    assert lines[1].endswith("float becomes codes after: an argument, div")
    assert lines[2].startswith("joined parts share a range at params/ConvNorm_3/conv/kernel:conv: ")
    header, rows = lines[4], lines[6:]
    assert len(rows) == len(plan.sites)
    column = header.index("runs in")
    assert {row[column : column + 5].strip() for row in rows} == {
        "8 bit" if s.eight_bit else "float" for s in plan.sites
    }


def test_tables_leave_out_empty_columns():
    assert table(("a", "b", "c"), [("1", "", "x"), ("22", "", "y")]) == ["a   c", "--  -", "1   x", "22  y"]


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_encoder"])
def test_json_keeps_every_field(name):
    plan = dataclasses.replace(plan_of(name), unused_overrides=("a*", "op:b"))
    assert q8.Plan.from_json(plan.to_json()) == plan


def test_json_keeps_native_regions(plan):
    regions = (NativeRegion(("a:conv", "b:conv"), 7, ("the result",)), NativeRegion((), 1))
    found = dataclasses.replace(plan, native=regions)
    assert q8.Plan.from_json(found.to_json()) == found
    none = dataclasses.replace(plan, not_native="no oneDNN")
    assert q8.Plan.from_json(none.to_json()) == none


def test_json_from_before_there_were_native_regions(plan):
    document = json.loads(plan.to_json())
    del document["native"], document["not_native"]
    assert q8.Plan.from_json(json.dumps(document)) == plan


def test_the_line_about_native_regions(plan):
    def line(*regions: NativeRegion, reason: str = "") -> str:
        return str(dataclasses.replace(plan, native=regions, not_native=reason)).splitlines()[2]

    first, second = NativeRegion(("a", "b"), 9, ("exp",)), NativeRegion(("c", "d"), 3, ("exp", "the result"))
    assert line(first) == "native: 1 region in one call, 2 of 6 contractions; ended by: exp"
    both = "native: 2 regions in one call each, 4 of 6 contractions; ended by: exp (2), the result"
    assert line(first, second) == both
    assert line(reason="no oneDNN") == "native: none: no oneDNN"
    assert not line().startswith("native")
    assert str(first) == "2 contractions in 9 steps: a to b; ended by exp"


def chain(v, x):
    """Two contractions, a sort, which no region has a step for, and two contractions again."""
    x = jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"])
    return jax.nn.relu(jnp.sort(x) @ v["c"]) @ v["d"]


CHAIN = {name: jax.random.normal(jax.random.key(i), (64, 64)) for i, name in enumerate("abcd")}
ROWS = jax.random.normal(jax.random.key(9), (16, 64))
STATIC = {"ranges": {f"{name}:dot": q8.Range(-4.0, 4.0) for name in "abcd"}, "config": q8.Config()}


@pytest.fixture(scope="module")
def encoded():
    return q8.quantize_weights(chain, CHAIN, ROWS)


@needs_native
def test_native_regions_are_in_the_plan(encoded):
    packed = q8.pack(chain, encoded, ROWS, **STATIC)
    plan = q8.explain(chain, packed, ROWS, **STATIC)
    assert [region.sites for region in plan.native] == [("a:dot", "b:dot"), ("c:dot", "d:dot")]
    assert [region.ended for region in plan.native] == [("sort",), ("the result",)]
    assert all(region.steps >= region.contractions == 2 for region in plan.native)
    assert [plan[f"{name}:dot"].kernel for name in "abcd"] == [f"native: region {n}" for n in (1, 1, 2, 2)]
    assert "native: 2 regions in one call each, 4 of 4 contractions; ended by: sort, the result" in str(plan)
    assert q8.Plan.from_json(plan.to_json()) == plan


@needs_native
def test_a_contraction_without_packed_weight_ends_a_region(encoded):
    packed = q8.pack(chain, encoded, ROWS, **STATIC)
    without = {**packed, "d": encoded["d"]}
    plan = q8.explain(chain, without, ROWS, **STATIC)
    assert [region.sites for region in plan.native] == [("a:dot", "b:dot")]
    assert plan["d:dot"].kernel.startswith("xla")


@needs_native
def test_why_there_are_no_native_regions(encoded):
    packed = q8.pack(chain, encoded, ROWS, **STATIC)
    xla = q8.Config(kernels="xla")

    def reason(variables, **settings) -> str:
        return q8.explain(chain, variables, ROWS, **settings).not_native

    assert reason(encoded, **STATIC) == NOTHING_PACKED
    assert reason(encoded) == ""  # without ranges a Plan does not ask for packing
    assert reason(encoded, ranges=STATIC["ranges"], config=xla) == ""
    assert reason(packed, ranges=STATIC["ranges"], config=xla) == "Config(kernels='xla')"
    alone = {**packed, "b": encoded["b"], "c": encoded["c"]}
    assert reason(alone, **STATIC).startswith("no two contractions with packed weights are connected")
    q8.bar_forms("region")
    try:
        assert reason(packed, **STATIC) == "barred by the self-check or JAXQ8_BARRED_FORMS"
        assert reason(encoded, **STATIC) == ""
    finally:
        q8.bar_forms()


def test_without_native_regions_a_plan_says_nothing_of_them(run_python):
    code = (
        "from tests.test_plan import *; q = q8.quantize_weights(chain, CHAIN, ROWS); "
        "print('native' in str(q8.explain(chain, q, ROWS, **STATIC)))"
    )
    assert run_python(code, JAXQ8_NATIVE="off") == "False\n"


def _change(text: str, **changes) -> str:
    document = json.loads(text)
    document["sites"][0].update(changes)
    return json.dumps(document)


DAMAGE = {
    "not JSON": lambda text: text[:-20],
    "empty": lambda text: "",
    "another document": lambda text: "[1, 2]",
    "no version": lambda text: text.replace('"version"', '"edition"'),
    "another version": lambda text: text.replace('"version": 1', '"version": 99'),
    "no sites": lambda text: text.replace('"sites"', '"places"'),
    "sites that are numbers": lambda text: '{"version": 1, "sites": [1], "unused_overrides": []}',
    "an unknown reason": lambda text: _change(text, reason="TIRED"),
    "an unknown field": lambda text: _change(text, colour="red"),
    "half a refusal": lambda text: _change(text, refused=[["dot"]]),
    "too deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_json_is_refused(plan, damage):
    with pytest.raises(q8.QuantizationError, match=r"plan: not a document of Plan.to_json\(\) version 1"):
        q8.Plan.from_json(DAMAGE[damage](plan.to_json()))


def golden_fields(plan: q8.Plan) -> list[dict]:
    sites = json.loads(plan.to_json())["sites"]
    return [{field: site[field] for field in FIELDS} for site in sites]


def test_golden_plan_of_a_small_network(plan):
    """A change of this file is a change of what users see: read the difference before accepting it."""
    assert golden_fields(plan) == json.loads(GOLDEN.read_text())


def test_golden_plan_agrees_with_the_shapes_of_the_network():
    """The file itself, counted by hand: outputs times window times channels of each contraction, at batch 2."""
    macs = {site["name"]: site["macs"] for site in json.loads(GOLDEN.read_text())}
    expected = {
        "ConvNorm_0/conv/kernel:conv": 16 * 16 * 9 * 3 * 16,
        "ConvNorm_1/conv/kernel:conv": 8 * 8 * 16 * 16,
        "ConvNorm_2/conv/kernel:conv": 8 * 8 * 9 * 16 * 16,
        "ConvNorm_3/conv/kernel:conv": 8 * 8 * 9 * 32 * 32,
        "ConvNorm_4/conv/kernel:conv": 4 * 4 * 9 * 32 * 32,
        "Dense_0/kernel:dot": 32 * 10,
    }
    assert {k: v for k, v in macs.items() if v} == {f"params/{k}": 2 * v for k, v in expected.items()}


@pytest.mark.parametrize(
    "folder", ["/home/me/jax/", "/data/flax/nets/", "/src/jaxq8/tests/", "C:/jaxq8/jax/flax/"]
)
def test_lines_of_users_are_known_in_folders_with_names_of_libraries(folder):
    """A clone of this repository, or a project beside it, may be called as an installed package is."""
    names: dict = {}
    exec(compile("def fn(v, x):\n    return x @ v['w']\n", f"{folder}net.py", "exec"), names)
    plan = q8.explain(names["fn"], PAIR, X, config=ALWAYS)
    assert plan["w:dot"].source == "net.py:2"


def test_lines_of_libraries_are_not_the_users():
    layer = nn.Dense(64)
    plan = q8.explain(lambda v, x: layer.apply(v, x), layer.init(jax.random.key(0), X), X, config=ALWAYS)
    assert plan["params/kernel:dot"].source.startswith("test_plan.py:")
    plan = q8.explain(lambda v, x: jnp.matmul(x, v["w"]), PAIR, X, config=ALWAYS)
    assert plan["w:dot"].source.startswith("test_plan.py:")
