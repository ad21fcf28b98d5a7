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


def test_the_ten_lines_of_the_readme_run(capsys) -> None:
    text = (DOCS.parent / "README.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "model = " in b)
    exec(compile(block, "README.md", "exec"), {})
    difference, plan = capsys.readouterr().out.split("\n", 1)
    assert 0 < float(difference) < 0.1
    assert plan.startswith("100.0% of")


def test_the_readme_is_short_and_cites_this_version() -> None:
    assert len((DOCS.parent / "README.md").read_text().splitlines()) <= 120
    assert f"version: {q8.__version__}\n" in (DOCS.parent / "CITATION.cff").read_text()


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*DOCS.parent.glob("*.md"), *DOCS.glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            file, _, heading = link.partition("#")
            target = page.parent / file if file else page
            if "://" in link:
                continue
            assert target.exists(), f"{page.name}: {link}"
            assert not heading or heading in _anchors(target), f"{page.name}: {link}"


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}
