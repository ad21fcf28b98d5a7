"""One calibration example far larger than the rest: `calibrate` says so, and says nothing of ordinary data."""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from examples import assets, photos
from examples.calibrated import prepared
from examples.models import squeezenet
from jaxq8.calibration.outliers import FACTOR, magnitudes
from tests.small import ALWAYS, PAIR, dense, normal

X = normal(8, 32)
LARGE = X.at[3].multiply(1000.0)
IMAGES = normal(8, 12, 12, 16)
KERNELS = {"first": normal(3, 3, 16, 24) / 12, "second": normal(3, 3, 24, 24) / 15}


def convolutions(v, x):
    for kernel in v.values():
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims))
    return x


def calibrated(fn, v, batches, **options):
    options.setdefault("config", ALWAYS)
    return q8.calibrate(fn, v, batches, progress=False, **options)


def warned(fn, v, batches, **options) -> q8.CalibrationWarning:
    """The one warning of a calibration."""
    with pytest.warns(q8.CalibrationWarning) as found:
        calibrated(fn, v, batches, **options)
    assert len(found) == 1
    assert found[0].filename == __file__  # the line of who called calibrate
    return found[0].message


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse", "entropy"])
def test_one_example_of_the_only_batch(observer):
    if observer == "entropy":  # leaves it out by itself, or not: what counts is the range
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            ranges = calibrated(dense, PAIR, [LARGE], observer=observer)
        usual = np.median(np.abs(X).max(1))
        assert bool(found) == (max(map(abs, ranges["w:dot"])) > FACTOR * usual)
        return
    warning = warned(dense, PAIR, [LARGE], observer=observer)
    assert (warning.site, warning.batch, warning.example) == ("w:dot", 0, 3)
    each = np.sort(np.abs(LARGE).max(1))
    assert warning.ratio == pytest.approx(each[7] / each[3], rel=1e-5)
    assert re.match(
        r"calibrate: example 3 of batch 0 is \d,\d\d0 times as large as is usual at w:dot: with it in the range few",
        str(warning),
    )
    assert "scale it as the others are or leave it out" in str(warning)


def test_one_batch_of_many():
    batches = [X[:1], X[1:3], 1000 * X, X[3:]]
    warning = warned(dense, PAIR, batches)
    assert (warning.site, warning.batch) == ("w:dot", 2)
    assert 500 < warning.ratio < 2000


@pytest.mark.parametrize("at", [0, 4])
def test_batches_of_single_examples(at):
    batches = [x[None] * (1000 if i == at else 1) for i, x in enumerate(X)]
    warning = warned(dense, PAIR, batches)
    assert (warning.batch, warning.example) == (at, None)
    assert f"calibrate: batch {at} is" in str(warning)


def test_later_sites_and_batches_are_counted():
    warning = warned(convolutions, KERNELS, [IMAGES, IMAGES.at[5].multiply(400.0), IMAGES, 300 * IMAGES])
    assert (warning.site, warning.batch, warning.example) == ("first:conv", 1, 5)
    assert "at first:conv and 1 later site (and so is batch 3): with" in str(warning)


def test_bodies_of_loops_are_looked_into():
    def looped(v, x):
        return jax.lax.scan(lambda h, _: (h @ v["w"] @ v["v"], None), x, length=3)[0]

    assert warned(looped, PAIR, [LARGE]).example == 3
    calibrated(looped, PAIR, [X])


def test_tokens_of_examples_may_share_an_axis():
    def flat(v, x):
        return dense(v, x.reshape(-1, 32))

    assert warned(flat, PAIR, [normal(4, 6, 32).at[2, 5].multiply(1000.0)]).example == 2


def test_what_an_observer_has_left_out_is_no_outlier():
    many = jnp.tile(normal(50, 32), (400, 1)).at[777].multiply(1000.0)
    calibrated(dense, PAIR, [many], observer="percentile")
    assert warned(dense, PAIR, [many]).example == 777
    known = q8.Config(kernels="xla", activations=q8.Spec(range=q8.Range(-4, 4)))
    calibrated(dense, PAIR, [LARGE], config=known)


QUIET = {
    "ten times": [X.at[0].multiply(10.0), X],
    "zeros": [X.at[1:].set(0.0), X],
    "all of one batch zeros": [0 * X, X],
    "large altogether": [1e6 * X],
    "one example": [1000 * X[:1]],
    "outlier channels": [X.at[:, 4].multiply(1000.0)],
}


@pytest.mark.parametrize("data", QUIET)
def test_ordinary_data_are_not_warned_of(data):
    calibrated(dense, PAIR, QUIET[data])  # a warning is an error in the tests


def test_outlier_channels_and_empty_batches_of_images():
    calibrated(convolutions, KERNELS, [IMAGES.at[..., 2].multiply(1000.0), IMAGES[:0]])


@pytest.mark.assets
@pytest.mark.skipif(not assets.is_installed("full"), reason="run `make assets`: data are missing")
def test_a_real_net_and_its_photos():
    """Quiet on 16 photos; one of eight that is a thousand times larger is found."""
    model, variables = squeezenet.load()
    images = prepared(squeezenet, photos.calibration())
    calibrated(model.apply, variables, [images[:8], images[8:]], config=None)
    warning = warned(model.apply, variables, [images[:8].at[6].multiply(1000.0)], config=None)
    assert warning.example == 6


def test_median_without_zeros():
    x = jnp.array([[0.0, 0], [1, -2], [3, 0], [0, -50]])
    assert tuple(map(float, magnitudes(x, (4,)))) == (50, 3, 3)
    assert tuple(map(float, magnitudes(x[:3], (3,)))) == (3, 2, 2)
    assert tuple(map(float, magnitudes(0 * x, (4,))))[:2] == (0, 0)
    for leading in ((), (1, 4), (3, 12)):  # not an axis of examples
        assert tuple(map(float, magnitudes(x, leading))) == (50, 50, -1)
