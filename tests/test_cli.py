"""The command line: every command does what its help says, and every mistake is one line with place and remedy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.serialization import to_bytes
from safetensors.numpy import load_file, save_file

import jaxq8 as q8
from examples import assets
from jaxq8.cli import main
from tests.small import sqnr_db

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
needs_demo = pytest.mark.skipif(
    not assets.is_installed("demo"), reason="run `make assets`: weights are missing"
)
MODEL = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0):
        return nn.Dense(5, name="last")(nn.relu(nn.Dense(64, name="first")(x))) * scale


class Small(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(32, 64, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.first(x))))


def small():
    return Small(nnx.Rngs(0))


def load():
    return Net(), Net().init(jax.random.key(0), jnp.ones((1, 32)))


def plain(variables, x):
    p = variables["params"]
    return jax.nn.relu(x @ p["first"]["kernel"]) @ p["last"]["kernel"]


def broken():
    raise RuntimeError("no weights today")


def whole(variables, x):
    return jnp.sum(plain(variables, x))


number = 3
"""
BYTES = (32 * 64 + 64 + 64 * 5 + 5) * 4
SMALL = ["--kernels", "xla", "--input-shape", "1,32"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, its weights, inputs, and the files that `quantize` makes of them."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "net.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.standard_normal((10, 32), np.float32))
    names = {"first/kernel": (32, 64), "first/bias": (64,), "last/kernel": (64, 5), "last/bias": (5,)}
    weights = {f"params/{n}": rng.standard_normal(s, np.float32) / 8 for n, s in names.items()}
    save_file(weights, folder / "net.safetensors")
    model, params = f"{folder}/net.py:Net", ["--params", f"{folder}/net.safetensors"]
    for name in ("net.q8", "net.q8x"):
        more = ["--calibrate", f"{folder}/x.npy"] if name == "net.q8" else ["--platforms", "cpu"]
        assert main(["quantize", model, *params, *SMALL, *more, "--output", str(folder / name)]) == 0
    return folder


@pytest.fixture
def at(made, monkeypatch):
    """The folder of `made`, as the current one."""
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def call(capsys):
    """``call(line) -> (status, stdout, stderr)`` of a command line, split at spaces."""

    def run(line, *more):
        capsys.readouterr()
        status = main([*line.split(), *map(str, more)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fails(call):
    """``fails(line, text, status=1)``: the command says so in one line on stderr, and nothing else."""

    def run(line, *texts, status=1):
        found, out, err = call(line)
        assert (found, out) == (status, "")
        assert len(err.splitlines()) == 1 or status == 2, err
        assert "Traceback" not in err
        for text in texts:
            assert text in err

    return run


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
    for command in ("quantize", "inspect", "dequantize", "explain", "compare", "run", "bench", "diff"):
        status, out, _ = call(f"{command} --help")
        assert status == 0
        assert out.startswith(f"usage: jaxq8 {command}")
    assert call("--version")[1] == f"jaxq8 {q8.__version__}\n"


QUANTIZE = "quantize net.py:Net --params net.safetensors --input-shape 1,32 --output bad.q8"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("quantise x", "invalid choice: 'quantise'"),
        (f"{QUANTIZE} --mode nine", "argument --mode: invalid choice: 'nine' (choose from"),
        (f"{QUANTIZE} --bits 9", "argument --bits: invalid choice: 9"),
        ("quantize net.py:Net --params net.safetensors --output bad.q8", "give --input-shape 1,224,224,3, or files"),
        ("quantize net.py:Net --input-shape 1,32 --output bad.q8", "comes without weights; give their file with --params"),
        ("quantize net --input-shape 1,32 --output bad.q8", "'net' names no model; write MODULE:FUNCTION"),
        ("quantize net.py:load --input-shape 1,x --output bad.q8", "'1,x' is not like 1,224,224,3"),
        ("quantize net.py:load --input-shape 1,32 --output bad.bin", "end it in .q8 (weights) or .q8x"),
        ("quantize net.py:Net --params net.q8 --input-shape 1,32 --output bad.q8", "net.q8 is quantized already"),
        (f"{QUANTIZE} --override *", "says nothing to change; add FIELD=VALUE"),
        (f"{QUANTIZE} --override * bits=1", "bits are 2 to 8"),
        (f"{QUANTIZE} --override * colour=red", "fields are mode, bits, rounding, kernels"),
        (f"{QUANTIZE} --keyword train", "write NAME=JSON, such as train=false"),
        (f"{QUANTIZE} --mean 1 2", "--mean: give one number, or three"),
        (f"{QUANTIZE}x --platforms cpu,abacus", "abacus is unknown; known are cpu, tpu, cuda"),
        ("run net.q8x", "no inputs; give --image, --input or --text"),
        ("run net.q8x --params net.q8 --input x.npy", "leave out --params"),
        ("run net.q8x --input x.npy --output y.csv", "end it in .jsonl (can be resumed) or .npy"),
        ("run net.q8x --input x.txt", "arrays come as .npy or .npz"),
        ("run net.q8x --text words.txt", "texts need --preprocess"),
        ("compare net.q8 net.q8x --input x.npy", "say of what with --model"),
        ("dequantize net.q8 --output back.bin", "end it in .safetensors, .npz, .msgpack"),
    ],
)  # fmt: skip
def test_wrong_usage(at, fails, line, text):
    Path("words.txt").write_text("a word\n")
    fails(line, text, status=2)
    assert not Path("bad.q8").exists()


