"""The code of the documentation's pages runs as it is printed, from top to bottom, and their links lead somewhere."""

from __future__ import annotations

import io
import json
import re
import shlex
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8 import cli
from tests.small import normal

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Net(nn.Module):
    """Images (b, 8, 8, 4) to (b, 10): large enough for eight bits to be chosen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Conv(64, (3, 3))(nn.relu(nn.Conv(64, (3, 3))(x)))).mean((1, 2)))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


FOLDERS = ("explanation", "howto", "tutorials")
SLOW = ("howto/use_four_bits.md", "tutorials/from_a_flax_model_to_a_shipped_file.md")
PAGES = [
    pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page
    for page in sorted(str(path.relative_to(DOCS)) for name in FOLDERS for path in (DOCS / name).glob("*.md"))
    if "```python" in (DOCS / page).read_text()
]


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


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_short_page_runs(page: str, names_of_examples: dict[str, Any]) -> None:
    """Python in the order of the page; lines of a shell that call jaxq8 run in this process."""
    names = dict(names_of_examples)
    blocks = re.findall(r"```(python|sh)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page, "exec"), names)
        else:
            for line in block.splitlines():
                assert cli.main(shlex.split(line.removeprefix("jaxq8 "))) == 0, line
    if "server" in names:
        _ask(names["server"], np.asarray(names["images"][:3]))


def _ask(server: Any, images: np.ndarray) -> None:
    """One request to the server of the page on serving, which is closed then."""
    body = io.BytesIO()
    np.save(body, images)
    with server, ThreadPoolExecutor(1) as pool:
        handled = pool.submit(server.handle_request)
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}", body.getvalue())
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert len(json.load(reply)) == len(images)
        handled.result()


def test_the_ten_lines_of_the_readme_run(capsys) -> None:
    text = (DOCS.parent / "README.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "model = " in b)
    exec(compile(block, "README.md", "exec"), {})
    difference, plan = capsys.readouterr().out.split("\n", 1)
    assert 0 < float(difference) < 0.1
    assert plan.startswith("100.0% of")


def test_the_quick_start_of_the_site_runs(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks[1:]:  # the first one shows the idea
        exec(compile(block, "docs/index.md", "exec"), names)
    assert capsys.readouterr().out.endswith("\n(1, 64, 64, 64)\n")


def test_the_readme_is_short_and_cites_this_version() -> None:
    assert len((DOCS.parent / "README.md").read_text().splitlines()) <= 120
    assert f"version: {q8.__version__}\n" in (DOCS.parent / "CITATION.cff").read_text()


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")]
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
