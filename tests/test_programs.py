"""A sample of `tests.programs`, what it reaches, and that it would find, shrink and print a defect."""

from __future__ import annotations

import pytest

from tests.programs.search import search

CHUNK = 10


@pytest.mark.parametrize("seed", range(0, 200, CHUNK))
def test_random_programs_obey_every_law(seed):
    found = search(CHUNK, seed)
    assert found.programs == CHUNK
    assert found.reports == []
