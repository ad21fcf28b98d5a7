"""Every public function of JAX and layer of Flax survives `quantize`; names that a release adds must be put in a table."""

import jax
import numpy as np
import pytest

import jaxq8 as q8
from tests.small import ALWAYS
from tests.sweep.check import check
from tests.sweep.data import LEFT, RIGHT, X
from tests.sweep.table import CASES, MODULES, excluded, public

SAMPLE = [case for index, case in enumerate(CASES) if index % 29 == 0]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_called_or_excluded_with_a_reason(module):
    called, left_out = {c.name for c in CASES if c.module == module}, set(excluded(module))
    assert public(module) - called - left_out == set()
    assert called & left_out == set()


def test_no_name_is_called_twice():
    names = [str(case) for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_the_product_of_the_sweep_is_exact_in_eight_bits():
    product = lambda x: x @ RIGHT  # noqa: E731
    assert q8.explain(product, LEFT, config=ALWAYS).eight_bit_share == 1.0
    np.testing.assert_array_equal(jax.jit(q8.quantize(product, ALWAYS))(LEFT), X)


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_sample(case):
    check(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # deprecated functions are functions too
@pytest.mark.parametrize("case", CASES, ids=str)
def test_all(case):
    check(case)
