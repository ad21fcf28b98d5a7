"""A small model in a folder with its files, and fixtures that call the command line; tests name it in `pytest_plugins`."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxq8.cli import main
from tests.cli_net import MODEL, SMALL


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
