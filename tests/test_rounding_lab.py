"""examples/rounding_lab.py and the packaged digits of examples/finetune.py: what they print, write and keep."""

from __future__ import annotations

import csv
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxq8 as q8
from examples import assets, finetune, rounding_lab
from tests.small import PAIR, dense, normal

needs_full = pytest.mark.skipif(not assets.is_installed("full"), reason="run `make assets`: data are missing")


def test_an_unknown_lesson_is_named(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        rounding_lab.main(["minimal"])
    assert "unknown lesson 'minimal'; known are minimum, learned" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lesson_writes_its_table_and_picture_and_keeps_what_is_finished(tmp_path, capsys) -> None:
    batches = [normal(8, 32), normal(8, 32) * 0.5]
    subject = rounding_lab.Subject("two-layers net", dense, PAIR, batches, [normal(16, 32)])
    rounding_lab.run("granularity", subject, tmp_path)
    assert "== granularity: two-layers net" in capsys.readouterr().out
    with (tmp_path / "granularity_two_layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["bits"] for r in rows] == ["8"] * 4 + ["5"] * 4
    assert (tmp_path / "granularity_two_layers.png").stat().st_size > 5000
    kept = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [r["sqnr_db"] for r in kept] == [float(r["sqnr_db"]) for r in rows]
    rounding_lab.run("granularity", subject, tmp_path)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 8


@pytest.mark.assets
@pytest.mark.slow
@needs_full
def test_the_rule_of_the_minimum_on_squeezenet(tmp_path) -> None:
    subject = rounding_lab.image_net("SqueezeNet 1.1")
    lines = rounding_lab.minimum_rule(subject, tmp_path)
    assert len(lines) == 1 + 26 + 2  # a heading, 26 convolutions, and the answers under both rules
    means = np.array([[float(cell.split("%")[0]) for cell in _cells(line)] for line in lines[1:-2]])
    rounded, floating = np.abs(means).max(0)
    assert rounded < floating / 2
    assert (tmp_path / "minimum_rule.png").stat().st_size > 5000


@pytest.mark.assets
@pytest.mark.slow
@needs_full
def test_gptq_is_at_least_as_good_as_nearest_on_every_layer_of_squeezenet() -> None:
    """Four bits: each layer reads what it reads in float, and the error of its outputs is computed by a convolution."""
    subject = rounding_lab.image_net("SqueezeNet 1.1")
    four = q8.Config(weights=q8.Spec(bits=4, symmetric=True, granularity="channel"))
    batches = subject.calibration[:2]
    learned, nearest = (
        q8.learn_rounding(subject.fn, subject.variables, batches, method="gptq", config=four, stages=1, correct=False,
                          progress=False),
        q8.quantize_weights(subject.fn, subject.variables, batches[0], config=four, correct=None),
    )  # fmt: skip
    model, variables = rounding_lab.IMAGE_NETS["SqueezeNet 1.1"].load()
    inputs: dict[str, list[Any]] = {}

    def keep(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Conv):
            inputs.setdefault("/".join(context.module.path), []).append((context.module, args[0]))
        return run(*args, **kwargs)

    with nn.intercept_methods(keep):
        for images in batches:
            model.apply(variables, images)
    assert len(inputs) == 26
    for path, seen in inputs.items():
        errors = [_error(seen, _layer(tree, path), _layer(variables, path)) for tree in (learned, nearest)]
        assert errors[0] <= errors[1] * (1 + 1e-3), path  # both are sums in float32
        assert errors[0] < 0.9 * errors[1] or path == "conv1", path


def _layer(variables: Any, path: str) -> Any:
    found = variables["params"]
    for part in path.split("/"):
        found = found[part]
    return found["kernel"]


def _error(seen: list[tuple[nn.Conv, Any]], encoded: Any, exact: Any) -> float:
    """Squared error that a kernel's rounding makes in a convolution's outputs."""
    off = encoded.dequantize() - exact
    total = 0.0
    for conv, x in seen:
        y = jax.lax.conv_general_dilated(
            x, off, _pair(conv.strides), conv.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        total += float((y**2).sum())
    return total


def _pair(strides: Any) -> tuple[int, int]:
    return (strides, strides) if isinstance(strides, int) else tuple(strides or (1, 1))


def _cells(line: str) -> list[str]:
    """The two means of a line ``name  m% (low to high)  m% (low to high)``."""
    return [line[26:].split("(")[0], line.split(")")[1].split("(")[0]]


@pytest.mark.assets
@needs_full
def test_the_packaged_digits() -> None:
    data = finetune.digits()
    assert data.images.shape == (4000, 28, 28, 1)
    assert data.test_images.shape == (1000, 28, 28, 1)
    assert (data.images.min(), data.images.max()) == (0, 1)
    assert set(data.labels) == set(data.test_labels) == set(range(10))


@pytest.mark.assets
@pytest.mark.slow
@needs_full
def test_trained_ranges_learn_what_few_bits_lose() -> None:
    """Weights and activations of two bits on digits: nearest is lost, training is not."""
    data = finetune.digits()
    variables = finetune.train_float(data, 2, jax.random.key(0))
    exact = finetune.accuracy(finetune.infer, variables, data)
    row = finetune.compare_activations(variables, 2, data, 2)
    assert isinstance(row["activations, tuned"], float)
    assert row["activations, tuned"] > row["activations, calibrated"] + 10
    # 1,000 images: two standard deviations of a share of 90% are 1.9 points; two bits may cost ten.
    assert row["activations, tuned"] >= exact - 12


@pytest.mark.slow
def test_finetuning_without_ranges_finds_them_in_each_run() -> None:
    images = np.asarray(normal(200, 28, 28, 1))
    data = finetune.Data(images, np.arange(200) % 10, images[:20], np.arange(20) % 10)
    variables = finetune.NET.init(jax.random.key(0), images[:1])
    tuned, ranges = finetune.finetune(variables, 4, data, 1)
    assert ranges == q8.Ranges()
    assert tuned["params"]["Conv_1"]["kernel"].values.dtype == np.int8
