"""Options of the command line that take several values: commas, spaces, and both say the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxq8.cli.app import parser
from jaxq8.cli.lists import joined
from jaxq8.cli.options import config_of

pytest_plugins = ["tests.cli_model"]
RUN = ["run", "net.q8x"]


def parsed(*words):
    return parser().parse_args(joined(words))


@pytest.mark.parametrize("option", ["mean", "std", "size"])
@pytest.mark.parametrize(
    "words", [["12,11"], ["12", "11"], ["12,", "11"], ["12 ,11"], ["12, 11,"], ["12 11"], ["12", ",11"]]
)
def test_numbers_of_photos(option, words):
    assert getattr(parsed(*RUN, f"--{option}", *words), option) == [12, 11]


@pytest.mark.parametrize("words", [["-1,-2.5,3"], ["-1", "-2.5", "3"], ["-1,", "-2.5,", "3"]])
def test_negative_numbers(words):
    """Which argparse takes for options where they have commas."""
    assert parsed("run", "--mean", *words, "--top", "3", "net.q8x").mean == [-1, -2.5, 3]


@pytest.mark.parametrize("words", [["1,8,8,3"], ["1", "8", "8", "3"], ["1,", "8,", "8,", "3"], ["1 8 8 3"]])
@pytest.mark.parametrize("dtype", ["", ":float16"])
def test_shapes(words, dtype):
    """The model may follow: it is no part of the list."""
    options = parsed("explain", "--input-shape", *words[:-1], words[-1] + dtype, "net.py:Net")
    assert options.model == "net.py:Net"
    (shape,) = options.input_shape
    assert (shape.shape, shape.dtype) == ((1, 8, 8, 3), np.dtype(dtype[1:] or "float32"))


def test_shapes_of_two_inputs():
    options = parsed(
        "explain", "net.py:Net", "--input-shape", "1,", "16:int32", "--input-shape", "1", "16:bool"
    )
    assert [(s.shape, s.dtype.name) for s in options.input_shape] == [((1, 16), "int32"), ((1, 16), "bool")]


@pytest.mark.parametrize("words", [["cpu,cuda"], ["cpu", "cuda"], ["cpu,", "cuda"], ["cpu cuda"]])
def test_platforms(words):
    options = parsed("quantize", "--output", "n.q8x", "--platforms", *words, "net.py:Net")
    assert (options.platforms, options.model) == (["cpu", "cuda"], "net.py:Net")


@pytest.mark.parametrize("words", [["1,3"], ["1", "3"]])
def test_batches(words):
    assert parsed("bench", "net.q8x", "--batches", *words).batches == [1, 3]


@pytest.mark.parametrize(
    "words", [["bits=4,mode=weights"], ["bits=4", "mode=weights"], ["bits=4,", "mode=weights"]]
)
def test_overrides(words):
    config = config_of(parsed("explain", "net.py:Net", "--override", "*/[a,b]/*", *words))
    ((pattern, changes),) = config.overrides
    assert pattern == "*/[a,b]/*"
    assert dict(changes)["mode"] == "weights"
    assert dict(changes)["weights"].bits == 4


@pytest.mark.parametrize("command", ["run", "quantize"])
@pytest.mark.parametrize(
    "words", [["a.npy,b.npy"], ["a.npy", "b.npy"], ["a.npy,", "b.npy"], ["a.npy, b.npy"]]
)
def test_files(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b.npy"):
        np.save(name, np.zeros(1))
    option, more = ("input", []) if command == "run" else ("calibrate", ["--output", "n.q8"])
    assert getattr(parsed(command, "net.py:Net", *more, f"--{option}", *words), option) == ["a.npy", "b.npy"]


def test_files_whose_names_have_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "a.npy,b.npy"):
        np.save(name, np.zeros(1))
    assert parsed(*RUN, "--input", "a.npy,b.npy").input == ["a.npy,b.npy"]
    assert parsed(*RUN, "--input", "a.npy,c.npy").input == [
        "a.npy",
        "c.npy",
    ]  # and c.npy is what does not exist
    assert parsed(*RUN, "--input", "d,e.npy").input == ["d,e.npy"]


def test_a_run_with_commas_is_one_with_spaces(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mean.py").write_text(
        "import jax.numpy as jnp\n"
        "def load():\n    return (lambda v, x: x.mean((1, 2)) @ v['w']), {'w': jnp.eye(3)}\n"
    )
    Image.new("RGB", (8, 8), (200, 100, 50)).save("p.png")
    found = []
    for mean in ("123,117,104", "123 117 104"):
        status, out, _ = call(f"run mean.py:load --image p.png --size 8,8 --mean {mean} --std 2")
        assert status == 0
        found.append(json.loads(out)["output"])
    np.testing.assert_allclose(found, [[38.5, -8.5, -27]] * 2, rtol=1e-5)