def spoilt(path, change):
    """The weights of the model, changed by a function of their flat names."""
    flat = load_file("net.safetensors")
    change(flat)
    save_file(flat, path)


def test_weights_that_do_not_fit(at, fails):
    spoilt("less.safetensors", lambda w: w.pop("params/last/bias"))
    spoilt("wide.safetensors", lambda w: w.update({"params/last/bias": np.zeros(7, np.float32)}))
    spoilt("nan.safetensors", lambda w: w["params/last/bias"].__setitem__(0, np.nan))
    line = "quantize net.py:{} --params {} --input-shape 1,32 --output bad.q8"
    for model in ("Net", "load"):  # checked against the module, and against what the loader returned
        fails(
            line.format(model, "less.safetensors"),
            "less.safetensors does not fit net.py:",
            "params/last/bias is missing",
        )
        fails(
            line.format(model, "wide.safetensors"),
            "params/last/bias has shape [7] instead of [5]; give the weights",
        )
        fails(
            line.format(model, "nan.safetensors"),
            "nan.safetensors: weight params/last/bias holds NaN or infinity; repair",
        )
    spoilt("other.safetensors", lambda w: w.pop("params/first/kernel"))
    fails(
        line.format("plain", "other.safetensors"),
        "tracing net.py:plain failed (KeyError: 'kernel'); check that --params",
    )
    fails(
        "quantize net.py:Net --params net.safetensors --input-shape 1,31 --output bad.q8",
        "does not fit",
        "[32, 64] instead of [31, 64]",
    )


def test_files_that_are_damaged(at, fails):
    whole = Path("net.q8").read_bytes()
    Path("cut.q8").write_bytes(whole[: len(whole) // 2])
    Path("cut.safetensors").write_bytes(Path("net.safetensors").read_bytes()[:500])
    at_codes = bytearray(whole)
    at_codes[-1] ^= 1
    Path("flipped.q8").write_bytes(at_codes)
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:300])
    Path("cut.npz").write_bytes(b"PK\x03\x04 no")
    Path("what.bin").write_bytes(b"what is it")
    for line in (
        "inspect cut.q8",
        "dequantize cut.q8 --output o.npz",
        "run net.py:Net --params cut.q8 --input x.npy",
    ):
        fails(line, "cut.q8: not a whole safetensors file", "get it again")
    fails("diff net.q8 cut.q8", "cut.q8: not a whole", status=2)
    fails("inspect flipped.q8 --verify", "does not match its checksum; get the file again")
    fails(
        "quantize net.py:Net --params cut.safetensors --input-shape 1,32 --output bad.q8",
        "cut.safetensors: not a whole",
    )
    fails("run net.q8x --input cut.npy", "cut.npy: is not a whole file of arrays", "write it again")
    fails("run net.q8x --input cut.npz", "cut.npz: is not a whole file of arrays")
    fails("inspect what.bin", "what.bin: unknown kind of file; known are .safetensors")
    fails("run net.py:Net --params what.bin --input x.npy", "what.bin: unknown kind of weights")
    fails(
        "run net.py:load --params what.bin --input x.npy", "what.bin: unknown kind of weights; known are .q8"
    )
    fails("inspect none.q8", "none.q8: no such file or folder; check the path")
    fails("run net.q8 --input x.npy", "'net.q8' names no model; write MODULE:FUNCTION", status=2)


