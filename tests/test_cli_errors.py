"""Every mistake on the command line is one line with place and remedy; a killed command leaves the old file whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxq8.cli import main
from tests.cli_net import SMALL

pytest_plugins = ["tests.cli_model"]
ROOT = Path(__file__).resolve().parents[1]


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
        (f"{QUANTIZE} --mean 1 2", "--mean: give one number, or three, one a channel, such as --mean 123,117,104"),
        (f"{QUANTIZE} --mean 1,x", "argument --mean: 'x' is not a number; write --mean 123,117,104, or --mean 123 117 104"),
        (f"{QUANTIZE} --std 1,,2", "argument --std: '' is not a number; write --std 58,57,57, or"),
        (f"{QUANTIZE} --size 0", "argument --size: '0' is not a positive integer; write --size 224,224, or"),
        (f"{QUANTIZE} --size 8,8,3", "--size: give one number, or two, height and width"),
        ("bench net.q8x --batches 1,b", "argument --batches: 'b' is not a positive integer; write --batches 1,8, or"),
        (f"{QUANTIZE}x --platforms cpu,abacus", "abacus is unknown; known are cpu, tpu, cuda, rocm; write --platforms cpu"),
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
    fails(
        "run net.q8 --input x.npy", "net.q8 holds weights alone; name the model, as MODULE:FUNCTION", status=2
    )


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
