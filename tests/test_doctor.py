"""`jaxq8 doctor` tells what a bug report needs and nothing about the person; `--version` and completion by TAB."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.cli import doctor, main
from jaxq8.kernels import barred, processor
from jaxq8.machine.selfcheck import SelfCheck

ROOT = Path(__file__).resolve().parents[1]
PARTS = [
    "jaxq8",
    "python",
    "packages",
    "optional packages",
    "system",
    "processor",
    "native regions",
    "devices",
    "variables",
    "example",
]


def test_the_report_has_every_part(capsys, monkeypatch):
    monkeypatch.setenv("JAXQ8_BARRED_FORMS", "rows")
    assert main(["doctor", "--no-selfcheck", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["ok", *PARTS]
    assert found["jaxq8"] == q8.__version__
    assert (found["packages"]["jax"], found["packages"]["numpy"]) == (jax.__version__, np.__version__)
    assert found["processor"]["taken for"] == processor.capability()
    assert set(found["processor"]["eight-bit instructions"]) <= processor.flags()
    assert found["variables"]["JAXQ8_BARRED_FORMS"] == "rows"
    assert main(["doctor", "--no-selfcheck"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w[\w -]*):", text, re.MULTILINE) == PARTS


def test_the_self_check_is_in_it(capsys):
    assert main(["doctor", "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["self-check"]
    assert check["ok"]
    assert set(check["forms used"]) <= set(barred.NAMES)
    # One case of each form; "encode" has two, and "region" none where there are no native regions.
    assert check["checks"] == len(barred.NAMES) + q8.native_status().available


@pytest.mark.parametrize("available", [True, False])
def test_what_runs_native_regions_or_why_nothing_does(capsys, monkeypatch, available):
    there = q8.NativeStatus(True, "", "3.2.0", "/home/somebody/lib/libdnnl.so.3", "AVX512_CORE_AMX", 2)
    missing = q8.NativeStatus(False, "oneDNN /home/somebody/libdnnl.so.3 cannot be loaded")
    monkeypatch.setattr(doctor.library, "status", lambda: there if available else missing)
    assert main(["doctor", "--no-selfcheck", "--json"]) == 0  # nothing is wrong without them
    text = capsys.readouterr().out
    assert "somebody" not in text
    expected = {"available": False, "why not": "oneDNN <path> cannot be loaded"}
    if available:
        expected = {
            "available": True,
            "library": "oneDNN 3.2.0",
            "instruction set": "AVX512_CORE_AMX",
            "threads": 2,
        }
    assert json.loads(text)["native regions"] == expected


def test_what_is_wrong_is_told(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such device at /home/somebody/driver.so")

    monkeypatch.setattr(doctor, "_devices", broken)
    monkeypatch.setattr(doctor, "selfcheck", lambda **_: SelfCheck((), "avx2"))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "no such device at <path>" in text
    assert "self-check:" in text  # the parts after the broken one are there
    assert main(["doctor", "--quiet"]) == 1
    assert "something is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("XLA_FLAGS", "--xla_dump_to=/home/somebody/dump --xla_x=1", "--xla_dump_to=<path> --xla_x=1"),
        ("JAX_COMPILATION_CACHE_DIR", "~/cache", "<path>"),
        ("JAXQ8_ASSETS", r"C:\Users\somebody\assets", "<path>"),
        ("JAX_PLATFORMS", "cpu,cuda", "cpu,cuda"),
        ("JAX_SECRET_TOKEN", "abc", "<hidden>"),
        ("OMP_NUM_THREADS", "2", "2"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", "AVX512_CORE_VNNI"),
    ],
)
def test_neither_paths_nor_secrets_are_shown(monkeypatch, name, value, shown):
    monkeypatch.setenv(name, value)
    assert doctor.variables()[name] == shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxq8 {q8.__version__}\n"


def test_the_shell_is_told_the_ends_of_a_word(tmp_path):
    pytest.importorskip("argcomplete")
    answers = tmp_path / "answers"
    line = "jaxq8 selfc"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answers), "COMP_LINE": line,
             "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_IFS": "\013"}  # fmt: skip
    code = "from jaxq8.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), **asked}, check=True
    )
    assert answers.read_text().split("\013") == ["selfcheck "]
