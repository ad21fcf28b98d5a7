"""What all tests share: keys, hypothesis profiles, and a process of its own for tests that need other XLA flags."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest

from jaxq8.evaluation import interpreter
from jaxq8.kernels import barred, tuned
from jaxq8.learning import rounding_problems
from jaxq8.numerics import observers, rounding

ROOT = Path(__file__).resolve().parents[1]

# Tracing allocates millions of objects, and by default Python looks through all of them again and again: a tenth of the time
# of a short run, and more the longer a process lives.
gc.set_threshold(100_000, 20, 50)

# Derandomized: a run is repeatable, and two runs of one commit cannot differ. Compilation makes the first
# example slow.
_COMMON = {"deadline": None, "derandomize": True, "database": None, "print_blob": True}
hypothesis.settings.register_profile("full", max_examples=60, **_COMMON)
hypothesis.settings.register_profile("quick", max_examples=10, **_COMMON)
hypothesis.settings.register_profile("search", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full"))


@pytest.fixture
def new_key() -> Callable[[], jax.Array]:
    """A function that returns another PRNG key on each call, the same ones in every run."""
    count = iter(range(1_000_000))
    return lambda: jax.random.fold_in(jax.random.key(20161), next(count))


@pytest.fixture(autouse=True, scope="module")
def _fresh_compilations() -> Iterator[None]:
    """Compiled programs are dropped after each file: thousands of them exhaust the memory maps of a process."""
    yield
    jax.clear_caches()


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schemes, observers and rules that a test registers are gone after it."""
    monkeypatch.setattr(rounding, "_REGISTRY", dict(rounding._REGISTRY))
    monkeypatch.setattr(observers, "_REGISTRY", dict(observers._REGISTRY))
    rules = dict(interpreter.RULES)
    yield
    interpreter.RULES.clear()
    interpreter.RULES.update(rules)


@pytest.fixture
def unchanged(own_registries: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """For code of the documentation: what it registers, bars, tunes and writes is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounding_problems, "_METHODS", dict(rounding_problems._METHODS))
    yield
    tuned.use({})
    barred.bar_forms()


@pytest.fixture(scope="session")
def names_of_examples() -> dict[str, Any]:
    """The names that examples and how-to pages start with; docs/api/index.md defines them."""
    text = (ROOT / "docs" / "api" / "index.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/api/index.md", "exec"), names)
    return names


@pytest.fixture
def run_python() -> Callable[..., str]:
    """``run_python(code, xla_flags="", **environment)`` runs code in a process of its own and returns what it printed.

    Flags are added to those of the environment.
    """

    def run(code: str, xla_flags: str = "", **environment: str) -> str:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip()
        env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), **environment}
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
