"""The tutorials run from top to bottom, and show what is committed with them."""

from __future__ import annotations

import importlib.util
import re
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


# Compiling for three networks takes about a minute each on two cores; nbclient warns of what its own event loop does.
@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(program, path):
    before = path.read_bytes()
    assert program.main([str(path), "--check"]) == 0
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


def test_a_cell_that_fails_and_a_path_that_is_told_are_errors(program, tmp_path):
    bad = {"fails": "raise KeyError('lost')", "tells": "print('/home/somebody/model.q8')"}
    for name, source in bad.items():
        path = tmp_path / f"{name}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, path)
        before = path.read_bytes()
        with pytest.raises(Exception, match="KeyError|tells a folder of this machine: /home/somebody"):
            program.main([str(path)])
        assert path.read_bytes() == before  # nothing is kept of a run that went wrong


def test_the_kernel_is_this_python(program, tmp_path):
    path = tmp_path / "which.ipynb"
    source = "import sys\nprint(sys.prefix.replace('/', '|'))"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    notebook = program.run(path)
    assert notebook.cells[0].outputs[0].text.strip() == sys.prefix.replace("/", "|")
