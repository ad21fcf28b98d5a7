"""Which primitives JAX has, what `quantize` does with each, and which of them the cases of the sweep run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from jaxq8._compat import primitives
from jaxq8.analysis.inner_functions import CONTROL, INLINED, SHARD_MAP
from jaxq8.evaluation.interpreter import RULES
from tests.sweep.data import X
from tests.sweep.table import Case

# Public primitives that no case of the sweep runs, each with its reason.
NOT_RUN = {
    "of mutable references (`jax.new_ref`), which only functions that are compiled as a whole hold": "get swap empty2",
    "of JAX's own machinery: no public function of the sweep leaves it in a trace": """call closed_call custom_lin eq_to name
    random_gamma select_and_gather_add threefry2x32""",
    "a token": "after_all create_token",
    "draws bits: no float argument": "rng_bit_generator rng_uniform",
    "of derivatives and of reducers without a name: tests/test_primitives.py": """select_and_scatter_add select_and_scatter
    reduce_window""",
    "tests/test_composition_derivatives.py": "custom_vjp_call",
    "needs several devices": "ragged_all_to_all",
    "needs a mesh: tests/test_composition_devices.py": "sharding_constraint",
}


def public() -> set[str]:
    """The names of the primitives that JAX gives out."""
    found = (getattr(primitives, name) for name in dir(primitives) if name.endswith("_p"))
    return {primitive.name for primitive in found}


def treatment(name: str) -> str:
    """What the evaluator does with an equation of a primitive: "rule", "entered" or "fallback"."""
    if name in {getattr(p, "name", p) for p in INLINED | CONTROL | {SHARD_MAP}}:
        return "entered"
    return "rule" if name in {getattr(p, "name", p) for p in RULES} else "fallback"


def run_by(cases: Iterable[Case]) -> set[str]:
    """The names of all primitives in the traces of cases, those in functions inside equations too."""
    return {name for case in cases for name in _names(jax.make_jaxpr(lambda x, case=case: case(x))(X).jaxpr)}


def _names(jaxpr: Any) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _names(inner)
