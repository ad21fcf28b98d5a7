"""`jaxq8 run`: many inputs, some of them bad, killed in the middle, resumed: none twice, none missing, the same bytes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxq8 as q8
from examples import assets
from jaxq8.cli import main, photos
from jaxq8.cli.inputs import InputError, stacked
from tests.fidelity import SAME_ANSWERS

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = 20
needs_demo = pytest.mark.skipif(
    not assets.is_installed("demo"), reason="run `make assets`: weights are missing"
)
needs_full = pytest.mark.skipif(not assets.is_installed("full"), reason="run `make assets`: data are missing")
# A conv keeps one range for a whole batch, so results tell which examples were together.
MODEL = """
import os, time
import jax, jax.numpy as jnp, numpy as np

def net(variables, x):
    y = jax.lax.conv_general_dilated(x, variables["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.mean(jax.nn.relu(y), axis=(1, 2))

def load():
    return net, {"w": np.random.default_rng(0).standard_normal((3, 3, 3, 16), np.float32)}

def prepare(texts):
    time.sleep(float(os.environ.get("SLOW", 0)))
    seeds = [int(text) for text in texts]
    return np.stack([np.random.default_rng(s).standard_normal((8, 8, 3)) * (1 + s) for s in seeds]).astype(np.float32)

def tokens(variables, ids, mask):
    return jnp.sum(variables["w"][ids] * mask[..., None], axis=1)

def pad(texts):
    ids = np.array([[len(word) for word in text.split()] for text in texts], np.int32)
    return ids, ids > 0
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model that was exported for any batch."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "net.py").write_text(MODEL)
    (folder / "n.txt").write_text("".join(f"{i}\n" for i in range(120)))
    line = f"quantize {folder}/net.py:load --kernels xla --input-shape 1,8,8,3 --platforms cpu --output {folder}/net.q8x"
    assert main(line.split()) == 0
    return folder


@pytest.fixture
def at(made, tmp_path, monkeypatch):
    """An empty current folder with the model in it."""
    for name in ("net.py", "n.txt", "net.q8x"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    """``call(line) -> (status, stdout, stderr)``."""

    def run(line):
        capsys.readouterr()
        status = main(line.split())
        return status, *capsys.readouterr()

    return run


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


RUN = "run net.q8x --text n.txt --preprocess net.py:prepare --batch 8"


def test_killed_and_resumed(at, call):
    """kill -9 in the middle, and half a line after it: the finished file is, byte for byte, that of a run left alone."""
    assert call(f"{RUN} --output whole.jsonl")[0] == 0
    command = [sys.executable, "-m", "jaxq8", *RUN.split(), "--output", "killed.jsonl"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW": "0.03"}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if Path("killed.jsonl").exists() and Path("killed.jsonl").read_bytes().count(b"\n") >= 16:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    whole, killed = Path("whole.jsonl").read_bytes(), Path("killed.jsonl").read_bytes()
    assert 0 < len(killed) < len(whole)
    # What a kill inside of a write leaves: the middle of a batch, and half a line.
    after = killed + whole[len(killed) :][: 3 * len(whole) // 120 + 40]
    Path("killed.jsonl").write_bytes(after)
    status, out, err = call(f"{RUN} --output killed.jsonl --json")
    assert status == 0
    assert Path("killed.jsonl").read_bytes() == whole
    assert json.loads(out)["done_before"] == after.count(b"\n")
    assert "were done before" in err
    assert [e["input"] for e in lines("killed.jsonl")] == [f"n.txt:{i}" for i in range(1, 121)]


def test_every_cut_is_resumed(at, call):
    """Wherever a file of results ends, the next run completes it to the same bytes."""
    Path("few.txt").write_text("1\n2\n3\n4\n5\n")
    line = "run net.q8x --text few.txt --preprocess net.py:prepare --batch 2 --top 2 --output r.jsonl --quiet"
    assert call(line)[0] == 0
    whole = Path("r.jsonl").read_bytes()
    for cut in range(0, len(whole), 61):
        Path("r.jsonl").write_bytes(whole[:cut])
        assert call(line)[0] == 0
        assert Path("r.jsonl").read_bytes() == whole
    before = os.stat("r.jsonl").st_mtime_ns
    assert call(line)[0] == 0  # nothing is left to do, and nothing is done
    assert os.stat("r.jsonl").st_mtime_ns == before


def test_results_are_those_of_the_model(at, call):
    """A short last batch is filled up with an input of its own, which moves no range."""
    x = np.random.default_rng(3).standard_normal((7, 8, 8, 3), np.float32)
    np.save("x.npy", x)
    assert call("run net.q8x --input x.npy --batch 4 --output y.npy")[0] == 0
    model = q8.load_exported("net.q8x")
    padded = np.concatenate([x[4:], x[4:5]])
    np.testing.assert_array_equal(np.load("y.npy"), np.concatenate([model(x[:4]), model(padded)[:3]]))
    assert call("run net.q8x --input x.npy x.npy --output once.npy")[0] == 0
    assert np.load("once.npy").shape == (7, 16)  # the same input named twice runs once


def test_unreadable_inputs(at, call):
    """The others run; the bad ones are listed with their reasons, and are tried again by the next run."""
    x = np.random.default_rng(3).standard_normal((4, 8, 8, 3), np.float32)
    x[2, 0, 0, 0] = np.nan
    np.save("x.npy", x)
    Path("shots").mkdir()
    for i, size in enumerate([(40, 30), (9, 50), (8, 8)]):
        Image.new("RGB", size, (10 * i, 20, 30)).save(f"shots/{i}.png")
    whole = Path("shots/1.png").read_bytes()
    Path("shots/1.png").write_bytes(whole[: len(whole) // 2])
    Path("shots/notes.md").write_text("no photo")
    line = "run net.q8x --image shots --input x.npy --output r.jsonl"
    status, out, err = call(f"{line} --json")
    found = json.loads(out)
    assert status == 1
    assert [f["input"] for f in found["failed"]] == ["shots/1.png", "x.npy[2]"]
    assert (found["inputs"], found["done_now"]) == (7, 5)
    assert "skipped: shots/1.png: is not a readable image (" in err
    assert "skipped: x.npy[2]: holds NaN or infinity; repair it or leave it out" in err
    Path("shots/1.png").write_bytes(whole)
    np.save("x.npy", np.nan_to_num(x))
    assert call(line)[0] == 0
    assert sorted(e["input"] for e in lines("r.jsonl")) == sorted(
        [*(f"shots/{i}.png" for i in range(3)), *(f"x.npy[{i}]" for i in range(4))]
    )
    np.save("x.npy", x)
    status, _, err = call("run net.q8x --input x.npy --output y.npy")
    assert status == 1
    assert "y.npy is not written, as rows would be missing" in err
    assert not Path("y.npy").exists()


def test_inputs_that_do_not_fit(at, call):
    np.save("wide.npy", np.ones((2, 8, 9, 3), np.float32))
    np.save("whole.npy", np.ones((1, 8, 8, 3), np.complex64))
    np.savez("two.npz", a=np.ones((1, 8, 8, 3)), b=np.ones((1, 2)))
    for file, text in (
        ("wide.npy", "wide.npy[1]: has shape [8, 9, 3] instead of [8, 8, 3]; prepare it"),
        ("whole.npy", "whole.npy[0]: is complex64, the model takes float32; convert it"),
        ("two.npz", "two.npz[0]: has 2 arrays, the model takes 1; give all of its inputs"),
    ):
        status, out, err = call(f"run net.q8x --input {file}")
        assert (status, out) == (1, "")
        assert f"skipped: {text}" in err


def test_texts_are_filled_up(at, call):
    """Arrays of a text that are shorter than those beside it get zeros, which a mask leaves out."""
    np.savez("w.npz", w=np.eye(12, dtype=np.float32))
    Path("t.txt").write_text("a bb ccc\n\na\n")
    status, out, _ = call("run net.py:tokens --params w.npz --text t.txt --preprocess net.py:pad --batch 2")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [e["input"] for e in found] == ["t.txt:1", "t.txt:3"]
    assert [np.flatnonzero(e["output"]).tolist() for e in found] == [[1, 2, 3], [1]]


def test_top_and_labels(at, call):
    Path("names.txt").write_text("".join(f"name {i}\n" for i in range(16)))
    full = call(f"{RUN} --output a.jsonl")[0]
    top = call(f"{RUN} --output b.jsonl --top 3 --labels names.txt")[0]
    assert (full, top) == (0, 0)
    for a, b in zip(lines("a.jsonl"), lines("b.jsonl"), strict=True):
        order = np.argsort(-np.asarray(a["output"]), kind="stable")[:3].tolist()
        assert [t["class"] for t in b["top"]] == order
        assert [t["label"] for t in b["top"]] == [f"name {i}" for i in order]
        assert [t["value"] for t in b["top"]] == [a["output"][i] for i in order]
    Path("names.txt").write_text("one\n")
    assert "--labels holds 1 names, the model has 16 classes" in call(f"{RUN} --top 3 --labels names.txt")[2]
    assert "give both" in call(f"{RUN} --labels names.txt")[2]


def test_files_of_other_runs_are_left_alone(at, call):
    assert call(f"{RUN} --output r.jsonl --top 1")[0] == 0
    before = Path("r.jsonl").read_bytes()
    status, _, err = call(f"{RUN} --output r.jsonl --top 2")
    assert status == 1
    assert "r.jsonl: line 1 is of another model or of other options" in err
    assert "--restart to replace it" in err
    Path("notes.jsonl").write_text("my notes\n")
    assert "notes.jsonl: line 1 is no result of `jaxq8 run`" in call(f"{RUN} --output notes.jsonl")[2]
    Path("twice.jsonl").write_bytes(before.splitlines(keepends=True)[0] * 2)
    assert "twice.jsonl: line 2 repeats the input n.txt:1" in call(f"{RUN} --output twice.jsonl --top 1")[2]
    assert (Path("r.jsonl").read_bytes(), Path("notes.jsonl").read_text()) == (before, "my notes\n")
    assert call(f"{RUN} --output notes.jsonl --top 1 --restart")[0] == 0
    assert Path("notes.jsonl").read_bytes() == before
    with Path("r.jsonl").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "r.jsonl: another run is writing it; wait" in call(f"{RUN} --output r.jsonl --top 1")[2]


def test_a_program_for_one_batch(at, call):
    line = "quantize net.py:load --kernels xla --input-shape 1,8,8,3 --fixed-batch 3 --platforms cpu --output three.q8x"
    assert call(line.replace("1,8,8,3", "3,8,8,3"))[0] == 0
    np.save("x.npy", np.random.default_rng(3).standard_normal((7, 8, 8, 3), np.float32))
    assert call("run three.q8x --input x.npy --output y.npy")[0] == 0
    assert call("run net.q8x --input x.npy --batch 3 --output z.npy")[0] == 0
    np.testing.assert_allclose(np.load("y.npy"), np.load("z.npy"), rtol=1e-2, atol=1e-2)
    status, _, err = call("run three.q8x --input x.npy --batch 4")
    assert status == 2
    assert "three.q8x was exported for batches of 3; leave out --batch" in err


def test_photos_need_pillow(at, call, monkeypatch):
    photos.pillow.cache_clear()
    Image.new("RGB", (8, 8)).save("a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    err = call("run net.q8x --image a.png")[2]
    assert "reading photos needs Pillow" in err
    assert "pip install pillow, or give arrays with --input" in err


def test_a_folder_without_photos(at, call):
    Path("empty").mkdir()
    assert "empty: holds no images; check the folder" in call("run net.q8x --image empty")[2]


def test_stopped_from_the_keyboard(at, call, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxq8.cli.run.Job.process", stop)
    assert call(f"{RUN} --output r.jsonl")[0] == 130


@pytest.mark.assets
@pytest.mark.slow
@needs_demo
def test_squeezenet_from_weights_to_labels(tmp_path, monkeypatch, call):
    """Quantize, run without the model's code, and label the packaged photos; the program alone prepares them as the model's
    own function does.
    """  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model, folder = "examples.models.squeezenet", assets.path("foolbox/data")
    Path("photos").mkdir()
    for photo in folder.glob("imagenet_*.jpg"):
        (tmp_path / "photos" / photo.name).symlink_to(photo)
    line = f"quantize {model}:load --input-shape 1,224,224,3 --platforms cpu --output net.q8x --json"
    status, out, _ = call(line)
    assert status == 0
    assert json.loads(out)["eight_bit_share"] == 1
    base = "run net.q8x --image photos --top 1"
    assert call(f"{base} --preprocess {model}:preprocess --output own.jsonl")[0] == 0
    assert call(f"{base} --channels bgr --mean 103.939,116.779,123.68 --output plain.jsonl")[0] == 0
    own, plain = ([(e["input"], e["top"]) for e in lines(f)] for f in ("own.jsonl", "plain.jsonl"))
    assert own == plain
    right = [int(Path(name).stem.split("_")[2]) == top[0]["class"] for name, top in own]
    assert len(right) == PHOTOS
    assert sum(right) >= 15 - (PHOTOS - SAME_ANSWERS)  # float has 15


@pytest.mark.assets
@pytest.mark.slow
@needs_demo
def test_lite0_as_a_file(tmp_path, monkeypatch, call):
    """A quarter of its bytes is left, with 4-bit weights an eighth, as norms are folded; its answers stay."""
    monkeypatch.chdir(tmp_path)
    model, folder = "examples.models.efficientnet_lite", assets.path("foolbox/data")
    eagle = folder / "imagenet_17_22.jpg"
    line = f"quantize {model}:load --sample {eagle} --preprocess {model}:preprocess --output net.q8 --json"
    found = json.loads(call(line)[1])
    assert found["share"] <= 0.265
    assert found["folded_norms"] == 49
    assert found["error"]["top1"] == 1
    small = json.loads(
        call(f"quantize {model}:load --input-shape 1,224,224,3 --bits 4 --output four.q8 --json")[1]
    )
    assert small["share"] <= 0.14
    status, out, _ = call(
        f"run {model}:EfficientNetLite0 --params net.q8 --image {eagle} --mean 127 --std 128 --size 224 --top 1"
    )
    assert status == 0
    assert json.loads(out)["top"][0]["class"] == 22  # a bald eagle


@pytest.mark.assets
@pytest.mark.slow
@needs_full
def test_minilm_in_a_program(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    model = "examples.models.minilm"
    line = f"quantize {model}:load --input-shape 1,16:int32 --input-shape 1,16:bool --platforms cpu --output net.q8x --json"
    assert json.loads(call(line)[1])["share"] <= 0.265
    Path("t.txt").write_text("That is a happy person\nThat is a very happy person\nToday is a sunny day\n")
    text = f"--text t.txt --preprocess {model}:preprocess"
    assert call(f"run net.q8x {text} --output fast.npy")[0] == 0
    assert call(f"run {model}:load {text} --output exact.npy")[0] == 0
    fast, exact = np.load("fast.npy"), np.load("exact.npy")
    assert np.all(np.sum(fast * exact, axis=1) >= 0.99)
    Path("long.txt").write_text("word " * 40 + "\n")
    status, _, err = call(f"run net.q8x --text long.txt --preprocess {model}:preprocess")
    assert status == 1
    assert "long.txt:1: has shape [48] instead of [16]" in err


def test_lines_hold_any_tree(at, call):
    """A model with several results: nested as the model nests them, NaN and infinity as null."""
    Path("tree.py").write_text(
        "import jax.numpy as jnp\n"
        "def f(v, x):\n    return {'a': x * v['w'], 'b': (x[:, 0] / 0, jnp.argmax(x, axis=1))}\n"
    )
    np.savez("w.npz", w=np.full(2, 2, np.float32))
    np.save("x.npy", np.array([[1, 3]], np.float32))
    (found,) = [
        json.loads(line) for line in call("run tree.py:f --params w.npz --input x.npy")[1].splitlines()
    ]
    assert found["output"] == {"a": [2, 6], "b": [None, 1]}
    assert jax.tree.leaves(found["output"]) == [2, 6, 1]


def test_of_two_examples_of_unlike_length_the_one_with_too_few_arrays_is_named():
    whole = ("a.npz", (np.zeros((5, 2), np.float32), np.zeros(3, np.float32)))
    short = ("b.npz", (np.zeros((4, 2), np.float32),))
    with pytest.raises(InputError, match=r"b.npz: has 1 arrays, the model takes 2; give all of its inputs"):
        stacked([whole, short], ragged=True)
