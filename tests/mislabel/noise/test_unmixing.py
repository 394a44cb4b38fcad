"""Classes behind noisy labels, against a slow loop and against labels that were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from fsdtool.mislabel.noise import unmixing as module
from fsdtool.mislabel.noise.unmixing import likelihood, shrunk, unmixed, unmixed_as


def signals(n: int = 3000, classes: int = 4, apart: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (n, classes) that is linear in Gaussian features, and the true classes (n,)."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, n)
    centres = apart * np.linalg.qr(generator.normal(size=(classes + 2, classes + 2)))[0][:classes]
    x = centres[true] + generator.normal(size=(n, classes + 2))
    return (x @ centres.T - (centres**2).sum(1) / 2).astype(np.float32), true


def relabelled(true: np.ndarray, confusion: np.ndarray, seed: int = 1) -> np.ndarray:
    """Labels drawn from the rows of `confusion` (t, y)."""
    generator = np.random.default_rng(seed)
    return np.array([generator.choice(len(confusion), p=confusion[t]) for t in true])


NOISES = {
    "pairs": np.eye(4) * 0.6 + np.roll(np.eye(4), 1, 1) * 0.4,
    "one class renamed": np.array([[0.3, 0, 0.7, 0], [0, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    "even": np.full((4, 4), 0.05) + np.eye(4) * 0.8,
    "none": np.eye(4),
}


@pytest.mark.parametrize("name", NOISES)
def test_the_confusion_of_drawn_labels_is_recovered_whatever_its_structure(name):
    evidence, true = signals()
    given = relabelled(true, NOISES[name])
    found = unmixed(evidence, given, 4)
    counted = np.zeros((4, 4))
    np.add.at(counted, (true, given), 1)
    np.testing.assert_allclose(found.count, counted, atol=0.03 * len(true))
    assert found.rate == pytest.approx((given != true).mean(), abs=0.02)


def test_evidence_of_classes_that_labels_mix_says_the_true_ones():
    evidence, true = signals()
    given = relabelled(true, np.eye(4) * 0.55 + np.roll(np.eye(4), 1, 1) * 0.45)
    # of models fitted to such labels: the means of the features are mixed likewise
    mixed = evidence @ (np.eye(4) * 0.55 + np.roll(np.eye(4), 1, 1).T * 0.45)
    assert (mixed.argmax(1) == true).mean() < 0.93
    found = unmixed(mixed, given, 4).clouds.log_likelihood(mixed)
    assert (found.argmax(1) == true).mean() > 0.95


@pytest.mark.parametrize("known", [False, True])
def test_clouds_are_those_of_a_slow_loop(known, monkeypatch):
    monkeypatch.setattr(module, "STEPS", (5, 5))
    evidence, true = signals(120, 3)
    given = relabelled(true, np.eye(3) * 0.8 + np.full((3, 3), 0.2 / 3))
    confusion = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.2, 0.1, 0.7]])
    found = unmixed_as(evidence, given, confusion) if known else unmixed(evidence, given, 3)
    freedom, temper = (10.0, 0.3) if known else (5.0, 1.0)
    x = evidence.astype(float) - evidence.mean(1, keepdims=True)
    x = x @ np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2]  # any basis of the plane of sum 0
    r, weight = np.eye(3)[given], np.ones(120)
    m = confusion if known else np.full((3, 3), 0.05) + np.eye(3) * 0.85
    for _ in range(5):
        centres = [sum(weight[i] * r[i, c] * x[i] for i in range(120)) / (weight * r[:, c]).sum() for c in range(3)]
        shape = np.zeros((2, 2))
        for i in range(120):
            for c in range(3):
                shape += weight[i] * r[i, c] * np.outer(x[i] - centres[c], x[i] - centres[c]) / 120
        inverse = np.linalg.inv(shape)
        q = np.array([[(x[i] - c) @ inverse @ (x[i] - c) for c in centres] for i in range(120)])
        t = -(freedom + 2) / 2 * np.log(1 + q / freedom)
        joint = np.exp(temper * t) * r.sum(0) / 120 * m[:, given].T
        r = joint / joint.sum(1, keepdims=True)
        weight = (freedom + 2) / (freedom + (r * q).sum(1))
        if not known:
            m = shrunk(np.array([[r[given == y, c].sum() for y in range(3)] for c in range(3)]), 10.0)
    expected = t - t[:, :1]
    values = found.clouds.log_likelihood(evidence)
    np.testing.assert_allclose(values - values[:, :1], expected, rtol=1e-3, atol=1e-3)


def test_the_confusion_is_drawn_to_even_noise_by_what_is_added():
    count = np.array([[80.0, 20, 0], [0, 100, 0], [0, 0, 100]])
    np.testing.assert_allclose(shrunk(count, 0.0)[0], [0.8, 0.2, 0.0], atol=1e-4)
    even = shrunk(count, 1e9)
    np.testing.assert_allclose(even[0], [0.8, 0.1, 0.1], atol=1e-4)
    np.testing.assert_allclose(even.sum(1), 1)
    np.testing.assert_allclose(shrunk(count, 0.0, 1e9).diagonal(), 1 - 20 / 300, atol=1e-4)


def test_labels_are_likelier_under_the_confusion_that_they_have():
    evidence, true = signals()
    given = relabelled(true, NOISES["pairs"])
    right = likelihood(unmixed(evidence, given, 4), evidence, given)
    mistaken = likelihood(unmixed(evidence, true, 4), evidence, given)
    assert -1 < right < 0
    assert right > mistaken + 0.1


def test_absent_classes_and_evidence_without_bounds_are_no_trouble():
    evidence, true = signals(400, 4)
    evidence[:, 2] = -1e4
    evidence[7] = [0, 1e4, -1e4, 1e4]
    given = np.where(true == 2, 1, true)
    found = unmixed(evidence, given, 4)
    values = found.clouds.log_likelihood(evidence)
    assert np.isneginf(values[:, 2]).all()
    assert np.isfinite(np.delete(values, 2, 1)).all()
    assert np.isfinite(unmixed(np.zeros((50, 3), np.float32), np.arange(50) % 3, 3).count).all()
