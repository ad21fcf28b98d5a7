"""Every public name has an example in its docstring, and the examples run.

They share the names that docs/api/index.md defines in its block of code. `...` in an expected output stands for any text.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxq8 as q8
import jaxq8.values
from jaxq8.evaluation import interpreter
from jaxq8.kernels import barred, tuned
from jaxq8.learning import rounding_problems
from jaxq8.machine.selfcheck import CASES

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "api"
NAMES = {name: getattr(q8, name) for name in q8.__all__}
# A union of types has no docstring of its own; its members have.
NAMES |= {f"values.{name}": getattr(jaxq8.values, name) for name in jaxq8.values.__all__ if name != "Value"}


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """The names that all examples start with."""
    (code,) = re.findall(r"```python\n(.*?)```", (REFERENCE / "index.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/api/index.md", "exec"), names)
    return names


@pytest.fixture
def unchanged(own_registries: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What examples register, bar, tune and write is gone afterwards; the self-check has one case, for it takes long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounding_problems, "_METHODS", dict(rounding_problems._METHODS))
    cases = {form: {} for form in CASES} | {"dot": {"one row": CASES["dot"]["one row"]}}
    monkeypatch.setattr("jaxq8.machine.selfcheck.CASES", cases)
    rules = dict(interpreter.RULES)
    yield
    tuned.use({})
    barred.bar_forms()
    interpreter.RULES.clear()
    interpreter.RULES.update(rules)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_name_run(name: str, shared: dict[str, Any]) -> None:
    found = doctest.DocTestFinder().find(NAMES[name], name, module=False, globs=shared)
    own = [test for test in found if test.name == name and test.examples]
    assert own, f"{name} has no `Example:` in its docstring"
    for test in found:
        printed: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append)
        assert not printed, "".join(printed)


def test_the_reference_has_every_public_name_once() -> None:
    pages = "\n".join(page.read_text() for page in sorted(REFERENCE.glob("*.md")))
    listed = re.findall(r"^::: jaxq8\.([\w.]+)$", pages, re.MULTILINE)
    listed = [
        name for name in listed if name.startswith("values.") or "." not in name
    ]  # others are types of results
    expected = [*q8.__all__, *(f"values.{name}" for name in jaxq8.values.__all__)]
    assert sorted(listed) == sorted(expected)
