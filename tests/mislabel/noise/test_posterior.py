"""The probability that a label is wrong, against a loop over examples and over the inverse temperatures."""

from __future__ import annotations

import numpy as np
import pytest

from fsdtool.mislabel.noise import posterior as module
from fsdtool.mislabel.noise.confusion import Noise
from fsdtool.mislabel.noise.posterior import Posterior, posterior

CLASSES = 4


def confused(rate: float = 0.15) -> Noise:
    """Of class 2 a part is labelled 0, of class 1 a smaller part 3; of the others few."""
    count = np.full((CLASSES, CLASSES), 2.0)  # by true class and label
    count[np.diag_indices(CLASSES)] = 500 * (1 - rate)
    count[2, 0], count[1, 3] = 1500 * rate, 500 * rate
    return Noise(CLASSES, np.arange(CLASSES**2), count.ravel(), 2.0, (0,))


def draw(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Combined evidence (n, 4) relative to the given label and candidates (n, 4), the given label first."""
    generator = np.random.default_rng(seed)
    candidates = np.argsort(generator.random((n, CLASSES)), 1).astype(np.int32)
    evidence = generator.normal(size=(n, CLASSES)) - np.where(generator.random(n) < 0.9, 1.5, -2.0)[:, None]
    evidence[:, 0] = 0
    return evidence.astype(np.float32), candidates


def naive(evidence: np.ndarray, candidates: np.ndarray, noise: Noise) -> tuple[np.ndarray, ...]:
    """score, suggested and confidence (N,): by the best inverse temperature and a bisection, in loops."""
    log_m = noise.log_confusion(candidates).astype(np.float64)

    def likelihood(beta: float) -> float:
        total = 0.0
        for e, m in zip(evidence.astype(np.float64), log_m, strict=True):
            p = np.exp(beta * e - max(beta * e))
            total += np.log((p / p.sum()) @ np.exp(m))
        return total

    coarse = max(module.COARSE, key=likelihood)
    beta = max([coarse * fine for fine in module.FINE], key=likelihood)
    margins, suggested, confidence = [], [], []
    for e, m, classes in zip(evidence.astype(np.float64), log_m, candidates, strict=True):
        p = np.exp(beta * e - max(beta * e))
        p /= p.sum()
        near = [0.0, *(module.NEAR * p[0] / max(1 - p[t], 1e-6) for t in range(1, len(e)))]
        joint = beta * e + np.log(np.exp(m) + near)
        best = int(np.argmax(joint[1:])) + 1
        margins.append(module.SLOPE * (joint[best] - joint[0]))
        suggested.append(classes[best])
        confidence.append(np.exp(joint[best]) / np.exp(joint[1:]).sum())
    low, high = -1e3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        mean = np.mean([1 / (1 + np.exp(-(margin - middle))) for margin in margins])
        low, high = (middle, high) if mean > noise.rate else (low, middle)
    return (
        np.array([1 / (1 + np.exp(-(margin - low))) for margin in margins]),
        np.array(suggested),
        np.array(confidence),
    )


def test_scores_suggestions_and_confidences_are_those_of_a_loop():
    evidence, candidates = draw()
    found, expected = posterior(evidence, candidates, confused()), naive(evidence, candidates, confused())
    np.testing.assert_allclose(found.score, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.suggested, expected[1])
    np.testing.assert_allclose(found.confidence, expected[2], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.15, 0.6])
def test_the_mean_score_is_the_noise_rate(rate):
    noise = confused(rate)
    found = posterior(*draw(), noise)
    assert found.score.mean() == pytest.approx(noise.rate, rel=1e-6)


def test_without_wrong_labels_no_score_is_above_zero():
    noise = Noise(CLASSES, np.arange(CLASSES) * (CLASSES + 1), np.full(CLASSES, 100.0), np.inf, (0,))
    found = posterior(*draw(), noise)
    assert noise.rate == 0
    assert found.score.max() < 1e-6


def test_the_class_that_is_often_taken_for_the_given_one_is_suggested():
    evidence = np.float32([[0, 1, 1], [0, 1, 1]])
    candidates = np.array([[0, 2, 1], [3, 2, 1]])
    assert posterior(evidence, candidates, confused()).suggested.tolist() == [2, 1]


def test_the_scale_of_the_evidence_changes_nothing_the_unit_can_make_up_for():
    evidence, candidates = draw()
    step = np.float32(10 ** (5 / 25))  # from one inverse temperature that is tried to the next
    plain, scaled = (posterior(values, candidates, confused()) for values in (evidence, evidence * step))
    assert scaled.inverse_temperature == pytest.approx(plain.inverse_temperature / step, rel=1e-5)
    np.testing.assert_allclose(scaled.score, plain.score, rtol=1e-4, atol=1e-6)


def test_a_few_examples_like_many_have_the_scores_that_they_have_among_them():
    evidence, candidates = draw()
    many = posterior(evidence, candidates, confused())
    few = posterior(evidence[5:9], candidates[5:9], confused(), many)
    assert (few.inverse_temperature, few.offset) == (many.inverse_temperature, many.offset)
    np.testing.assert_allclose(few.score, many.score[5:9])
    np.testing.assert_allclose(few.confidence, many.confidence[5:9])


def test_the_unit_is_fitted_on_a_sample_of_many(monkeypatch):
    evidence, candidates = draw(3000)
    whole = posterior(evidence, candidates, confused())
    monkeypatch.setattr(module, "SAMPLE", 500)
    sampled = posterior(evidence, candidates, confused())
    assert sampled.inverse_temperature == pytest.approx(whole.inverse_temperature, rel=0.5)
    assert sampled.score.mean() == pytest.approx(confused().rate, rel=1e-6)
    assert isinstance(sampled, Posterior)


def test_evidence_at_its_bounds_gives_probabilities():
    evidence, candidates = draw(50)
    evidence[:, 1:] = np.float32(np.where(np.arange(50) < 5, 6e4, -6e4)[:, None])
    found = posterior(evidence, candidates, confused())
    for values in (found.score, found.confidence):
        assert np.isfinite(values).all()
        assert 0 <= values.min() <= values.max() <= 1
