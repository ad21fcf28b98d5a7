"""The command line: every command does what its help says."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.serialization import to_bytes
from safetensors.numpy import load_file, save_file

import jaxq8 as q8
from tests.cli_net import BYTES, SMALL
from tests.small import sqnr_db

GOLDEN = Path(__file__).parent / "golden"
pytest_plugins = ["tests.cli_model"]


def test_quantize_prints_sizes_share_and_error(at, call):
    status, out, _ = call("quantize net.py:load --kernels xla --calibrate x.npy --output out.q8 --json")
    found = json.loads(out)
    assert status == 0
    assert found["float_bytes"] == BYTES
    assert found["file_bytes"] == (at / "out.q8").stat().st_size
    assert found["eight_bit_share"] == 1
    assert found["multiply_adds"] == 32 * 64 + 64 * 5  # of one example
    assert found["error"]["examples"] == 10
    assert found["error"]["sqnr_db"] > 30
    tree, ranges, config = q8.load(at / "out.q8")
    assert tree["params"]["first"]["kernel"].bits == 8
    assert set(ranges) == {"params/first/kernel:dot", "params/last/kernel:dot"}
    assert config == q8.Config(kernels="xla")
    text = call("quantize net.py:load --kernels xla --calibrate x.npy --output out.q8")[1]
    assert "weights  9.7 kB in float32 -> " in text
    assert "100.0% of 0.0 million multiply-adds in eight bits (2 of 2 contractions)" in text
    assert "same first answer" in text


@pytest.mark.parametrize("mode", ["eightbit", "weights", "weights_rounded", "round", "simulate", "off"])
@pytest.mark.parametrize("form", ["q8", "q8x"])
def test_every_mode_is_written_and_runs(at, call, mode, form):
    """A file of each mode gives what `quantize` in that mode gives, whether with the model's code or without."""
    line = f"quantize net.py:Net --params net.safetensors {' '.join(SMALL)} --mode {mode} --bits 6 --output m.{form}"
    line += " --correct none"  # as `quantize` rounds weights that are float
    status, out, _ = call(line + (" --platforms cpu" if form == "q8x" else ""))
    assert status == 0
    assert ("after gzip" in out) == (mode == "weights_rounded")
    model = "m.q8x" if form == "q8x" else "net.py:Net --params m.q8"
    assert call(f"run {model} --input x.npy --output y.npy")[0] == 0
    variables, x = q8.load_float("net.safetensors"), np.load("x.npy")
    spec = {"activations": q8.Spec(bits=6)} if mode == "round" else {
        "weights": q8.Spec(bits=6, symmetric=True, granularity="channel")}  # fmt: skip
    fn = _apply()
    expected = [
        q8.quantize(fn, q8.Config(mode=mode, kernels="xla", **spec))(variables, x[i : i + 1])[0]
        for i in range(10)
    ]
    # Compiled apart, codes at the border of a rounding may fall either way.
    assert sqnr_db(np.stack(expected), np.load("y.npy")) > 40


