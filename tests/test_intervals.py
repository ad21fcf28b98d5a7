"""Confidence intervals of shares, averages and ratios, and the results that carry them."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.display.intervals import decibel_text, percent_text, shares_interval, sqnr_interval
from tests.small import ALWAYS, PAIR, X, dense, fast


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # Computed by hand from Wilson's formula with z = 1.96; those of 81 of 263 are in Newcombe 1998, table I.
    [(81, 263, 0.2553, 0.3662), (18, 20, 0.6990, 0.9721), (20, 20, 0.8389, 1.0), (0, 20, 0.0, 0.1611)],
)
def test_wilson_intervals(count, total, low, high):
    share = q8.Share(count, total)
    assert share.interval == pytest.approx((low, high), abs=1e-4)
    assert share.interval[0] <= share.value <= share.interval[1]


def test_intervals_hold_the_true_share_as_often_as_they_say():
    """Over 20 examples of a share of 0.9 Wilson's intervals hold it 96% of the time; the bootstrap does at most 88%."""
    hits = np.random.default_rng(0).binomial(20, 0.9, 2000)
    held = [low <= 0.9 <= high for low, high in (q8.Share(int(k), 20).interval for k in hits)]
    assert 0.94 < np.mean(held) < 0.98


def test_shares_as_text():
    assert str(q8.Share(18, 20)) == "18 of 20 (95%: 70 to 97%)"
    assert str(q8.Share.of([True, True])) == "2 of 2 (95%: 34 to 100%)"
    assert str(q8.Share(9000, 10000)) == "9000 of 10000 (95%: 89.4 to 90.6%)"
    assert percent_text(None) == decibel_text(None) == decibel_text((math.inf, math.inf)) == ""
    for count, total in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(q8.ArgumentError, match="at least one example"):
            q8.Share(count, total)


def test_a_ratio_is_resampled_by_example():
    signal, noise = np.full(30, 8.0), np.tile([1.0, 3.0], 15)
    middle, low, high = q8.bootstrap(signal, over=noise)
    assert middle == 4
    # The mean noise is 2 with a standard error of 1 / sqrt(30).
    assert low == pytest.approx(8 / (2 + 1.96 / 30**0.5), rel=0.05)
    assert high == pytest.approx(8 / (2 - 1.96 / 30**0.5), rel=0.05)
    assert q8.bootstrap(signal, over=0 * noise) == (math.inf,) * 3
    assert sqnr_interval(signal[:1], noise[:1]) is None
    assert sqnr_interval(signal, noise) == pytest.approx((10 * math.log10(low), 10 * math.log10(high)))
    for values, over in (([], None), ([1.0], [1.0, 2.0]), (1.0, None)):
        with pytest.raises(q8.ArgumentError, match="one number for each example"):
            q8.bootstrap(values, over=over)


def test_tokens_of_a_text_are_no_examples():
    assert shares_interval([1.0, 1.0, 0.0]) == q8.Share(2, 3).interval
    low, high = shares_interval([0.5, 1.0, 0.9, 0.7])
    assert 0.5 < low < 0.775 < high < 1
    assert shares_interval([]) is shares_interval([0.5]) is None


def test_compare_reports_intervals_in_text_and_json():
    report = q8.compare(dense, fast, PAIR, [X[:10], X[10:]], progress=False)
    found = report.output
    assert found.examples == 16
    assert found.same_answer == q8.Share(round(16 * found.top1), 16)
    assert found.top1_interval == found.same_answer.interval
    low, high = found.sqnr_db_interval
    assert low < found.sqnr_db < high < low + 10
    assert f"same first answer {found.same_answer}" in str(report)
    assert f"dB (95%: {low:.1f} to {high:.1f})" in str(report)
    written = json.loads(report.to_json())["output"]
    assert written["sqnr_db_interval"] == [low, high]
    assert written["top5_interval"] == list(found.top5_interval)
    # One number for each batch: batches are the examples then, and nothing has an answer.
    sums = q8.compare(
        lambda v, x: dense(v, x).sum(), lambda v, x: fast(v, x).sum(), PAIR, [X, 2 * X], progress=False
    )
    assert sums.output.sqnr_db_interval is not None
    assert sums.output.same_answer is sums.output.top1_interval is None


def test_sensitivity_reports_intervals():
    found = q8.sensitivity(
        dense, PAIR, [X], config=ALWAYS, target_agreement=1.0, target_db=60, progress=False
    )
    count = round(16 * found.all_agreement)
    assert found.all_agreement_interval == q8.Share(count, 16).interval
    assert found.all_db_interval[0] < found.all_db < found.all_db_interval[1]
    assert found.reached_db_interval is None or found.reached_db_interval[0] <= found.reached_db
    written = json.loads(found.to_json())
    assert written["all_agreement_interval"] == list(found.all_agreement_interval)
    assert percent_text(found.all_agreement_interval) in str(found)


def test_answers_of_tokens_are_counted_by_example():
    """A result of two answers for each example: its intervals are over 16 examples, not over 32 answers."""

    def tokens(v, x):
        return jnp.stack([dense(v, x), dense(v, -x)], 1)

    rough = q8.Config(kernels="xla", weights=q8.Spec(bits=2, symmetric=True, granularity="channel"))
    found = q8.sensitivity(tokens, PAIR, [X], config=rough, progress=False)
    assert 0 < found.all_agreement < 1
    low, high = found.all_agreement_interval
    answers = q8.Share(round(32 * found.all_agreement), 32).interval
    assert high - low > 0.8 * (answers[1] - answers[0])
