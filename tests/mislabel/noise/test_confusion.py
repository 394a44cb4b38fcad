"""How many labels are wrong and as what: labels drawn by a known confusion of classes, and the formulas one by one."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.noise import confusion as module
from fsdtool.mislabel.noise.confusion import Noise, estimate, forward, likeliest
from fsdtool.mislabel.noise.label_pairs import Pairs
from tests.conftest import gaussian_classes, perceptron


def uniform(classes: int, rate: float) -> np.ndarray:
    """M[t, y] (classes, classes): every other class alike."""
    return np.full((classes, classes), rate / (classes - 1)) + (1 - rate - rate / (classes - 1)) * np.eye(classes)


def pairs(classes: int, rate: float) -> np.ndarray:
    """Of every even class that part is labelled as the next one."""
    confusion = np.eye(classes)
    for t in range(0, classes, 2):
        confusion[t, t], confusion[t, t + 1] = 1 - rate, rate
    return confusion


def draw(confusion: np.ndarray, n: int, separation: float = 3.5, seed: int = 0):
    """Evidence (n, T) of a layer that knows the true classes (n,) as well as it says, candidates (n, T), true classes.

    The layer sees a point at the vertex of its class and gives log-likelihoods, so that they are calibrated.
    """
    classes = len(confusion)
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, n)
    given = np.array([generator.choice(classes, p=confusion[t]) for t in true])
    x = separation * np.eye(classes)[true] + generator.normal(size=(n, classes))
    likelihood = separation * x
    return (*relative(likelihood, given), true)


def relative(likelihood: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    candidates = order(given, likelihood.shape[1])
    values = np.take_along_axis(likelihood, candidates, 1)
    return (values - values[:, :1]).astype(np.float32), candidates


def order(given: np.ndarray, classes: int) -> np.ndarray:
    """All classes (n, classes), the given one first."""
    return np.array([[y, *(c for c in range(classes) if c != y)] for y in given])


def counted(true: np.ndarray, given: np.ndarray, classes: int) -> np.ndarray:
    """Examples by given label (rows) and true class (columns)."""
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (given, true), 1)
    return matrix


CONFUSIONS = {"none": np.eye(4), "uniform": uniform(4, 0.2), "few": uniform(6, 0.03), "pairs": pairs(6, 0.3)}


@pytest.mark.parametrize("name", list(CONFUSIONS))
def test_rate_and_matrix_of_drawn_labels_are_recovered(name):
    confusion = CONFUSIONS[name]
    classes, n = len(confusion), 6000
    evidence, candidates, true = draw(confusion, n)
    found = estimate(evidence[:, None], candidates, 1, classes)
    wrong = (true != candidates[:, 0]).mean()
    assert found.layers == (0,)
    assert found.rate == pytest.approx(wrong, rel=0.15, abs=0.005)
    np.testing.assert_allclose(found.matrix(), counted(true, candidates[:, 0], classes), atol=0.01 * n)


def test_a_scale_of_the_evidence_changes_nothing():
    evidence, candidates, _ = draw(pairs(4, 0.2), 2000)
    plain, scaled = (estimate(values[:, None], candidates, 1, 4) for values in (evidence, 100 * evidence))
    np.testing.assert_allclose(scaled.matrix(), plain.matrix(), rtol=1e-3, atol=0.1)


def test_even_noise_has_a_large_concentration_and_noise_of_pairs_a_small_one():
    even, uneven = (
        estimate(evidence[:, None], candidates, 1, 6).concentration
        for evidence, candidates, _ in (draw(confusion, 6000) for confusion in (uniform(6, 0.2), pairs(6, 0.3)))
    )
    assert even > 20
    assert uneven < 2


def test_the_concentration_of_drawn_cells_is_recovered():
    generator = np.random.default_rng(0)
    classes, wrong = 400, 60
    for concentration in (0.5, 5.0, 50.0):
        count = np.zeros((classes, classes))
        for t in range(classes):
            cells = generator.dirichlet(np.full(classes - 1, concentration / (classes - 1)))
            count[t, np.arange(classes) != t] = generator.multinomial(wrong, cells)
            count[t, t] = 300
        found = module.Cells(np.arange(classes**2), classes).concentration(count.ravel())
        assert found == pytest.approx(concentration, rel=0.2)


def test_without_wrong_labels_the_noise_is_even():
    assert module.Cells(np.arange(9), 3).concentration(np.diag([5.0, 5.0, 5.0]).ravel()) == np.inf


@pytest.mark.parametrize("name", ["uniform", "pairs"])
def test_models_that_favour_some_classes_change_nothing(name):
    confusion = CONFUSIONS[name]
    classes = len(confusion)
    evidence, candidates, true = draw(confusion, 6000, separation=2.5)
    favour = np.linspace(-3, 3, classes)[candidates]
    found = estimate((evidence + favour - favour[:, :1])[:, None], candidates, 1, classes)
    assert found.rate == pytest.approx((true != candidates[:, 0]).mean(), rel=0.15)
    np.testing.assert_allclose(found.matrix(), counted(true, candidates[:, 0], classes), atol=90)


def test_confusion_that_the_evidence_barely_sees_is_not_drawn_to_even():
    """Drawn together from the first step, these cells stay even, and half of the wrong labels go unseen."""
    evidence, candidates, true = draw(pairs(6, 0.4), 8000, separation=1.2)
    found = estimate(evidence[:, None], candidates, 1, 6)
    assert found.rate == pytest.approx((true != candidates[:, 0]).mean(), rel=0.25)
    assert found.concentration < 2


@pytest.mark.parametrize(("classes", "n", "within"), [(30, 3000, 0.1), (300, 3000, 0.5)])
def test_of_many_classes_even_noise_becomes_even(classes, n, within):
    """With ten examples of each class, cells that are never drawn together say more than twice as many."""
    evidence, candidates, true = draw(uniform(classes, 0.1), n)
    wrong = (true != candidates[:, 0]).mean()
    found = estimate(evidence[:, None], candidates, 1, classes)
    assert found.rate == pytest.approx(wrong, rel=within)
    assert found.concentration > 100


def test_wrong_labels_among_many_classes_that_are_hard_to_tell_are_not_explained_away():
    classes, kept = 100, 10
    evidence, candidates, true = draw(uniform(classes, 0.1), 10_000, separation=3.0)
    strongest = np.argsort(-evidence[:, 1:], 1)[:, : kept - 1] + 1
    places = np.concatenate([np.zeros((len(true), 1), int), strongest], 1)
    evidence, candidates = (np.take_along_axis(values, places, 1) for values in (evidence, candidates))
    found = estimate(evidence[:, None], candidates, 1, classes)
    assert found.rate == pytest.approx((true != candidates[:, 0]).mean(), rel=0.4)


# Layers


def stacked(*layers: np.ndarray) -> np.ndarray:
    """Evidence (n, L, T), and beside it the outputs, which are given no say."""
    return np.stack([*layers, np.zeros_like(layers[0])], 1)


def memorised(evidence: np.ndarray) -> np.ndarray:
    """Evidence that the given label is right, on every example."""
    return np.where(np.arange(evidence.shape[1]) == 0, 0, -20 - np.abs(evidence)).astype(np.float32)


def test_the_first_layer_that_knows_the_classes_is_used():
    evidence, candidates, _ = draw(uniform(4, 0.2), 4000)
    blind = np.random.default_rng(1).normal(size=evidence.shape).astype(np.float32)
    blind[:, 0] = 0
    dead = np.zeros_like(evidence)
    alone = estimate(stacked(evidence), candidates, 1, 4)
    for before in ((blind,), (dead,), (dead, blind)):
        found = estimate(stacked(*before, evidence, memorised(evidence)), candidates, len(before) + 2, 4)
        assert found.layers == (len(before),)
        np.testing.assert_allclose(found.matrix(), alone.matrix())
    assert estimate(stacked(evidence, memorised(evidence)), candidates, 2, 4).layers == (0,)


def test_of_layers_with_too_few_parameters_to_memorise_the_first_and_the_best_are_used():
    # the same labels, seen better and better
    (weak, candidates, _), (middling, _, _), (strong, _, _) = (
        draw(uniform(4, 0.2), 4000, separation) for separation in (1.5, 2.2, 3.5)
    )
    layers = stacked(weak, middling, strong, memorised(strong))
    few, many = 0.001, 10.0  # for each label
    for parameters, used in (
        ((0, few, many, many), (0, 1)),
        ((0, few, few, many), (0, 2)),
        ((few, few, few, many), (0, 2)),
        ((0, many, many, many), (0,)),
        ((many, few, few, many), (1, 2)),
        ((many, many, many, many), (0,)),
    ):
        assert estimate(layers, candidates, 4, 4, np.array(parameters)).layers == used
    alone = [estimate(stacked(values), candidates, 1, 4) for values in (weak, strong)]
    both = estimate(layers, candidates, 4, 4, np.array([0, many, few, many]))
    rates = sorted(found.rate for found in alone)
    assert rates[0] <= both.rate <= rates[1]
    assert abs(both.rate - alone[1].rate) < abs(both.rate - alone[0].rate)  # what says more counts more


def test_where_no_layer_knows_the_classes_all_are_taken_together():
    generator = np.random.default_rng(0)
    candidates = order(generator.integers(0, 4, 1000), 4)
    blind = generator.normal(size=(1000, 2, 4)).astype(np.float32)
    blind[:, :, 0] = 0
    for evidence, layers in ((blind, 2), (np.zeros_like(blind), 2), (blind, 0)):
        found = estimate(evidence, candidates, layers, 4)
        assert not found.layers
        assert np.isfinite(found.matrix()).all()


def test_a_summary_whose_layers_know_nothing_is_said(summarized, caplog):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 4)).astype(np.float32), generator.integers(0, 3, 200)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        find_mislabeled(summarized(perceptron(4, 8, 3), x, y))
    assert "no layer tells the classes apart; do not trust the estimated share of wrong labels" in caplog.text
    caplog.clear()
    find_mislabeled(summarized(perceptron(4, 8, 3), *gaussian_classes(200, 4, 3), name="known.h5"))
    assert "no layer" not in caplog.text


# Samples, and what an estimate says


def test_many_examples_are_estimated_on_a_sample_and_scaled_to_all(monkeypatch):
    evidence, candidates, _ = draw(pairs(4, 0.2), 8000)
    whole = estimate(evidence[:, None], candidates, 1, 4)
    monkeypatch.setattr(module, "NUMBERS", 2000 * 4)
    sampled = estimate(evidence[:, None], candidates, 1, 4)
    assert sampled.count.sum() == pytest.approx(8000)
    np.testing.assert_allclose(sampled.matrix().sum(1), np.bincount(candidates[:, 0]), rtol=1e-6)
    np.testing.assert_allclose(sampled.matrix(), whole.matrix(), atol=0.02 * 8000)
    assert not np.array_equal(sampled.matrix(), whole.matrix())


@pytest.mark.parametrize("concentration", [np.inf, 3.0, 0.1])
def test_the_log_confusion_of_candidates_is_that_of_the_dense_matrix(concentration):
    generator = np.random.default_rng(0)
    classes = 5
    count = generator.gamma(1, 3, (classes, classes)) + 50 * np.eye(classes)
    occurs = generator.random((classes, classes)) < 0.7
    np.fill_diagonal(occurs, True)
    count[~occurs] = 0
    found = Noise(classes, np.flatnonzero(occurs.ravel()), count[occurs], concentration, (0,))
    dense = np.zeros((classes, classes))
    for t in range(classes):
        wrong = count[t].sum() - count[t, t] + module.SMOOTHING
        total = count[t].sum() + 2 * module.SMOOTHING
        for y in range(classes):
            even, seen = 1 / (classes - 1), count[t, y] / (wrong - module.SMOOTHING)
            pull = 1.0 if np.isinf(concentration) else concentration / (wrong + concentration)
            drawn = wrong * (pull * even + (1 - pull) * seen * (wrong - module.SMOOTHING) / wrong)
            dense[t, y] = (total - wrong if t == y else drawn) / total
    candidates = order(generator.integers(0, classes, 40), classes)[:, :4]
    expected = np.log(np.take_along_axis(dense.T[candidates[:, 0]], candidates, 1))
    np.testing.assert_allclose(found.log_confusion(candidates), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-3)


def test_the_matrix_has_given_labels_as_rows_and_its_rate_off_the_diagonal():
    found = Noise(3, np.array([0, 1, 4, 8]), np.array([6.0, 2.0, 5.0, 7.0]), np.inf, (0,))
    assert found.matrix().tolist() == [[6, 0, 0], [2, 5, 0], [0, 0, 7]]
    assert found.rate == pytest.approx(0.1)


@pytest.mark.parametrize(("separation", "settles"), [(3.5, True), (0.5, False)])
def test_an_estimate_that_has_not_settled_is_said(caplog, separation, settles):
    evidence, candidates, _ = draw(uniform(10, 0.2), 2000, separation)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        estimate(evidence[:, None], candidates, 1, 10)
    assert ("the share of wrong labels had not settled after 100 steps" in caplog.text) is not settles


def test_noise_is_the_same_where_all_classes_are_candidates_as_where_they_are_listed(monkeypatch):
    evidence, candidates, _ = draw(pairs(4, 0.4), 3000, separation=2.5)
    found = estimate(evidence[:, None], candidates, 1, 4)
    monkeypatch.setattr(module, "AllPairs", lambda sample: Pairs(sample, 4))
    listed = estimate(evidence[:, None], candidates, 1, 4)
    np.testing.assert_array_equal(found.key, listed.key)
    np.testing.assert_allclose(found.count, listed.count, rtol=0.01, atol=2)


def test_fits_that_do_not_settle_end_early_only_where_that_is_asked_for(monkeypatch):
    evidence, candidates, _ = draw(uniform(4, 0.2), 500)
    monkeypatch.setattr(module, "STEPS", 3)
    steps, step = [], module._Fit._step
    monkeypatch.setattr(module._Fit, "_step", lambda fit, shrunk: (steps.append(shrunk), step(fit, shrunk)))
    assert not forward(evidence[:, None], candidates, 1, 4).settled
    assert steps == [False] * 3 + [True] * 3
    assert not forward(evidence[:, None], candidates, 1, 4, patient=False).settled
    assert steps[6:] == [False] * 3


@pytest.mark.parametrize("best", [0.02, 0.7, 90.0])
def test_the_likeliest_unit_is_that_of_a_loop_over_all(best):
    evidence, candidates, _ = draw(uniform(4, 0.2), 400)
    evidence = (evidence / best).astype(np.float32)
    confusion = np.where(candidates == candidates[:, :1], 0.8, 0.2 / 3).astype(np.float32)
    likelihoods = []
    for beta in module.COARSE:
        p = np.exp(beta * evidence.astype(float) - (beta * evidence.astype(float)).max(1, keepdims=True))
        likelihoods.append(np.log((p * confusion).sum(1) / p.sum(1)).mean())
    beta, likelihood = likeliest(evidence, confusion, module.COARSE)
    assert beta == module.COARSE[np.argmax(likelihoods)]
    assert likelihood == pytest.approx(max(likelihoods), abs=1e-4)