def test_models_that_are_none(at, fails):
    Path("bad_import.py").write_text("import a_package_that_is_not_there\n")
    Path("bad_syntax.py").write_text("def (:\n")
    line = "run {} --input x.npy"
    fails(
        line.format("no_such_module_here:f"),
        "there is no module 'no_such_module_here'; run from the folder that holds it",
    )
    fails(
        line.format("bad_import:f"),
        "importing bad_import needs a_package_that_is_not_there, which is not installed",
    )
    fails(line.format("bad_syntax.py:f"), "importing bad_syntax.py failed (SyntaxError", "repair it")
    fails(line.format("nowhere.py:f"), "nowhere.py: no such file; check the path")
    fails(line.format("net.py:Nett --params net.q8"), "net.py has no attribute 'Nett'; did you mean Net")
    fails(line.format("net.py:number --params net.q8"), "net.py:number is a int; name a function")
    fails(line.format("net.py:broken"), "calling net.py:broken failed (RuntimeError: no weights today)")
    fails(
        line.format("net.py:whole --params net.safetensors"), "a result of shape [] has no axis of 1 examples"
    )


def test_settings_that_are_wrong(at, fails):
    Path("r.json").write_text("{")
    fails(
        f"{QUANTIZE} --ranges r.json",
        "--ranges r.json: ranges: not valid JSON",
        "write them with Ranges.to_json()",
    )
    Path("r.json").write_text('{"version": 1, "ranges": {"params/first/kernel:dott": [0, 1]}}')
    fails(
        f"{QUANTIZE} --kernels xla --ranges r.json",
        "does not have: 'params/first/kernel:dott' (did you mean 'params/first/kernel:dot'",
    )
    fails(f"{QUANTIZE} --rounding wildly", "rounding", "wildly", "half_even")
    fails(
        "quantize net.py:load --input-shape 1,32 --output none/bad.q8",
        "there is no folder none; make it first",
    )
    fails("inspect net.q8 --tensor params/fist/kernel", "did you mean params/first/kernel")
    fails("inspect net.q8x --ranges", "holds no static ranges; make them with `jaxq8 quantize --calibrate`")
    fails(
        "explain net.q8x --input-shape 1,32", "an exported program holds no plan; explain its MODULE:FUNCTION"
    )
    fails("dequantize net.safetensors --output back.npz", "is a float file already; give a .q8 or .q8x")


def test_calibration_data_that_cannot_be_used(at, fails):
    x = np.load("x.npy")
    x[7, 3] = np.inf
    np.save("inf.npy", x)
    np.save("narrow.npy", x[:, :7])
    np.save("scalar.npy", np.float32(1))
    line = "quantize net.py:load --kernels xla --output bad.q8 --calibrate"
    fails(f"{line} inf.npy", "inf.npy[7]: holds NaN or infinity; repair it or leave it out")
    fails(f"{line} narrow.npy", "does not fit net.py:load", "[32, 64] instead of [7, 64]")
    fails(f"{line} scalar.npy", "scalar.npy: shapes [] have no common first axis of examples")
    fails(f"{line} none.npy", "none.npy: no such file or folder")


def test_an_error_of_ours_is_one_line_too(at, fails, monkeypatch):
    def wrong(path):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("jaxq8.cli.inspection.contents", wrong)
    fails("inspect net.q8", "error: ZeroDivisionError: a bug; run with `jaxq8 --traceback` and report it")


def test_traceback_on_request(at, call):
    assert "Traceback" in call("--traceback inspect none.q8")[2]


KILLED = """
import os, signal, sys
from jaxq8.cli import main
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_killed_while_writing(at):
    """The old file stays as it was, whichever command was about to replace it."""
    shutil.copy("net.q8", "kept.q8")
    before = Path("kept.q8").read_bytes()
    line = f"quantize net.py:load {' '.join(SMALL)} --bits 4 --output kept.q8"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *line.split()],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    assert Path("kept.q8").read_bytes() == before
    assert main(line.split()) == 0
    assert Path("kept.q8").read_bytes() != before


def test_as_a_program(at):
    """`python -m jaxq8` in a process of its own; a reader of its output that stops early is no error."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m jaxq8 run net.q8x --input x.npy --quiet | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False, env=env
    )
    assert json.loads(done.stdout)["input"] == "x.npy[0]"
    assert (done.returncode, done.stderr) == (0, "")
