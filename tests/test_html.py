"""Pages for browsers and fragments for notebooks: what they say, that text stays text, and what cannot be written."""

from __future__ import annotations

import html.parser
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.display.html.charts import histogram
from jaxq8.display.html.content import Histogram
from jaxq8.display.html.markup import Markup, tag
from jaxq8.display.numbers import count, decibels, share
from tests.pages import LONG, SCRIPT, plan, report
from tests.small import ALWAYS, PAIR, X, dense

pytest_plugins = ["tests.cli_model"]
VOID = {"meta", "link", "img", "input"}


class Outline(html.parser.HTMLParser):
    """Reads a page strictly: every element is closed where it should be. Keeps the elements and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, name: str, **attributes: str) -> list[dict[str, str | None]]:
        found = [a for n, a in self.elements if n == name]
        return [
            a
            for a in found
            if all(a.get(k.rstrip("_").replace("_", "-")) == v for k, v in attributes.items())
        ]


@pytest.fixture
def page(tmp_path):
    def written(of, **arguments) -> Outline:
        of.html(tmp_path / "page.html", **arguments)
        return Outline((tmp_path / "page.html").read_text(encoding="utf-8"))

    return written


def test_text_is_escaped_and_markup_is_not():
    assert (
        tag("p", "<b>&", Markup("<i>x</i>"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;&amp;<i>x</i></p>'
    )
    assert (
        tag("a", class_="x", aria_label="y", hidden=True, href=None)
        == '<a class="x" aria-label="y" hidden></a>'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(share(0, 5), "0 %"), (share(1, 10_000), "< 0.1 %"), (share(9_999, 10_000), "> 99.9 %"), (share(5, 5), "100 %"),
     (share(1, 0), "0 %"), (count(385_200_000), "385.2 million"), (count(1234), "1,234"), (decibels(np.inf), "no error"),
     (decibels(np.nan), "not a number")],
)  # fmt: skip
def test_figures_as_text(value, text):
    assert value == text


def test_a_page_of_a_plan_names_every_site_and_reason(page):
    found = page(plan(), title="Net <1>")
    assert len(found.named("tbody")) == len(plan().sites)
    for words in ("Net <1>", SCRIPT, LONG, "switched off by the configuration or an override", "(a & b < c)",
                  "override 'no/such/*' matched no site", "float, no products", "weights only",
                  "eight bits, region 2"):  # fmt: skip
        assert words in found.text
    assert "Share of arithmetic" in found.text
    assert not found.named("button", data_sort="error")
    assert len(found.named("script")) == 1


def test_a_page_of_a_report_has_errors_histograms_and_the_parts_of_a_site(page):
    found = page(report())
    assert len(found.named("tbody")) == len(plan().sites) + 1
    # The part follows the site to which it belongs, and is coloured as it is.
    rows = [a["data-name"] for a in found.named("tbody")]
    assert rows.index("params/layer_7/kernel:conv.part0") == rows.index("params/layer_7/kernel:conv") + 1
    assert len(found.named("svg", class_="histogram")) == len(plan().sites)  # the first site has none
    assert "20.0 dB" in found.text
    assert "2 of 3" in found.text
    assert "no error" in found.text
    errors = [float(a["data-error"] or "nan") for a in found.named("tbody")]
    assert errors[0] == 0
    assert max(errors) == pytest.approx(0.1, rel=0.01)  # 20 dB


def test_a_report_without_sites_or_plan_has_a_page(page):
    alone = q8.Report(report().output, ())
    assert page(report()).named("button", data_sort="error")
    assert "No sites were measured" in page(alone).text
    assert len(page(q8.Report(report().output, report().sites)).named("tbody")) == len(report().sites)
    assert "No sites" in page(q8.Plan(())).text


def test_a_page_reaches_for_nothing_outside(page, tmp_path):
    found = page(report())
    text = (tmp_path / "page.html").read_text()
    for _, attributes in found.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in text
    assert "@import" not in text
    policy = found.named("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[\w+/=]+'$", policy)


def test_a_histogram_draws_the_range_where_it_lies():
    drawn = Outline(histogram(Histogram("x", (1, 5, 1), (-1.0, 1.0), (-3.0, 2.0))))
    (band,) = drawn.named("rect", class_="band")
    # The drawing reaches from -3.1 to 2.1 and is 640 wide.
    assert float(band["x"] or "nan") == pytest.approx(640 * 0.1 / 5.2, abs=0.01)
    assert float(band["width"] or "nan") == pytest.approx(640 * 5 / 5.2, abs=0.01)
    assert len(drawn.named("line", class_="end")) == 2
    assert "values from -1 to 1" in drawn.text


@pytest.mark.parametrize("found", [
    Histogram("x", (4,) * 64, (2.0, 2.0), (2.0, 2.0)),
    Histogram("x", (0,) * 64, (0.0, 0.0), None),
    Histogram("x", (1,) * 64, (0.0, np.nan), (0.0, 1.0)),
    Histogram("x", (1,) * 64, (0.0, 1.0), (-np.inf, 1.0)),
])  # fmt: skip
def test_odd_histograms_are_drawn_or_said(found):
    drawn = Outline(histogram(found))
    assert drawn.named("path") or "not finite" in drawn.text
    assert not any("nan" in str(value) for _, attributes in drawn.elements for value in attributes.values())


def test_compare_brings_the_plan_and_the_answers(page):
    config = q8.Config(kernels="reference")
    found = q8.compare(dense, q8.quantize(dense, config), PAIR, [X[:8], X[8:]], progress=False)
    assert found.plan == q8.explain(dense, PAIR, X[:8], config=config)
    exact = np.asarray(dense(PAIR, X)).argmax(-1)
    assert [a for a, _ in found.answers] == exact.tolist()
    assert found.output.top1 == np.mean([a == b for a, b in found.answers])
    assert "weight in memory" in page(found).text
    assert (
        len(page(found).named("svg", class_="histogram")) == 4
    )  # of what both sites read, and of their weights


def test_the_plan_counts_the_bytes_of_each_weight_once():
    def tied(v, x):
        return jnp.tanh(x @ v["w"]) @ v["w"].T

    v = {"w": PAIR["w"]}
    found = q8.explain(tied, v, X, config=ALWAYS)
    assert [s.float_bytes for s in found.sites if s.macs] == [4 * 32 * 64, 0]
    assert found.float_bytes == 4 * 32 * 64
    assert found.weight_bytes == q8.quantize_weights(tied, v, X, config=ALWAYS)["w"].nbytes
    assert found.encoded_share == 1
    off = q8.explain(tied, v, X, config=q8.Config(mode="off"))
    assert (off.weight_bytes, off.encoded_share) == (off.float_bytes, 0)
    weights = q8.explain(dense, PAIR, X, config=q8.Config(mode="weights"))
    assert all(s.encoded and not s.eight_bit for s in weights.sites)
    assert q8.Plan.from_json(found.to_json()) == found


def test_tables_that_are_no_floats_are_no_weights():
    def looked_up(v, x, i):
        return x @ v["w"] + jax.random.uniform(v["keys"][i], (64,)) + v["table"][i]

    v = {
        "w": PAIR["w"],
        "keys": jax.random.split(jax.random.key(0), 8),
        "table": jnp.ones((8, 64), jnp.int32),
    }
    assert q8.explain(looked_up, v, X, 3, config=ALWAYS).float_bytes == 4 * 32 * 64


def test_an_older_document_of_a_plan_is_read():
    document = json.loads(plan().to_json())
    for site in document["sites"]:
        del site["weight_bytes"], site["float_bytes"]
    assert q8.Plan.from_json(json.dumps(document)).weight_bytes == 0


# Photos


def photo(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_photos_stand_beside_what_both_functions_answer(page, tmp_path):
    pil = pytest.importorskip("PIL.Image")
    path = tmp_path / "<b>.png"
    pil.fromarray(photo(300, 200, 4), "RGBA").save(path)
    images = [path, photo(5, 7, 1), pil.fromarray(photo(6, 6))]
    classes = ["cat & dog", "<hen>", "fox"]
    labels = ["my label", {"seen by": "<me>"}, {}]
    found = page(report(), images=images, labels=labels, classes=classes)
    assert len(found.named("img")) == 3
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") for a in found.named("img"))
    assert "float <hen> eight bits <hen> same answer" in found.text
    assert "float fox eight bits cat & dog another answer" in found.text
    for words in ("<b>.png", "my label", "seen by <me>"):
        assert words in found.text
    assert "class 2" in page(report(), images=images).text
    # Of other images than those that were compared nothing is said.
    assert "class 2" not in page(report(), images=images[:2]).text
    assert "my label" in page(plan(), images=images, labels=labels).text


def test_more_than_a_hundred_photos_are_counted(page):
    found = page(plan(), images=[photo(2, 2)] * 103)
    assert len(found.named("img")) == 100
    assert "3 more photos are not shown" in found.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["x"]}, "Report.html: labels need images"),
        ({"images": [photo(2, 2)], "labels": []}, "Report.html: 0 as labels for 1 images"),
        ({"images": [photo(2, 2)] * 2, "labels": "ab"}, "one text as labels for 2 images"),
        ({"images": [np.zeros((4, 4, 3), np.float32)]}, r"image 0 is float32\[4, 4, 3\]; give a path"),
        ({"images": [photo(4, 4, 2)]}, r"uint8\[4, 4, 2\]"),
        ({"images": [photo(0, 4)]}, "image 0 has no pixels"),
        ({"images": ["no/such.png"]}, "no/such.png is not a readable image"),
        ({"images": [photo(2, 2)], "classes": ["a"] * 5}, "3 answers for 1 images"),
        ({"images": [photo(2, 2)] * 3, "classes": ["a", "b"]}, "2 names of classes, but an answer is class 2"),
    ],
)  # fmt: skip
def test_wrong_photos_are_refused(page, arguments, message):
    with pytest.raises(q8.ArgumentError, match=message):
        page(report(), **arguments)


def test_photos_need_pillow(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(q8.ArgumentError, match=r"Plan.html: images need Pillow: pip install pillow"):
        page(plan(), images=[photo(2, 2)])


# Files


def test_a_page_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fails)
        with pytest.raises(q8.ArgumentError, match="No space left on device"):
            plan().html(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["page.html"]
    plan().html(str(path))
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["page.html"]


def test_where_no_page_can_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "page.html"):
        with pytest.raises(
            q8.ArgumentError, match=r"Report.html: cannot write .* name a file, such as report.html"
        ):
            report().html(path)
    assert os.listdir(tmp_path) == []


def test_names_that_are_no_text_are_written(page):
    odd = "params/\udcff/kernel:conv"  # as the name of a file that is not UTF-8
    assert "params/?/kernel:conv" in page(q8.Plan((q8.SiteRecord(odd, "conv", True, macs=1),))).text


# Notebooks


def test_notebooks_show_a_plan_and_a_report():
    for shown in (plan(), report()):
        found = Outline(shown._repr_html_())
        assert SCRIPT in found.text
        assert not found.named("script")
        assert len(found.named("tr")) == 31 + (shown != plan())
    assert "matched no site" in Outline(plan()._repr_html_()).text


def test_long_tables_are_cut():
    rows = tuple({"<b>": i, "x": i / 7, "x_low": 0.0, "x_high": 1.0} for i in range(5000))
    found = Outline(q8.Table(rows, ("x",))._repr_html_())
    assert "Table of 5000 rows <b> x 0 0 (0 to 1)" in found.text
    assert len(found.named("tr")) == 41
    assert found.text.endswith("... 4,960 more rows")
    assert "Table of 0 rows" in q8.Table((), ("x",))._repr_html_()


def test_notebooks_show_a_qtensor():
    codes = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    q = q8.QTensor(codes, np.full((1, 30), 0.5, np.float32), np.full((1, 30), 3, np.int32))
    found = Outline(q._repr_html_())
    assert repr(q) in found.text
    assert "30, of shape [1, 30]" in found.text
    assert "840 bytes; 2.4 kB as float32" in found.text
    assert len(found.named("rect")) == 64
    few = q8.QTensor(np.int8([-3, 0, 3]), np.ones(1, np.float32), np.zeros(1, np.int32), 3, True)
    assert len(Outline(few._repr_html_()).named("rect")) == 1 + few.spec.qmax - few.spec.qmin


def test_a_qtensor_without_numbers_is_shown_too():
    shown = []

    def keep(q):
        shown.append(Outline(q._repr_html_()))
        return q.values

    q = q8.QTensor(np.ones((2, 3), np.uint8), np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32))
    jax.eval_shape(keep, q)
    assert "bytes" in shown[0].text
    assert not shown[0].named("rect")
    empty = q8.QTensor(np.ones((0, 3), np.uint8), q.scale, q.zero_point)
    assert "QTensor(0x3" in Outline(empty._repr_html_()).text
    assert "QTensor" in jax.tree.map(lambda x: "leaf", q)._repr_html_()


# The command line


def test_the_command_line_writes_pages(at, call):
    assert call("explain net.py:load --kernels xla --input-shape 1,32 --html plan.html")[0] == 0
    assert "params/first/kernel:dot" in Outline((at / "plan.html").read_text()).text
    line = "compare net.safetensors net.q8 --model net.py:Net --input x.npy --html report.html"
    assert call(line)[0] == 0
    text = Outline((at / "report.html").read_text()).text
    assert text.startswith("net.safetensors beside net.q8")
    assert "10 of 10" in text or "9 of 10" in text


def test_the_command_line_shows_photos_with_names_of_classes(at, call, fails):
    pil = pytest.importorskip("PIL.Image")
    (at / "photos").mkdir()
    for i in range(2):
        pil.fromarray(photo(9, 9, 3)).save(at / "photos" / f"{i}.png")
    (at / "prepare.py").write_text(
        "import numpy as np\ndef prepare(p): return np.resize(np.asarray(p, np.float32), 32) / 255\n"
    )
    (at / "names.txt").write_text("\n".join(["zero", "one", "two", "three", "four"]))
    line = "compare net.safetensors net.q8 --model net.py:Net --html page.html"
    photos = "--image photos --preprocess prepare.py:prepare"
    assert call(f"{line} {photos} --labels names.txt")[0] == 0
    found = Outline((at / "page.html").read_text())
    assert len(found.named("img")) == 2
    assert re.search(r"0.png float (zero|one|two|three|four) eight bits", found.text)
    fails(f"{line} --input x.npy --labels names.txt", "give all inputs with --image", status=2)


def test_wrong_paths_of_pages_are_found_before_anything_runs(at, fails):
    fails("explain net.py:load --input-shape 1,32 --html no/page.html", "there is no folder no", status=2)
    fails("compare a b --html .", "--html .: is a folder", status=2)
    fails("compare a b --labels names.txt", "--labels names the classes of --html", status=2)
