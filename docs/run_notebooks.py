"""``python docs/run_notebooks.py [NOTEBOOK...]``: runs the tutorials and writes what they show back into them.

Each runs in a process of its own, by the Python that runs this program, in the folder of the notebook. An error in a cell
ends the program and leaves the file as it was. With ``--check`` nothing is written.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent / "tutorials"
LONGEST = 300  # seconds of one cell
LARGEST = 300_000  # bytes of a notebook with what it shows
# What a folder of the machine looks like; the pictures are base64, in which slashes occur.
PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|work|var|Users)\b[^\s\"']*")


class NotebookError(Exception):
    """A notebook that shows what it should not, or too much."""


class ThisPython(AsyncKernelManager):
    """Starts the kernel of the Python that runs this program: with no folders to search, no other is left."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def run(path: Path) -> Any:
    """Runs a notebook and returns it with its outputs.

    Raises:
      CellExecutionError: A cell failed; the message has its code and traceback.
      NotebookError: An output tells a folder of this machine, or the whole is too large.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", kernel_manager_class=ThisPython, extra_arguments=["--log-level=ERROR"],
        timeout=LONGEST, startup_timeout=LONGEST, record_timing=False, resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for place, text in texts(notebook):
        if found := PATH.search(text):
            raise NotebookError(f"{place}: tells a folder of this machine: {found[0]}")
    size = len(nbformat.writes(notebook))
    if size > LARGEST:
        raise NotebookError(f"{size} bytes with its pictures; at most {LARGEST} are kept, draw smaller ones")
    return notebook


def texts(notebook: Any) -> list[tuple[str, str]]:
    """(place, text) of every output that is text."""
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found += [(f"cell {number}", str(output.get("text", "")))]
            found += [
                (f"cell {number}", str(text)) for kind, text in data.items() if kind.startswith("text/")
            ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the tutorials and keep what they show.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of docs/tutorials")
    parser.add_argument("--check", action="store_true", help="run them and write nothing")
    options = parser.parse_args(arguments)
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        try:
            notebook = run(path.resolve())
        except (CellExecutionError, NotebookError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            return 1
        if not options.check:
            nbformat.write(notebook, path)
        print(
            f"{path.name}: {time.perf_counter() - start:.0f} s, {len(nbformat.writes(notebook)) / 1e3:.0f} kB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
