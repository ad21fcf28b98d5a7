"""The tutorials run from top to bottom, and show what is committed with them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def program():
    """docs/run_notebooks.py as a module."""
    spec = importlib.util.spec_from_file_location("run_notebooks", DOCS / "run_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(path, *options):
    """docs/run_notebooks.py in a process of its own: (status, what it printed)."""
    command = [sys.executable, str(DOCS / "run_notebooks.py"), str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


# Compiling takes most of the time: about a minute each on two cores.
@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path):
    before = path.read_bytes()
    status, printed = run(path, "--check")
    assert status == 0, printed
    assert path.read_bytes() == before


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["image_model", "rounding_experiment", "transformer"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_what_it_shows(program, path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < program.LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, in order
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum(any(kind.startswith("image/") for kind in o.get("data", {})) for o in outputs) >= 3
    assert not [text for _, text in program.texts(notebook) if program.PATH.search(text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for link in re.findall(r"\]\(([^)\s#]+)", cell.source) if cell.cell_type == "markdown" else []:
            assert "://" in link or (path.parent / link).exists(), link


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise KeyError('lost')", "raise KeyError('lost')"),
        ("print('/home/somebody/model.q8')", "cell 1: tells a folder of this machine: /home/somebody"),
    ],
)
def test_nothing_is_kept_of_a_run_that_went_wrong(tmp_path, source, message):
    path = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    before = path.read_bytes()
    status, printed = run(path)
    assert status == 1
    assert message in printed
    assert path.read_bytes() == before


def test_the_kernel_is_this_python(tmp_path):
    path = tmp_path / "which.ipynb"
    source = "import sys\nprint(sys.prefix.replace('/', '|'))"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    status, printed = run(path)
    assert status == 0, printed
    shown = nbformat.read(path, as_version=4).cells[0].outputs[0].text
    assert shown.strip() == sys.prefix.replace("/", "|")