@pytest.mark.parametrize(
    ("given", "correct"), [("", "auto"), ("--correct none", None), ("--correct statistics", "statistics")]
)
def test_codes_are_corrected_unless_it_is_declined(at, call, given, correct):
    line = (
        f"quantize net.py:Net --params net.safetensors {' '.join(SMALL)} --keep-norms --output m.q8 {given}"
    )
    assert call(line)[0] == 0
    variables, x = q8.load_float("net.safetensors"), np.load("x.npy")
    config = q8.Config(kernels="xla")
    expected = q8.quantize_weights(_apply(), variables, x[:1], config=config, correct=correct)
    pairs = zip(jax.tree.leaves(q8.load("m.q8")[0]), jax.tree.leaves(expected), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def _apply():
    from jaxq8.cli.models import load_model

    return load_model("net.py:load").fn


def test_four_bits_are_half_in_the_file(at, call):
    sizes = {}
    for bits in (8, 4):
        line = f"quantize net.py:load {' '.join(SMALL)} --bits {bits} --output m.q8 --json"
        call(line)
        sizes[bits] = sum(t.nbytes for t in jax.tree.leaves(q8.load("m.q8", lazy=True)[0]))
    assert sizes[8] - sizes[4] == (32 * 64 + 64 * 5) // 2


def test_overrides(at, call):
    line = f"quantize net.py:load {' '.join(SMALL)} --output m.q8"
    line += " --override params/first/* bits=4 --override op:dot rounding=half_away"
    assert call(line)[0] == 0
    tree, _, config = q8.load("m.q8")
    assert (tree["params"]["first"]["kernel"].bits, tree["params"]["last"]["kernel"].bits) == (4, 8)
    assert config.for_site("x", "dot").rounding == "half_away"
    status, _, err = call(f"quantize net.py:load {' '.join(SMALL)} --output m.q8 --override nowhere mode=off")
    assert status == 0
    assert "--override nowhere matches no site" in err


def test_weights_of_every_format(at, call):
    """The file of weights may be safetensors, npz, msgpack, or lack Flax's outer params; all give the same file."""
    flat = load_file("net.safetensors")
    tree = q8.load_float("net.safetensors")
    np.savez("w.npz", **flat)
    Path("w.msgpack").write_bytes(to_bytes(tree))
    save_file(
        {name.removeprefix("params/").replace("/", "."): a for name, a in flat.items()}, "bare.safetensors"
    )
    call(f"quantize net.py:Net --params net.safetensors {' '.join(SMALL)} --output a.q8")
    for file in ("w.npz", "w.msgpack", "bare.safetensors"):
        assert call(f"quantize net.py:Net --params {file} {' '.join(SMALL)} --output b.q8")[0] == 0
        assert call("diff a.q8 b.q8")[0] == 0, file


def test_an_orbax_folder(at, call):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as writer:
        writer.save(at / "step", q8.load_float("net.safetensors"))
    assert call(f"quantize net.py:plain --params step {' '.join(SMALL)} --output b.q8")[0] == 0
    assert call("diff step net.safetensors")[0] == 0
    assert "4 tensors" in call("inspect step")[1]


def test_nnx_models(at, call):
    """A model with random streams of its own: these stay out of the file, and dropout is off."""
    assert call(f"quantize net.py:small {' '.join(SMALL)} --output n.q8")[0] == 0
    assert call("run net.py:small --params n.q8 --input x.npy --output q.npy")[0] == 0
    assert call("run net.py:small --input x.npy --output f.npy")[0] == 0
    assert sqnr_db(np.load("f.npy"), np.load("q.npy")) > 30


def test_keywords(at, call):
    for keyword, file in (("scale=1.0", "a.npy"), ("scale=2.0", "b.npy")):
        line = f"run net.py:Net --params net.safetensors --keyword {keyword} --input x.npy --output {file}"
        assert call(line)[0] == 0
    np.testing.assert_array_equal(np.load("a.npy") * 2, np.load("b.npy"))


def test_ranges_are_printed_edited_and_taken(at, call):
    printed = call("inspect net.q8 --ranges")[1]
    ranges = json.loads(printed)
    ranges["ranges"]["params/first/kernel:dot"] = [-9.0, 9.0]
    Path("ranges.json").write_text(json.dumps(ranges))
    line = f"quantize net.py:load {' '.join(SMALL)} --ranges ranges.json --output r.q8"
    assert call(line)[0] == 0
    assert q8.load("r.q8")[1]["params/first/kernel:dot"] == q8.Range(-9, 9)


def test_inspect(at, call):
    text = call("inspect net.q8 --verify")[1]
    assert "config   mode eightbit, weights of 8 bits" in text
    assert "ranges   static for 2 sites" in text
    assert "verified 4 tensors" in text
    assert "s8 symmetric, 64 scales" in text
    assert "program for cpu, any batch" in call("inspect net.q8x")[1]
    found = json.loads(call("inspect net.q8 --json")[1])
    assert [t["shape"] for t in found["tensors"]] == [[64], [32, 64], [5], [64, 5]]
    assert found["float_bytes"] == BYTES
    assert "params/Dense_0/kernel" in call(f"inspect {GOLDEN}/version1.q8x")[1]


def test_code_books(call, tmp_path):
    """Every command that looks into files knows tensors of few values."""
    golden = GOLDEN / "version2.q8"
    real = json.loads((GOLDEN / "version2.json").read_text())["real"]
    assert "3-bit indices, 5 code books" in call(f"inspect {golden} --verify")[1]
    found = json.loads(call(f"inspect {golden} --tensor w --json")[1])
    assert (found["data_minimum"], found["data_maximum"], found["minimum"]) == (
        0,
        7,
        np.float32(np.min(real)),
    )
    assert call(f"dequantize {golden} --output {tmp_path}/w.npz")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "w.npz")["w"], np.float32(real))


