"""The code of docs/CALIBRATION.md and docs/ROUNDING.md runs as it is printed, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxq8 as q8
from tests.small import normal

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Net(nn.Module):
    """Images (b, 8, 8, 4) to (b, 10): large enough for eight bits to be chosen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Conv(64, (3, 3))(nn.relu(nn.Conv(64, (3, 3))(x)))).mean((1, 2)))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


@pytest.mark.slow
@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("page", ["CALIBRATION.md", "ROUNDING.md"])
def test_the_code_of_a_page_runs(page: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, images = Net(), normal(8, 8, 8, 4)
    variables = model.init(jax.random.key(0), images)
    names = {
        "jax": jax, "q8": q8, "model": model, "variables": variables, "images": images, "labels": jnp.arange(8),
        "batches": [images, normal(4, 8, 8, 4)], "others": [normal(6, 8, 8, 4)], "cross_entropy": cross_entropy,
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    loss, params = names.get("loss"), variables
    if loss is not None:  # the last one on the page: of activations' ranges
        slopes = jax.grad(loss)(names["start"], params, images, names["labels"])
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
