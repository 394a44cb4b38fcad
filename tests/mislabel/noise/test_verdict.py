"""What the layers say together: weights, noise and scores against draws whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fsdtool.mislabel.noise import verdict as module
from fsdtool.mislabel.noise.confusion import Noise, estimate
from fsdtool.mislabel.noise.posterior import posterior
from fsdtool.mislabel.noise.stacking import FAINT, MISSED, MISTAKEN, scored, share_range, stacked
from fsdtool.mislabel.noise.verdict import CloudWeighing, PlainWeighing, of_all_classes, verdict, verdict_by
from tests.mislabel.noise.test_unmixing import NOISES, relabelled, signals

EVEN = Noise(4, np.arange(16), (np.eye(4) * 95 + 5 / 3).ravel(), np.inf, (0,))
PARAMETERS = np.array([0.0, 1.0, 10.0, 100.0])


def draw(given: np.ndarray, true: np.ndarray, memorised: bool = True, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n, 4, 4) of three layers that see the true class and outputs that know the label, and candidates."""
    generator = np.random.default_rng(seed)
    n = len(true)
    candidates = np.stack([np.r_[y, np.delete(np.arange(4), y)] for y in given])
    layers = []
    for size in (2.0, 3.0, 2.5):
        x = size * np.eye(4)[true] + generator.normal(size=(n, 4))
        layers.append(size * x)
    known = given if memorised else true
    layers.append(8.0 * np.eye(4)[known] + generator.normal(size=(n, 4)))
    evidence = np.take_along_axis(np.stack(layers, 1), candidates[:, None].repeat(4, 1), 2)
    return (evidence - evidence[:, :, :1]).astype(np.float16), candidates.astype(np.int32)