def test_inspect_one_tensor(at, call):
    found = json.loads(call("inspect net.q8 --tensor params/first/kernel --json")[1])
    codes = np.asarray(q8.load("net.q8")[0]["params"]["first"]["kernel"].values)
    assert sum(found["histogram"]) == codes.size
    assert (found["data_minimum"], found["data_maximum"]) == (codes.min(), codes.max())
    counts = [
        int(np.sum((codes > a) & (codes < b)))
        for a, b in zip(found["edges"], found["edges"][1:], strict=False)
    ]
    assert found["histogram"] == counts
    assert "#####" in call("inspect net.q8 --tensor params/first/kernel")[1]
    assert "values: " in call("inspect net.safetensors --tensor params/first/bias")[1]


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "msgpack"])
@pytest.mark.parametrize("source", ["net.q8", "net.q8x"])
def test_dequantize(at, call, source, suffix):
    assert call(f"dequantize {source} --output back.{suffix}")[0] == 0
    found = q8.load_float(f"back.{suffix}")
    exact = q8.load("net.q8")[0]["params"]["first"]["kernel"].dequantize()
    np.testing.assert_array_equal(found["params"]["first"]["kernel"], exact)
    line = f"run net.py:Net --params back.{suffix} --input x.npy --output y.npy"
    assert call(line)[0] == 0  # the weights fit the model as they are


def test_explain(at, call):
    text = call(f"explain net.py:load {' '.join(SMALL)}")[1]
    assert "params/first/kernel:dot" in text
    plan = q8.Plan.from_json(call(f"explain net.py:Net --params net.q8 {' '.join(SMALL)} --json")[1])
    assert [s.eight_bit for s in plan.sites if s.macs] == [True, True]
    assert call("explain net.py:load --input x.npy --kernels xla")[1] == text


def test_compare(at, call):
    """Float against its .q8 site by site; against an exported program by results; a bound for scripts."""
    both = "compare net.safetensors net.q8 --model net.py:Net --input x.npy --batch 5"
    status, out, _ = call(both)
    assert status == 0
    assert "params/first/kernel:dot" in out
    assert "same first answer" in out
    found = json.loads(call(f"{both} --json")[1])
    assert len(found["sites"]) == 2
    exported = json.loads(call("compare net.safetensors net.q8x --model net.py:Net --input x.npy --json")[1])
    assert exported["sites"] == []
    assert exported["output"]["sqnr_db"] > 30
    same = json.loads(call("compare net.q8x net.q8x --input x.npy --json")[1])
    assert same["output"]["max_error"] == 0
    status, _, err = call(f"{both} --at-least 300")
    assert status == 1
    assert "is below the 300 dB" in err
    assert call(f"{both} --at-least 10")[0] == 0


def test_diff(at, call):
    flat = load_file("net.safetensors")
    flat["params/last/bias"][2] += 0.5
    flat["params/new"] = flat.pop("params/first/bias")
    save_file(flat, "other.safetensors")
    status, out, _ = call("diff net.safetensors other.safetensors")
    assert status == 1
    assert "1 of 5 values" in out
    assert "only in A" in out
    assert "only in B" in out
    assert "3 of 5 tensors differ" in out
    status, out, _ = call("diff net.q8 net.q8x --json")
    assert status == 1
    assert json.loads(out)["tensors"] == []  # the same codes; the ranges differ
    assert json.loads(out)["settings"][0].startswith("range of params/first")
    assert call("diff net.q8 net.q8")[:2] == (0, "0 of 4 tensors differ\n")


@pytest.mark.parametrize("batch", [8, 1, 3])
def test_an_example_that_stretches_ranges_is_named(at, call, tmp_path, batch):
    data = np.load("x.npy")
    data[4] *= 1000
    np.save(tmp_path / "x.npy", data)
    line = f"quantize net.py:load {' '.join(SMALL)} --calibrate {tmp_path}/x.npy --batch {batch} --output {tmp_path}/m.q8"
    status, _, err = call(line)
    assert status == 0
    assert len(err.splitlines()) == 1
    assert err.startswith(f"jaxq8: warning: --calibrate {tmp_path}/x.npy[4]: calibrate: ")
    assert "times as large as is usual at params/first/kernel:dot" in err


def test_bench(at, call):
    status, out, _ = call(
        "bench net.py:load net.q8x --input-shape 1,32 --kernels xla --batches 1 3 --rounds 2 --json"
    )
    rows = json.loads(out)["rows"]
    assert status == 0
    assert [(r["model"], r["batch"]) for r in rows] == [
        (name, n) for n in (1, 3) for name in ("net.py:load, float", "net.py:load, eightbit", "net.q8x")
    ]
    assert all(0 < r["fastest_ms"] <= r["median_ms"] for r in rows)


def test_help(call):
    for command in (
        "quantize",
        "inspect",
        "dequantize",
        "explain",
        "compare",
        "run",
        "bench",
        "diff",
        "selfcheck",
    ):
        status, out, _ = call(f"{command} --help")
        assert status == 0
        assert out.startswith(f"usage: jaxq8 {command}")
        assert f"\n  jaxq8 {command}" in out or command == "selfcheck"  # an example
        assert max(map(len, out.splitlines())) <= 130
    assert call("--version")[1] == f"jaxq8 {q8.__version__}\n"
