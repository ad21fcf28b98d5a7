"""Assets, photos, class names and figures of the examples, on small files made here."""

import json

import numpy as np
import pytest
from PIL import Image

from examples import assets, contact_sheet, labels, photos, side_by_side, similarity_data


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def test_missing_asset_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXQ8_ASSETS", str(tmp_path))
    with pytest.raises(assets.AssetsError, match=r"The asset a/b is not in .* Run `make assets`"):
        assets.path("a", "b")
    assert not assets.is_installed("demo")


def test_installing_twice_does_nothing_the_second_time(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setenv("JAXQ8_ASSETS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["assets", "--full"])
    monkeypatch.setattr(assets.subprocess, "run", lambda command, check: calls.append(command) or _Done(0))
    assert assets.main() == 0
    assert assets.main() == 0
    assert [command[-1].rsplit("-", 1)[1] for command in calls] == ["demo.txt", "full.txt"]
    assert all("--require-hashes" in command and "--no-deps" in command for command in calls)
    assert capsys.readouterr().out.count("already") == 2


def test_changed_pins_are_installed_again(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXQ8_ASSETS", str(tmp_path))
    monkeypatch.setattr(assets.subprocess, "run", lambda command, check: _Done(0))
    assets.install("demo")
    assert assets.is_installed("demo")
    pins = tmp_path / "pins.txt"
    pins.write_text("other==1.0\n")
    monkeypatch.setitem(assets.PINS, "demo", pins)
    assert not assets.is_installed("demo")


def test_failed_install_is_reported_and_tried_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAXQ8_ASSETS", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["assets"])
    monkeypatch.setattr(assets.subprocess, "run", lambda command, check: _Done(1))
    assert assets.main() == 1
    assert "Installing assets-demo.txt failed (pip ended with 1" in capsys.readouterr().err
    assert not assets.is_installed("demo")


class _Done:
    def __init__(self, returncode):
        self.returncode = returncode


def test_every_pin_has_a_hash():
    for file in assets.PINS.values():
        entries = file.read_text().replace("\\\n", "").splitlines()
        pins = [line for line in entries if line and not line.startswith("#")]
        assert pins
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins)


def test_photo_that_is_missing_or_unreadable_is_named(tmp_path):
    with pytest.raises(photos.PhotoError, match=r"There is no photo .*none.jpg"):
        photos.read(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(photos.PhotoError, match=r"text.jpg is not a readable image"):
        photos.read(tmp_path / "text.jpg")
    with pytest.raises(photos.PhotoError, match="is not a readable image"):
        photos.read(tmp_path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_truncated_photo_is_reported(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
    content = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2])
    assert photos.read(tmp_path / f"whole.{kind}").image.size == (64, 64)
    with pytest.raises(photos.PhotoError, match=f"half.{kind} is not a readable image"):
        photos.read(tmp_path / f"half.{kind}")


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.full((8, 8), 200, np.uint8), "L"),
        (np.full((8, 8), 200 * 256 + 99, np.uint16), "I;16"),
        (np.stack([np.full((8, 8), 200, np.uint8)] * 3 + [np.full((8, 8), 255, np.uint8)], -1), "RGBA"),
    ],
)
def test_other_kinds_of_pixels_become_rgb(tmp_path, pixels, mode):
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(tmp_path / "photo.png")
    assert np.array_equal(photos.read(tmp_path / "photo.png").image, np.full((8, 8, 3), 200, np.uint8))


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert np.array_equal(photos.read(tmp_path / "clear.png").image, np.full((8, 8, 3), 255, np.uint8))


def test_sideways_photo_is_turned_upright(tmp_path):
    image = Image.new("RGB", (10, 6))
    image.getexif()[0x0112] = 6  # Orientation: turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=image.getexif())
    assert photos.read(tmp_path / "turned.jpg").image.size == (6, 10)


def test_square_keeps_the_centre():
    wide = np.zeros((256, 400, 3), np.uint8)
    wide[16:240, 88:312] = 100  # the central 224 of 256
    np.testing.assert_array_equal(photos.square(Image.fromarray(wide)), np.full((224, 224, 3), 100))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3000, 2)])
def test_square_of_extreme_shapes(size):
    assert photos.square(Image.new("RGB", size, "red")).tolist()[5][7] == [255, 0, 0]


def test_square_of_nothing_is_an_error():
    with pytest.raises(photos.PhotoError, match="0 x 3 pixels has nothing to crop"):
        photos.square(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("form", ["lines", "background", "list", "object"])
def test_class_names_of_the_user(file, form):
    names = [f"class {index}" for index in range(1000)]
    shaped = {"list": names, "object": {str(index): name for index, name in enumerate(names)}}
    lines = ["background", *names] if form == "background" else names
    file.write_text(json.dumps(shaped[form]) if form in shaped else "\n".join(lines) + "\n")
    assert labels.names(file) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\n", "holds 2 names; 1000 are needed"),
        (b"\xff\xfe\xfa", "Cannot read class names from"),
        (b"[1, 2]", "names that are not text"),
        (b'{"a": "b"}', "Cannot read class names from .*KeyError"),
        (b'["a", ', "Cannot read class names from"),
    ],
)
def test_bad_class_names_are_reported(file, content, message):
    file.write_bytes(content)
    with pytest.raises(labels.LabelsError, match=message):
        labels.names(file)


def test_contact_sheet_holds_every_photo_and_its_lines(tmp_path):
    shown = [photos.Photo(str(index), Image.new("RGB", (300, 300), "blue")) for index in range(6)]
    sheet = contact_sheet.draw(
        shown, [[("a line that is far too long for its cell " * 3, True), ("no", False)]] * 6
    )
    assert sheet.width == 5 * (224 + 12) + 12
    assert sheet.height == 2 * (224 + 2 * 18 + 12) + 12
    assert sheet.getpixel((20, 20)) == (0, 0, 255)
    contact_sheet.save(tmp_path / "sheet.png", sheet)
    assert photos.read(tmp_path / "sheet.png").image.size == sheet.size
    with pytest.raises(
        photos.PhotoError, match=r"Cannot write .*sheet.txt .* Give a path such as labels.png"
    ):
        contact_sheet.save(tmp_path / "sheet.txt", sheet)


def test_correlations_against_hand_counts():
    assert similarity_data.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert similarity_data.spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    # ranks 1.5 1.5 3 against 1 2 3: covariance 0.75 over 0.866 * 1
    assert similarity_data.spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(0.75 / np.sqrt(0.75))


def test_sqnr_and_bytes():
    assert side_by_side.sqnr_db(np.array([10.0, 0.0]), np.array([9.0, 0.0])) == pytest.approx(20)
    assert side_by_side.sqnr_db(np.ones(3), np.ones(3)) == float("inf")
    assert side_by_side.weight_bytes({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int8)}) == 29
    fastest = side_by_side.fastest_ms(lambda: None, lambda: None, 2)
    assert len(fastest) == 2
