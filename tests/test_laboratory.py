"""`experiment`: a table of all settings, resumable; and the extensions of docs/ROUNDING.md, as they are printed there."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from tests.small import ALWAYS, PAIR, X, dense, normal, sqnr_db

DATA = [X, normal(16, 32) * 0.5]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "ROUNDING.md"


def experiment(**settings):
    return q8.experiment(dense, PAIR, DATA, **{"config": ALWAYS, "progress": False, **settings})


def test_the_grid_is_measured_as_by_hand_and_comes_in_its_order() -> None:
    table = experiment(
        bits=(8, 4), granularity=("channel", "tensor"), metrics={"mean": lambda x, y: (x - y).mean(1)}
    )
    assert [(r["bits"], r["granularity"]) for r in table.rows] == [
        (8, "channel"),
        (8, "tensor"),
        (4, "channel"),
        (4, "tensor"),
    ]
    config = q8.Config(kernels="xla", weights=q8.Spec(bits=4, symmetric=True, granularity="tensor"))
    fast = jax.jit(q8.quantize(dense, config))
    off = [
        dense(PAIR, x) - fast(q8.quantize_weights(dense, PAIR, x, config=config, correct=None), x)
        for x in DATA
    ]
    (row,) = table.where(bits=4, granularity="tensor").rows
    np.testing.assert_allclose(row["mean"], np.concatenate([o.mean(1) for o in off]).mean(), atol=1e-6)
    assert row["mean_low"] < row["mean"] < row["mean_high"]


@pytest.mark.slow
def test_fewer_bits_and_coarser_scales_are_worse_and_learned_rounding_is_better() -> None:
    table = experiment(bits=(8, 4), rounding=("half_even", "gptq"), calibration=[normal(256, 32)])
    found = {(r["bits"], r["rounding"]): r["sqnr_db"] for r in table.rows}
    assert found[8, "half_even"] > found[4, "half_even"] + 15  # four bits are 24 dB
    assert found[4, "gptq"] > found[4, "half_even"]
    assert table.metrics == ("sqnr_db", "same_answer")


@pytest.mark.slow
def test_observers_are_used() -> None:
    (row,) = experiment(observer=("percentile",), calibration=DATA).rows
    ranges = q8.calibrate(dense, PAIR, DATA, config=ALWAYS, observer="percentile", progress=False)
    fast = jax.jit(q8.quantize(dense, ALWAYS, ranges=ranges))
    share = np.mean([np.argmax(fast(PAIR, x), 1) == np.argmax(dense(PAIR, x), 1) for x in DATA])
    assert row["same_answer"] == pytest.approx(share)
    low, high = q8.Share(round(share * 32), 32).interval
    assert (row["same_answer_low"], row["same_answer_high"]) == pytest.approx((low, high))


def test_an_interrupted_experiment_goes_on(tmp_path) -> None:
    path, calls = tmp_path / "results.jsonl", []

    def counted(x, y):
        calls.append(1)
        return (x - y).mean(1)

    first = experiment(bits=(8, 4), path=path, name="pair", metrics={"mean": counted})
    assert len(calls) == 4
    path.write_text(path.read_text() + '{"model": "pair", "cut of')
    again = experiment(bits=(8, 4, 3), path=path, name="pair", metrics={"mean": counted})
    assert len(calls) == 6
    assert again.rows[:2] == first.rows
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3
    path.write_text("not a result\n")
    with pytest.raises(q8.FileError, match="not a file of experiment"):
        experiment(path=path)


def test_a_picture_leaves_the_pictures_of_a_notebook_alone(tmp_path) -> None:
    """Another backend, once chosen, would keep all later pictures from being shown."""
    from matplotlib import pyplot

    before = pyplot.get_backend()
    pyplot.switch_backend("svg")
    try:
        experiment(bits=(8,)).plot(tmp_path / "t.png", x="bits", by="bits")
        assert pyplot.get_backend() == "svg"
        assert pyplot.get_fignums() == []
    finally:
        pyplot.switch_backend(before)


def test_tables_are_written_and_drawn(tmp_path) -> None:
    table = experiment(bits=(8, 4), symmetric=(True, False), name="pair")
    table.save(tmp_path / "t.csv")
    table.save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == list(table.rows)
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sqnr_db"]) for row in rows] == [row["sqnr_db"] for row in table.rows]
    table.plot(tmp_path / "t.png", x="bits", by="symmetric")
    assert (tmp_path / "t.png").stat().st_size > 5000
    assert str(table).splitlines()[0].split()[:3] == ["model", "rounding", "bits"]
    with pytest.raises(q8.ArgumentError, match="no column 'depth'; there are model, rounding"):
        table.plot(tmp_path / "t.png", x="depth", by="bits")
    with pytest.raises(q8.ArgumentError, match=r"cannot write t.xls; end it in .csv or .json"):
        table.save(tmp_path / "t.xls")


def test_what_is_refused() -> None:
    with pytest.raises(q8.ArgumentError, match="unknown rounding 'up'; known: adaround, ceil"):
        experiment(rounding=("up",))
    with pytest.raises(q8.ArgumentError, match="needs data to learn from; pass calibration"):
        experiment(rounding=("gptq",))
    with pytest.raises(q8.ArgumentError, match="experiment: no batches"):
        q8.experiment(dense, PAIR, [])


def test_bootstrap_intervals_hold_the_mean_as_often_as_they_say() -> None:
    """95% intervals of 40 normal numbers: 300 trials miss a number of times whose deviation is 3.8."""
    samples = np.random.default_rng(5).standard_normal((300, 40))
    missed = sum(not low <= 0 <= high for _, low, high in map(q8.bootstrap, samples))
    # The percentile interval is a little short at 40 numbers: 6% instead of 5% (Efron and Tibshirani 1993, chapter 13).
    assert 15 - 3 * 3.8 <= missed <= 18 + 3 * 4.1


@pytest.mark.usefixtures("own_registries")
def test_the_extensions_of_the_page_are_ten_lines_each_and_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    own = [block for block in blocks if "@q8.register" in block]
    assert len(own) >= 3
    names: dict[str, object] = {}
    for block in own:
        assert len(block.strip().splitlines()) <= 10
        exec(block, names)
    ranges = q8.calibrate(dense, PAIR, DATA, config=ALWAYS, observer="three_sigma", progress=False)
    fast = jax.jit(q8.quantize(dense, q8.Config(kernels="xla", rounding="half_down"), ranges=ranges))
    assert sqnr_db(dense(PAIR, X), fast(PAIR, X)) > 20

    def softened(v, x):
        return jax.lax.erfc(jnp.tanh(x @ v["w"])) @ v["v"]

    assert sqnr_db(softened(PAIR, X), jax.jit(q8.quantize(softened, ALWAYS))(PAIR, X)) > 25
