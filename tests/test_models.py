"""Networks of real size: how much of them runs in eight bits, and what real weights answer about real photos."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from examples import assets, photos
from examples.models import efficientnet_lite, squeezenet
from jaxq8.kernels import processor
from tests.fidelity import LITE0, SAME_ANSWERS, SQUEEZENET
from tests.xla_programs import products
from tests.zoo import ZOO

pytestmark = pytest.mark.compiled

needs_demo = pytest.mark.skipif(
    not assets.is_installed("demo"), reason="run `make assets`: weights are missing"
)
NETWORKS = {"lite0": efficientnet_lite, "squeezenet": squeezenet}
BARS = {"lite0": LITE0, "squeezenet": SQUEEZENET}
PHOTOS = 20


def explained(name: str) -> q8.Plan:
    """The plan of a network of the zoo from shapes alone: nothing of its size is computed or drawn."""
    entry = ZOO[name]
    assert entry.module is not None
    inputs = jax.eval_shape(lambda key: entry.inputs(key, 1), jax.random.key(0))
    variables = jax.eval_shape(entry.module.init, jax.random.key(0), *inputs)
    return q8.explain(entry.module.apply, variables, *inputs)


# Multiply-adds of one example in millions, as the papers (or counts from their tables) give them.
IMAGES = {"resnet50": 4089, "mobilenet_v2": 300, "inception_v3": 5713}


@pytest.mark.parametrize("name", IMAGES)
def test_image_networks_run_in_eight_bits(name):
    plan = explained(name)
    assert plan.eight_bit_share >= 0.99
    # Borders count here; papers differ in whether they do, by less than 5%.
    assert plan.macs / 1e6 == pytest.approx(IMAGES[name], rel=0.05)
    assert {s.reason for s in plan.sites if s.macs and not s.eight_bit} <= {q8.Reason.NOT_FASTER}


@pytest.mark.parametrize(("name", "layers"), [("bert_base", 12), ("minilm_shaped", 6)])
def test_encoders_run_in_eight_bits_but_for_the_products_of_attention(name, layers):
    plan = explained(name)
    floats = [s for s in plan.sites if s.macs and not s.eight_bit]
    assert [s.reason for s in floats] == [q8.Reason.ATTENTION] * (2 * layers)
    # Its share is length / (length + 6 * width) of such a block: 2.7% of BERT-base and 5.3% of MiniLM, at 128 tokens.
    assert plan.eight_bit_share == pytest.approx(
        1 - 128 / (128 + 6 * {"bert_base": 768, "minilm_shaped": 384}[name]), abs=0.002
    )


class Answers(NamedTuple):
    """Logits of all photos, float and eight-bit, and what they were computed with."""

    exact: np.ndarray
    found: np.ndarray
    plan: q8.Plan
    program: str


@functools.cache
def answers(name: str) -> Answers:
    """Both ways, one photo at a time, as a user would run them."""
    network = NETWORKS[name]
    module, variables = network.load()
    images = [jnp.asarray(network.preprocess(photo.image))[None] for photo in photos.labelled()]
    weights = q8.quantize_weights(module.apply, variables, images[0])
    exact = jax.jit(module.apply)
    fast = jax.jit(q8.quantize(module.apply)).lower(weights, images[0]).compile()
    return Answers(
        np.concatenate([exact(variables, x) for x in images]),
        np.concatenate([fast(weights, x) for x in images]),
        q8.explain(module.apply, weights, images[0]),
        fast.as_text(),
    )


@pytest.fixture(scope="module", autouse=True)
def _forget():
    yield
    answers.cache_clear()


@pytest.mark.assets
@needs_demo
@pytest.mark.parametrize("name", NETWORKS)
def test_photos_get_the_same_first_answer(name):
    exact, found, plan, _ = answers(name)
    assert exact.shape == found.shape == (PHOTOS, 1000)
    assert np.sum(exact.argmax(1) == found.argmax(1)) >= SAME_ANSWERS
    assert plan.eight_bit_share >= 0.99


@pytest.mark.assets
@needs_demo
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_photos_are_near_those_of_float(name):
    exact, found, _, _ = answers(name)
    noise = np.sum((exact.astype(np.float64) - found) ** 2)
    assert 10 * np.log10(np.sum(exact.astype(np.float64) ** 2) / noise) >= BARS[name].dynamic


@pytest.mark.assets
@needs_demo
@pytest.mark.skipif(
    processor.capability() != "avx512_vnni",
    reason="other processors' programs name their kernels differently",
)
def test_every_contraction_of_the_plan_is_an_integer_kernel_of_the_program():
    """XLA hands integer products to YNNPACK; one that stayed in a loop of its own would be slow and not show here."""
    _, _, plan, program = answers("squeezenet")
    made, by_kernels = products(program)
    contractions = [s for s in plan.sites if s.macs and s.eight_bit]
    assert len(contractions) == 26
    assert by_kernels == made
    assert made >= len(contractions)
