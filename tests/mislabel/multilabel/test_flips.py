"""Flipped labels: the fit against the likeliest of a grid, and simulated labels whose flips are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fsdtool.mislabel.multilabel.flips import flips


def simulated(count: int = 4000, rates=((0.06, 0.0), (0.02, 0.1), (0.0, 0.0)), seed: int = 0):
    """Given labels (count, 3), predictions of them, and which were flipped."""
    generator = np.random.default_rng(seed)
    s = generator.normal(size=(count, len(rates)))
    truth = generator.random(s.shape) < 1 / (1 + np.exp(-(6 * s + [0, -4, 2])))
    chance = np.where(truth, np.array(rates)[:, 1], np.array(rates)[:, 0])
    wrong = generator.random(s.shape) < chance
    return (truth ^ wrong).astype(np.float32), 0.2 * s + 0.5, wrong


def test_shares_of_flipped_zeros_and_ones_are_found():
    given, prediction, wrong = simulated()
    found = flips(given, prediction)
    np.testing.assert_allclose(found.rates, [(0.06, 0.0), (0.02, 0.1), (0.0, 0.0)], atol=0.02)
    assert found.share == pytest.approx(wrong.mean(), rel=0.25)
    assert found.share == pytest.approx(found.probability.mean(), rel=1e-6)


def test_the_fit_is_as_likely_as_the_best_of_a_grid():
    given, prediction, _ = simulated(2000, rates=((0.05, 0.1),))
    found = flips(given, prediction)
    s = (prediction - prediction.mean()) / prediction.std()

    def likelihood(a, b, e0, e1):
        p = e0 + (1 - e0 - e1) / (1 + np.exp(-(a * s + b)))
        return float(np.log(np.where(given > 0, p, 1 - p)).sum())

    grid = itertools.product(np.linspace(3, 9, 13), np.linspace(-3, 1, 17), (0.02, 0.04, 0.05, 0.06), (0.06, 0.1, 0.14))
    best = max(likelihood(*point) for point in grid)
    pi = found.prediction
    e0, e1 = found.rates[0]
    p = e0 + (1 - e0 - e1) * pi
    assert float(np.log(np.where(given > 0, p, 1 - p)).sum()) > best - 2  # priors on a, b and the rates


def test_probabilities_are_those_of_bayes():
    given, prediction, wrong = simulated(20_000)
    found = flips(given, prediction)
    for low, high in ((0.02, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        some = (found.probability > low) & (found.probability <= high)
        assert wrong[some].mean() == pytest.approx(found.probability[some].mean(), abs=0.12)


def test_right_labels_are_not_flagged():
    given, prediction, _ = simulated(rates=((0.0, 0.0),) * 3)
    found = flips(given, prediction)
    assert (found.probability > 0.5).mean() < 1e-3
    assert found.share < 3e-3


def test_flips_that_were_memorised_are_counted_by_what_has_not():
    given, prediction, wrong = simulated(rates=((0.06, 0.06),) * 3)
    honest = flips(given, prediction)
    memorised = np.where(wrong, prediction + 0.7 * (given - prediction), prediction)
    alone = flips(given, memorised)
    found = flips(given, memorised, honest.rates)
    assert alone.share < 0.8 * wrong.mean()
    assert found.share == pytest.approx(wrong.mean(), rel=0.25)
    assert found.between == pytest.approx((alone.share, found.share))
    assert found.probability.mean() == pytest.approx(found.share, rel=1e-3)


def test_the_order_holds_where_nothing_is_flipped():
    given, prediction, _ = simulated(300, rates=((0.0, 0.0),))
    given = (prediction > 0.5).astype(np.float32)
    found = flips(given, prediction, np.zeros((1, 2))).probability[:, 0]
    assert found.max() < 1e-6
    ones = given[:, 0] > 0
    for some, sign in ((ones, -1), (~ones, 1)):
        order = np.argsort(found[some], kind="stable")
        assert (np.diff(sign * prediction[some, 0][order]) >= 0).all()
        assert len(np.unique(found[some])) > 0.9 * some.sum()


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_label_that_is_always_the_same_is_not_wrong(constant):
    given, prediction, _ = simulated(300)
    given[:, 1], prediction[:, 1] = constant, constant
    found = flips(given, prediction, np.full((3, 2), 0.02))
    assert np.isfinite(found.probability).all()
    assert (found.probability[:, 1] < 0.5).all()
