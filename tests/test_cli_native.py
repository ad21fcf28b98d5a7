"""`jaxq8 run` and `jaxq8 bench` with native regions: weights are packed by default, a line says so, options switch it off."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.cli import main
from jaxq8.native import library

needs_native = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
MODEL = """
import jax, jax.numpy as jnp, numpy as np

def conv(x, w):
    return jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))

def net(variables, x):
    return jnp.mean(conv(conv(x, variables["v"]), variables["w"]), axis=(1, 2))

def two():
    random = np.random.default_rng(0)
    return net, {k: random.standard_normal((3, 3, n, 16), np.float32) for k, n in (("v", 3), ("w", 16))}
"""


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """A .q8 of the model with static ranges, and the inputs that they come from."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "net.py").write_text(MODEL)
    np.save(folder / "x.npy", np.random.default_rng(3).standard_normal((8, 8, 8, 3), np.float32))
    line = f"quantize {folder}/net.py:two --input-shape 1,8,8,3 --calibrate {folder}/x.npy --output {folder}/s.q8 --quiet"
    assert main(line.split()) == 0
    return folder


@pytest.fixture
def at(static, tmp_path, monkeypatch):
    """An empty current folder with the model in it."""
    (tmp_path / "net.py").symlink_to(static / "net.py")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys):
    """``call(line) -> (status, stdout, stderr)``."""

    def run(line):
        capsys.readouterr()
        status = main(line.split())
        return status, *capsys.readouterr()

    return run


STATIC = "run net.py:two --params {0}/s.q8 --input {0}/x.npy --batch 4"


@needs_native
def test_weights_of_static_ranges_are_packed(at, static, call):
    line = STATIC.format(static)
    status, out, err = call(f"{line} --output n.jsonl --json")
    assert status == 0
    assert re.search(
        r"jaxq8 run: native regions: 2 weights packed for oneDNN 3\S* \(\S+, \d+ threads?\); ", err
    )
    assert json.loads(out)["native"].startswith("native regions: 2 weights packed")
    assert call(f"{line} --output n.npy --quiet")[2] == ""
    status, out, err = call(f"{line} --kernels xla --output x.npy")
    assert (status, "native" in err) == (0, False)
    native, xla = np.load("n.npy"), np.load("x.npy")
    np.testing.assert_allclose(native, xla, atol=1e-2 * np.abs(xla).max())
    # Results of one backend are not continued by another.
    status, _, err = call(f"{line} --kernels xla --output n.jsonl")
    assert status == 1
    assert "is of another model or of other options" in err


def test_without_native_regions_the_reason_is_said(at, static, call, monkeypatch):
    monkeypatch.setattr(library, "status", lambda: q8.NativeStatus(False, "JAXQ8_NATIVE=off"))
    status, out, err = call(f"{STATIC.format(static)} --output n.jsonl --json")
    assert status == 0
    assert "jaxq8 run: no native regions: JAXQ8_NATIVE=off" in err
    assert json.loads(out)["native"] == "no native regions: JAXQ8_NATIVE=off"


def test_kernels_are_for_weights_of_a_q8(at, static, call):
    status, _, err = call(f"run net.py:two --input {static}/x.npy --kernels xla")
    assert status == 2
    assert "--kernels chooses for the weights of a .q8" in err


@needs_native
def test_bench_has_a_row_for_native_regions(at, static, call):
    line = f"bench net.py:two --params {static}/s.q8 --input-shape 1,8,8,3 --rounds 1 --json"
    status, out, err = call(line)
    assert status == 0
    assert [row["model"].partition(", ")[2].rpartition("/")[2] for row in json.loads(out)["rows"]] == [
        "s.q8",
        "s.q8, native",
    ]
    assert "native regions: 2 weights packed" in err
    assert len(json.loads(call(f"{line} --kernels xla")[1])["rows"]) == 1
    status, out, _ = call("bench net.py:two --input-shape 1,8,8,3 --rounds 1 --native --json --quiet")
    names = [row["model"].partition(", ")[2] for row in json.loads(out)["rows"]]
    assert names == ["float", "eightbit", "eightbit, static", "eightbit, static, native"]
