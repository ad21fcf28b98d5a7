"""The example programs end to end: what they print and write, and how close eight bits come to float."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from examples import (
    assets,
    calibrated,
    compressed,
    error_sources,
    label_image,
    photos,
    report_page,
    rescue,
    sentence_similarity,
    side_by_side,
    similarity_data,
)
from tests.fidelity import COSINE, JUDGEMENT, LITE0, SAME_ANSWERS, SQUEEZENET

needs_demo = pytest.mark.skipif(
    not assets.is_installed("demo"), reason="run `make assets`: weights are missing"
)
needs_full = pytest.mark.skipif(not assets.is_installed("full"), reason="run `make assets`: data are missing")
# The bars of fidelity, and the most bytes, as a share of the float bytes. Lite0: 4,608,992 weights of one byte, 85,032 floats
# (batch norms, one bias), and a scale and a zero point for each of 22,008 output channels, over 18,776,096 bytes, are 0.273.
BARS = {"lite0": (LITE0, 0.273), "squeezenet": (SQUEEZENET, 0.26)}


@pytest.mark.assets
@needs_demo
@pytest.mark.parametrize("name", BARS)
def test_eight_bits_answer_as_float_does(name, monkeypatch):
    monkeypatch.setattr(label_image, "REPEATS", 1)
    outcome = label_image.run(name, photos.labelled())
    bars, share = BARS[name]
    assert outcome.agrees.sum() >= SAME_ANSWERS
    assert side_by_side.sqnr_db(*outcome.logits) >= bars.dynamic
    assert outcome.size[1] <= share * outcome.size[0]
    assert outcome.eight_bit_share >= 0.99


@pytest.mark.assets
@needs_demo
def test_label_image_prints_both_columns_and_saves_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(label_image, "REPEATS", 1)
    eagle = assets.path(photos.LABELLED, "imagenet_17_22.jpg")
    picture = tmp_path / "labels.png"
    assert label_image.main([str(eagle), "--model", "squeezenet", "--top", "2", "--save", str(picture)]) == 0
    printed = capsys.readouterr().out
    (first,) = [line for line in printed.splitlines() if line.count("bald eagle") == 2]
    assert first.count("%") == 2
    assert "same first answer    1 of 1" in printed
    assert "EfficientNet" not in printed
    assert photos.read(picture).image.size == (224 + 24, 224 + 2 * 18 + 24)


@pytest.mark.slow
@pytest.mark.assets
@needs_demo
def test_the_page_of_a_network_shows_its_sites_and_all_photos(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report_page.main(["--model", "squeezenet", "--save", str(page)]) == 0
    assert "output: SQNR" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<img ") == 20
    assert text.count("same answer</span>") >= SAME_ANSWERS
    assert text.count('class="histogram"') >= 26  # at least of what each convolution reads


@pytest.mark.slow
@pytest.mark.assets
@needs_demo
def test_the_sources_of_error_of_squeezenet_explain_the_whole(tmp_path, capsys):
    picture = tmp_path / "sources.png"
    assert error_sources.main(["--models", "SqueezeNet", "--photos", "2", "--save", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (whole,) = [line.split() for line in lines if line.startswith("all ")]
    shares = [int(cell[:-1]) for cell in whole if cell.endswith("%")]
    assert len(shares) == 2
    assert all(50 <= share <= 200 for share in shares)
    assert photos.read(picture).image.size == (368, 320)


def test_label_image_names_a_wrong_path_before_any_work(capsys):
    assert label_image.main(["nowhere/cat.jpg"]) == 1
    printed = capsys.readouterr()
    assert "There is no photo nowhere/cat.jpg" in printed.err
    assert not printed.out


@pytest.mark.assets
@needs_demo
def test_label_image_reports_bad_class_names(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert label_image.main(["--labels", str(tmp_path / "names.txt")]) == 1
    assert "holds 2 names; 1000 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("top", ["0", "-1", "21", "many"])
def test_label_image_refuses_a_wrong_number_of_classes(top, capsys):
    with pytest.raises(SystemExit, match="2"):
        label_image.main(["--top", top])
    assert "argument --top" in capsys.readouterr().err


def test_sentence_similarity_wants_two_sentences(capsys):
    with pytest.raises(SystemExit, match="2"):
        sentence_similarity.main(["just one"])
    assert "one sentence has nothing to be compared with" in capsys.readouterr().err


@pytest.mark.assets
@needs_full
def test_minilm_in_eight_bits_keeps_vectors_and_judgement():
    encoders, data = sentence_similarity.load(), similarity_data.wordsim353()
    exact, fast = sentence_similarity.encode(encoders, data.texts, "words")
    scores = [similarity_data.spearman(data.cosines(vectors), data.scores) for vectors in (exact, fast)]
    assert np.mean(np.sum(exact * fast, axis=1)) >= COSINE
    assert scores[1] >= scores[0] - JUDGEMENT
    assert encoders.eight_bit_share >= 0.95
    assert encoders.size[1] <= 0.26 * encoders.size[0]


@pytest.mark.assets
@needs_full
def test_encoding_keeps_the_order_of_the_texts():
    encoders = sentence_similarity.load()
    texts = ["a much longer sentence than the others", "short", "of middle length"]
    exact, _ = sentence_similarity.encode(encoders, texts, "texts")
    alone, _ = sentence_similarity.encode(encoders, texts[1:2], "text")
    # Only the padding differs, which masked attention turns into exact zeros; sums may be ordered otherwise.
    np.testing.assert_allclose(exact[1], alone[0], atol=1e-6)


def test_quickstart_is_short_and_runs(capsys):
    assert len(Path("examples/quickstart.py").read_text().splitlines()) < 40
    runpy.run_module("examples.quickstart")
    printed = capsys.readouterr().out
    assert printed.count("100.0% of 3.5 million multiply-adds in eight bits") == 2
    assert printed.count("largest difference from float") == 2


def test_rescue_brings_both_nets_back(capsys, tmp_path):
    """The rows of the table by their order: three that collapse, three after equalising."""
    assert rescue.main(["--save", str(tmp_path / "error.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = [float(line.split()[-1]) for line in lines if re.search(r"\d\.\d$", line)]
    assert len(figures) == 12
    for net in (figures[:6], figures[6:]):
        assert max(net[:3]) < 15
        assert min(net[3:]) > 30
    assert len(list(tmp_path.glob("error-*-*.png"))) == 4


@pytest.mark.slow
@pytest.mark.assets
@needs_full
def test_static_ranges_of_an_encoder_keep_its_judgement(capsys):
    assert calibrated.main(["--models", "MiniLM"]) == 0
    rows = dict(re.findall(r"^ *(\S.*?)  +([-\d. ]+)$", capsys.readouterr().out, re.M))
    word, lee, _ = map(float, rows["float"].split())
    found = list(map(float, rows["static, min/max"].split()))
    assert abs(found[0] - word) <= JUDGEMENT
    assert abs(found[1] - lee) <= JUDGEMENT


@pytest.mark.slow
@pytest.mark.assets
@needs_demo
@pytest.mark.parametrize(("name", "bars"), [("SqueezeNet", SQUEEZENET), ("EfficientNet-Lite0", LITE0)])
def test_static_ranges_of_a_photo_net(name, bars, capsys):
    """Plain min/max, and the best repairs: SQNR in dB, and how many of 20 answers are float's."""
    calibrated.print_net(name, calibrated.NETS[name])
    printed = re.findall(r"^ *(\S.*?)  +(-?[\d.]+ \(.*)$", capsys.readouterr().out, re.M)
    rows = {title: [float(figure) for figure in re.findall(r"(-?[\d.]+) \(", row)] for title, row in printed}
    db, same, _ = rows["static, min/max"]
    assert db >= bars.static
    assert same >= SAME_ANSWERS
    assert max(row[0] for title, row in rows.items() if "dynamic" not in title) >= bars.repaired


@pytest.mark.slow
@pytest.mark.assets
@needs_full
def test_compressed_prints_the_steps_and_stays_within_its_size(capsys):
    # One second: the first step alone, which needs no data.
    assert compressed.main(["--models", "SqueezeNet", "--seconds", "1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    share = re.search(r"4\.9 MB in float32 -> .* \((\d+\.\d)%\)", printed)
    assert float(share[1]) <= 15
    found = re.search(r"compressed: (\d+) right, the same answer on (\d+), (\d+\.\d) dB", printed)
    assert int(found[1]) >= 13
    assert float(found[3]) >= 15  # to nearest 13
