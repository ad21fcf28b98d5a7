"""The native extension in threads, after forks, with damaged programs, and its compilation, mostly in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxq8.native import calls, library
from tests import native_programs as programs

pytestmark = pytest.mark.skipif(
    not library.status().available, reason=f"no native regions: {library.status().reason}"
)
ROOT = Path(__file__).resolve().parents[1]
SAY = "from jaxq8.native import library; s = library.status(); print(s.available, s.reason)"


def test_calls_from_several_threads():
    rng = np.random.default_rng(8)
    x, w = (rng.integers(0, 100, dims).astype(np.uint8) for dims in ((4, 1, 14, 14, 32), (3, 3, 32, 48)))
    geometry = {"strides": (1, 1), "dilation": (1, 1), "low": (1, 1), "high": (1, 1)}
    expected = [programs.accumulator(image, w, **geometry) for image in x]
    program = programs.Program(x[0], w.view(np.int8), results=[np.zeros(expected[0].shape, np.int32)])
    inner = program.in_arena(np.int32, expected[0].shape)
    program.contract(0, 1, inner, kernel=(3, 3), **geometry)
    program.step(programs.COPY, inner, 2)
    words, shape = program.words(), jax.ShapeDtypeStruct(expected[0].shape, np.int32)
    compiled = jax.jit(lambda *a: calls.call(words, a, [shape])[0])
    equal = [0] * 4

    def work(i):
        for _ in range(40):
            equal[i] += np.array_equal(compiled(x[i], w.view(np.int8)), expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [40] * 4


def child(code, timeout=120, **env):
    """Runs Python code in a process of its own, from the repository's root."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ, **env}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_damaged_programs_do_not_crash():
    assert "damaged: 300" in child("from tests import native_fuzz as f; f.damage(300, seed=1)")


def test_random_programs():
    assert "random: 40" in child("from tests import native_fuzz as f; f.random_programs(40, seed=2)")


def test_after_a_fork_it_runs_with_one_thread():
    """The threads of OpenMP's team are not in the child, and it must not wait for them."""
    out = child("from tests import native_fuzz as f; f.fork()")
    assert out.split() == ["child", "equal", "parent", "equal"]


def test_switched_off():
    assert child(SAY, JAXQ8_NATIVE="off").strip() == "False JAXQ8_NATIVE=off"
    said = child(SAY, JAXQ8_ONEDNN="/nowhere/libdnnl.so.3")
    assert said.startswith("False oneDNN /nowhere/libdnnl.so.3 cannot be loaded")
    assert "finds no VNNI" in child(SAY, ONEDNN_MAX_CPU_ISA="AVX2")


@pytest.mark.slow
def test_two_processes_compile_at_once_and_a_broken_file_is_made_anew(tmp_path):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAXQ8_NATIVE_FLAGS": "-O0"}
    command = [sys.executable, "-c", SAY]
    both = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["True"] * 2
    (made,) = tmp_path.rglob("*.so")
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    made.write_bytes(b"broken")
    assert child(SAY, XDG_CACHE_HOME=str(tmp_path), JAXQ8_NATIVE_FLAGS="-O0").strip() == "True"
    assert made.stat().st_size > 1000


@pytest.mark.parametrize(
    ("env", "message"),
    [({"CXX": "no-such-compiler"}, "CXX=no-such-compiler is not there"), ({"CXX": "false"}, "the C++ compiler false fails")],
)  # fmt: skip
def test_why_it_cannot_be_compiled(env, message, tmp_path):
    assert message in child(SAY, XDG_CACHE_HOME=str(tmp_path), **env)
