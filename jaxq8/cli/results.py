"""Stores the results of a long run as lines of JSON, so that a run that was killed can be continued.

A line counts once its newline is in the file. Lines are appended in one write for each batch; whatever a killed run leaves
after the last newline is cut off by the next run. Every line names the run that it belongs to (a checksum of the model and of
the options that change results), so that results of two models never share a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxq8.cli.problems import Failure

# At most the results of this time are lost if the machine crashes, rather than the process.
SYNC_SECONDS = 1.0


class Results:
    """An open file of results.

    Args:
      path: The file; it is made if it does not exist.
      run: The name of this run, which every line holds.
      restart: Whether to delete what the file holds and begin anew.

    Attributes:
      done: Names of the inputs whose results are in the file.

    Raises:
      Failure: Another process writes the file, it belongs to another run, or it holds something else.
    """

    def __init__(self, path: Path, run: str, restart: bool = False):
        self.path, self._run, self.done = path, run, set[str]()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise Failure(f"{path}: cannot be written ({error.strerror}); check the folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise Failure(f"{path}: another run is writing it; wait, or give another --output") from error
        try:
            end = 0 if restart else self._whole_lines()
            if end != os.fstat(self._file).st_size:
                os.ftruncate(self._file, end)
        except BaseException:
            self.close()
            raise
        self._synced = time.monotonic()

    def _whole_lines(self) -> int:
        """Reads which inputs are done; returns the length of the file without a last line that was not finished."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                self.done.add(self._input_of(line, number))
                end += len(line)
        return end

    def _input_of(self, line: bytes, number: int) -> str:
        """The name of the input whose result a line holds, which must be of this run."""
        try:
            entry = json.loads(line)
            name, run = entry["input"], entry["run"]
        except (ValueError, KeyError, TypeError, RecursionError):
            name = run = None
        if not isinstance(name, str) or not isinstance(run, str):
            raise Failure(
                f"{self.path}: line {number} is no result of `jaxq8 run`; give another --output, or --restart to replace it"
            )
        if run != self._run:
            raise Failure(
                f"{self.path}: line {number} is of another model or of other options (run {run}, this is {self._run}); "
                "give another --output, or --restart to replace it"
            )
        if name in self.done:
            raise Failure(f"{self.path}: line {number} repeats the input {name}; --restart replaces the file")
        return name

    def add(self, entries: Sequence[dict[str, Any]]) -> None:
        """Appends the results of one batch; a reader of complete lines sees each of them completely or not at all.

        Raises:
          Failure: The disk is full.
        """
        data = memoryview("".join(line(entry | {"run": self._run}) for entry in entries).encode())
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise Failure(
                f"{self.path}: cannot be written ({error.strerror}); make space and run the same command again"
            ) from error
        self.done.update(entry["input"] for entry in entries)

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Waits until everything is on disk, and lets other processes write the file."""
        os.fsync(self._file)
        os.close(self._file)


def line(entry: dict[str, Any]) -> str:
    """One result as a line of JSON."""
    return json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