def area(wrong: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve, by pairs."""
    a, b = score[wrong][:, None], score[~wrong][None]
    return float((a > b).mean() + (a == b).mean() / 2)


@pytest.mark.parametrize("name", ["pairs", "one class renamed", "even"])
def test_wrong_labels_are_ranked_first_and_counted_whatever_their_structure(name):
    true = signals()[1]
    given = relabelled(true, NOISES[name])
    evidence, candidates = draw(given, true)
    said = verdict(evidence, candidates, 4, PARAMETERS)
    combined = said.weighing.combined(evidence, candidates)
    found = posterior(combined, candidates, said.noise)
    wrong = given != true
    assert area(wrong, found.score) > 0.97
    assert area(wrong, found.score) > area(wrong, combined[:, 1:].max(1)) - 0.005
    assert said.noise.rate == pytest.approx(wrong.mean(), rel=0.25)
    assert (found.suggested == true)[wrong & (found.score > 0.5)].mean() > 0.95


def test_a_layer_that_has_memorised_the_labels_has_little_weight_and_honest_outputs_more():
    true = signals()[1]
    given = relabelled(true, NOISES["even"])
    by_heart, honest = (verdict(*draw(given, true, memorised), 4, PARAMETERS) for memorised in (True, False))
    assert by_heart.rates[3] < 0.01 < 0.1 < by_heart.rates[:3].min()
    assert by_heart.weights[3] < 0.02
    assert honest.weights[3] > 0.1


def test_clean_labels_are_found_clean():
    true = signals(apart=6.0)[1]
    evidence, candidates = draw(true, true)
    said = verdict(evidence, candidates, 4, PARAMETERS)
    found = posterior(said.weighing.combined(evidence, candidates), candidates, said.noise)
    assert (found.score > 0.5).mean() < 0.02


def test_confusion_is_believed_in_so_far_as_it_explains_what_the_evidence_is_against():
    classes, key = 3, np.arange(9)
    count = np.array([[80.0, 20, 0], [0, 100, 0], [0, 0, 100]]).ravel()
    candidates = np.array([[1, 0, 2]])
    shared = {"classes": classes, "key": key, "count": count, "concentration": 1e-3, "layers": (0,)}
    whole, none = (np.exp(Noise(**shared, believed=b).log_confusion(candidates))[0] for b in (1.0, 0.0))
    rate = 20 / 300
    np.testing.assert_allclose(none, [1 - rate, rate / 2, rate / 2], rtol=1e-4)
    np.testing.assert_allclose(whole[1], 0.2, rtol=1e-2)
    half = np.exp(Noise(**shared, believed=0.5).log_confusion(candidates))[0]
    np.testing.assert_allclose(half, (whole + none) / 2, rtol=1e-4)


def test_classes_that_are_no_candidates_have_the_evidence_of_the_weakest():
    dense = of_all_classes(np.array([[0.0, 2, -1]]), np.array([[3, 0, 4]]), 6)
    np.testing.assert_allclose(dense, [[2, -1, -1, 0, -1, -1]])


@pytest.mark.parametrize(("classes", "n"), [(40, 900), (4, 60)])
def test_of_many_classes_or_few_examples_the_layers_are_added_up_as_they_are(classes, n):
    true = np.arange(n) % 4
    evidence, candidates = draw(true, true)
    assert isinstance(verdict(evidence, candidates, classes, PARAMETERS).weighing, PlainWeighing)
    assert isinstance(verdict(*draw(np.arange(900) % 4, np.arange(900) % 4), 4, PARAMETERS).weighing, CloudWeighing)


def test_many_examples_are_fitted_on_a_sample_and_all_are_weighed(monkeypatch):
    true = signals()[1]
    given = relabelled(true, NOISES["pairs"])
    evidence, candidates = draw(given, true)
    whole = verdict(evidence, candidates, 4, PARAMETERS)
    monkeypatch.setattr("fsdtool.mislabel.noise.verdict.SAMPLE", 1000)
    monkeypatch.setattr("fsdtool.mislabel.noise.verdict.BLOCK", 700)
    part = verdict(evidence, candidates, 4, PARAMETERS)
    assert part.noise.rate == pytest.approx(whole.noise.rate, abs=0.03)
    assert part.noise.count.sum() == pytest.approx(len(true))
    a, b = (said.weighing.combined(evidence, candidates)[:, 1:].max(1) for said in (whole, part))
    assert np.corrcoef(a, b)[0, 1] > 0.99


def test_a_class_that_no_example_of_the_sample_has_is_no_evidence_either_way():
    true = signals(6000, seed=4)[1] % 3
    given = true.copy()
    given[[1, 4001]] = 3  # neither of them in a sample of every other example
    evidence, candidates = draw(given, true)
    said = verdict(evidence, candidates, 4, PARAMETERS)
    combined = said.weighing.combined(evidence, candidates)
    assert np.isfinite(combined).all()
    assert np.isfinite(posterior(combined, candidates, said.noise).score).all()


# Labels that no layer has learned


def test_on_new_labels_the_layer_that_foretells_them_best_counts_most():
    true = signals()[1]
    given = relabelled(true, np.eye(4) * 0.96 + 0.01)
    evidence, candidates = draw(given, true, memorised=False)
    factors, weights = stacked(evidence, 4)
    assert weights.argmax() == 3
    assert weights.sum() == pytest.approx(1)
    blind = evidence.copy()
    blind[:, 3] = np.random.default_rng(0).normal(size=blind[:, 3].shape)
    blind[:, 3, 0] = 0
    assert stacked(blind, 4)[1][3] == pytest.approx(0.45, abs=1e-6)
    assert (
        area(given != true, scored(PlainWeighing(factors).combined(evidence, candidates), candidates, EVEN).score)
        > 0.99
    )


def test_scores_of_new_labels_are_the_shares_of_a_loop():
    generator = np.random.default_rng(3)
    combined = generator.normal(size=(50, 3)).astype(np.float32) * 3
    combined -= combined[:, :1]
    candidates = np.argsort(generator.random((50, 3)), 1)
    confusion = Noise(3, np.arange(9), np.array([80.0, 15, 5, 0, 90, 10, 2, 8, 90]), 1.0, (0,))
    found = scored(combined, candidates, confusion)
    m = np.exp(confusion.log_confusion(candidates).astype(float))
    p = np.exp(combined.astype(float))
    p /= p.sum(1, keepdims=True)
    parts = []
    for (own, *others), (_, *cells) in zip(p, m, strict=True):
        confused = sum(o * cell for o, cell in zip(others, cells, strict=True)) / confusion.rate
        parts.append([own, confused, sum(o * own / (1 - o) for o in others)])
    shares = np.array([0.95, 0.025, 0.025])
    for _ in range(300):
        belongs = np.array([[s * v for s, v in zip(shares, part, strict=True)] for part in parts])
        shares = (belongs / belongs.sum(1, keepdims=True)).mean(0)
    unexplained = sum(max(others) > 0 for _, *others in combined) / 50 - confusion.rate
    shares[1] *= min(max(shares[1] / (FAINT * unexplained) - 1, 0), 1)
    wrong = np.array([shares[1] * part[1] + max(shares[2], 3e-3) * part[2] for part in parts])
    np.testing.assert_allclose(found.score, wrong / (wrong + shares[0] * p[:, 0]), rtol=1e-6)


def test_where_the_weighing_is_known_the_noise_is_that_of_all_layers_together():
    true = signals()[1]
    given = relabelled(true, NOISES["one class renamed"])
    evidence, candidates = draw(given, true, memorised=False)
    factors = np.full(4, 0.25, np.float32)
    said = verdict_by(PlainWeighing(factors), factors, evidence, candidates, 4, PARAMETERS)
    assert said.noise.rate == pytest.approx((given != true).mean(), rel=0.1)
    assert said.noise.matrix()[2, 0] == pytest.approx(((given == 2) & (true == 0)).sum(), rel=0.1)


@pytest.mark.parametrize("sample", [16384, 500])
def test_evidence_of_all_layers_is_at_hand_where_all_examples_were_fitted(sample, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", sample)
    _, true = signals(1500)
    evidence, candidates = draw(relabelled(true, NOISES["even"]), true)
    found = verdict(evidence, candidates, 4, PARAMETERS)
    assert (found.combined is None) == (sample < 1500)
    if found.combined is not None:
        expected = found.weighing.combined(evidence, candidates)
        np.testing.assert_allclose(found.combined, expected, rtol=1e-4, atol=1e-4)


def test_the_range_is_by_the_labels_that_the_layers_are_against_and_the_noise_leaves_out():
    combined = np.stack([np.zeros(100), np.where(np.arange(100) < 30, 2.0, -2.0)], 1)
    few, many = (
        Noise(2, np.arange(4), np.array([100.0 - wrong, wrong, 0, 100]), np.inf, (0,)) for wrong in (20.0, 80.0)
    )
    assert few.rate == pytest.approx(0.1)
    assert share_range(combined, few) == pytest.approx((0.1 - MISTAKEN * 0.2, 0.1 + MISSED * 0.2))
    assert share_range(combined, many) == pytest.approx((0.4, 0.4))  # they are against fewer than are counted as wrong
    assert share_range(combined, replace(few, layers=())) == (0, 1)  # no layer tells the classes apart


def seen(given: np.ndarray, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n, 4) of all layers relative to that for the given labels, and candidates (n, 4), these first."""
    candidates = np.stack([np.r_[y, np.delete(np.arange(4), y)] for y in given])
    of = np.take_along_axis(evidence, candidates, 1)
    return of - of[:, :1], candidates


def beyond(evidence: np.ndarray, true: np.ndarray, rate: float) -> np.ndarray:
    """True labels, but that those nearest to another class by the evidence (n, 4) have that class."""
    others = evidence.copy()
    own = np.take_along_axis(others, true[:, None], 1)[:, 0].copy()
    np.put_along_axis(others, true[:, None], -np.inf, 1)
    nearest = np.abs(own - others.max(1)).argsort()[: int(rate * len(true))]
    given = true.copy()
    given[nearest] = others.argmax(1)[nearest]
    return given


@pytest.mark.parametrize("name", ["even", "pairs", "near others"])
def test_the_range_holds_the_share_of_wrong_labels_wherever_they_are(name):
    evidence, true = signals(6000, apart=2.5)
    confusion = {"even": 0.94 * np.eye(4) + 0.015, "pairs": 0.94 * np.eye(4) + 0.06 * np.roll(np.eye(4), 1, 1)}
    given = relabelled(true, confusion[name]) if name in confusion else beyond(evidence, true, 0.04)
    combined, candidates = seen(given, evidence)
    noise = estimate(combined[:, None], candidates, 1, 4)
    low, high = share_range(combined, noise)
    wrong = (given != true).mean()
    assert low <= wrong <= high < 3 * wrong
    if name in confusion:
        assert noise.rate == pytest.approx(wrong, rel=0.25)
        assert low > wrong / 3


def test_confusion_that_is_the_layers_own_errors_leaves_the_order_to_labels_near_others():
    evidence, true = signals(6000, apart=2.5)
    combined, candidates = seen(true, evidence)
    p = np.exp(combined.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    order = scored(combined, candidates, EVEN).score.argsort()
    assert (np.diff((p[:, 1:] / (1 - p[:, 1:])).sum(1)[order]) > -1e-6).all()
