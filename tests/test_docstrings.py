"""Every public name has an example in its docstring, and the examples run.

They share the names that docs/api/index.md defines in its block of code. `...` in an expected output stands for any text.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

import jaxq8 as q8
import jaxq8.values
from jaxq8.machine.selfcheck import CASES

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "api"
NAMES = {name: getattr(q8, name) for name in q8.__all__}
# A union of types has no docstring of its own; its members have.
NAMES |= {f"values.{name}": getattr(jaxq8.values, name) for name in jaxq8.values.__all__ if name != "Value"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_name_run(
    name: str, names_of_examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole self-check takes long and is test_selfcheck's; here it has one case.
    cases = {form: {} for form in CASES} | {"dot": {"one row": CASES["dot"]["one row"]}}
    monkeypatch.setattr("jaxq8.machine.selfcheck.CASES", cases)
    found = doctest.DocTestFinder().find(NAMES[name], name, module=False, globs=names_of_examples)
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
