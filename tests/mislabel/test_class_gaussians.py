"""Models of the classes, against a loop that takes each example out and works everything out again in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdtool.mislabel import class_gaussians as module
from fsdtool.mislabel.class_gaussians import ClassGaussians, bounded, oracle_shrinkage


def chen(matrix: np.ndarray, n: float) -> float:
    """Chen et al. 2010, equation 23, for a sample covariance of n degrees of freedom."""
    p, square, trace = len(matrix), np.trace(matrix @ matrix), np.trace(matrix)
    spread = square - trace**2 / p
    return min(1.0, ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * spread)) if spread > 0 else 1.0


def class_means(x: np.ndarray, y: np.ndarray, w: np.ndarray, classes: int) -> np.ndarray:
    return np.array([w[y == c] @ x[y == c] / w[y == c].sum() if (y == c).any() else 0 * x[0] for c in range(classes)])


def class_scatters(x: np.ndarray, y: np.ndarray, w: np.ndarray, classes: int) -> np.ndarray:
    """Sums (classes, D, D) of weighted outer products around the class means."""
    d = x - class_means(x, y, w, classes)[y]
    outer = w[:, None, None] * d[:, :, None] * d[:, None, :]
    return np.array([outer[y == c].sum(0) for c in range(classes)])


def naive(
    x: np.ndarray, y: np.ndarray, classes: int, sample_weight: np.ndarray | None = None, own: bool = False
) -> np.ndarray:
    """Log-likelihood (N, classes) of each example under the models of all others; nan for no other example.

    The scale of features, the shrinkage, the shares k and all divisors are those of all examples.  own: the given
    class and the likeliest RIVALS under the covariance of all have their own; the others keep their distance to the
    rivals, which is that to the one that lost most.
    """
    x, w = x.astype(np.float64), np.ones(len(y)) if sample_weight is None else sample_weight
    size = x.shape[1]
    count = np.bincount(y, w, minlength=classes)
    freedom = w.sum() - len(np.unique(y))
    x = x / np.sqrt(np.diag(class_scatters(x, y, w, classes).sum(0)) / freedom)
    shrinkage = chen(class_scatters(x, y, w, classes).sum(0) / freedom, freedom)
    share = 0.12 * count / (count + size / 4)
    found = np.full((len(y), classes), np.nan)
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        rest = x[others], y[others], w[others]
        means, scatters = class_means(*rest, classes), class_scatters(*rest, classes)
        shared = (1 - shrinkage) * scatters.sum(0) / freedom + shrinkage * np.eye(size)
        there = np.unique(y[others])
        for c in there:
            found[i, c] = student_t(x[i] - means[c], shared)
        if own:
            rivals = there[np.argsort(-found[i, there])[: module.RIVALS]]
            changed = found[i].copy()
            for c in {*rivals.tolist(), *there[there == y[i]].tolist()}:
                changed[c] = student_t(x[i] - means[c], (1 - share[c]) * shared + share[c] * scatters[c] / count[c])
            behind = (changed - found[i])[rivals].min()
            follows = [c for c in there if c not in rivals and c != y[i]]
            changed[follows] = found[i, follows] + behind
            found[i] = changed
    return found


def student_t(d: np.ndarray, covariance: np.ndarray) -> float:
    """Log-density at d off the middle of a Student t of as many degrees of freedom as dimensions, but a constant."""
    q = d @ np.linalg.solve(covariance, d)
    return -len(d) * np.log1p(q / len(d)) - np.linalg.slogdet(covariance)[1] / 2


def draw(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, d), classes that differ in mean and covariance, labels (n,) and sample_weight (n,)."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    mix = generator.normal(size=(classes, d, d)) / 2 + generator.normal(size=(d, d))
    x = np.einsum("nd,nde->ne", generator.normal(size=(n, d)), mix[y]) + generator.normal(size=(classes, d))[y]
    return x.astype(np.float32), y, generator.uniform(0.05, 1, n)


def closed(x: np.ndarray, y: np.ndarray, classes: int, sample_weight: np.ndarray | None = None, own: bool = False):
    """The same by ClassGaussians, the strongest class at 0."""
    sample_weight = np.ones(len(y)) if sample_weight is None else sample_weight
    found = ClassGaussians(x, torch.from_numpy(y), classes, torch.from_numpy(sample_weight), own)
    return found.log_likelihood(slice(0, len(y))).double().numpy()


def from_the_strongest(values: np.ndarray) -> np.ndarray:
    return values - np.nanmax(values, 1, keepdims=True)


CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # features are float32; log-likelihoods are of order 1 to 100


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("equal_weights", [False, True])
@pytest.mark.parametrize(("n", "d", "classes"), [(40, 5, 3), (40, 30, 3), (60, 2, 12)])
def test_leaving_an_example_out_in_closed_form_equals_fitting_again_without_it(n, d, classes, equal_weights, own):
    x, y, sample_weight = draw(n, d, classes)
    sample_weight = np.ones(n) if equal_weights else sample_weight
    expected = naive(x, y, classes, sample_weight, own)
    np.testing.assert_allclose(closed(x, y, classes, sample_weight, own), from_the_strongest(expected), **CLOSE)


def test_classes_that_are_no_rivals_follow_the_rivals_at_their_distance(monkeypatch):
    x, y, sample_weight = draw(60, 2, 12)
    ten = closed(x, y, 12, sample_weight, own=True)
    monkeypatch.setattr(module, "RIVALS", 3)
    expected = from_the_strongest(naive(x, y, 12, sample_weight, own=True))
    found = closed(x, y, 12, sample_weight, own=True)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.abs(found - ten).max() > 0.01


def test_own_covariances_and_sample_weights_make_a_difference():
    x, y, sample_weight = draw(40, 5, 3)
    plain = closed(x, y, 3)
    assert np.abs(closed(x, y, 3, own=True) - plain).max() > 0.1
    assert np.abs(closed(x, y, 3, sample_weight) - plain).max() > 0.1


@pytest.mark.parametrize("own", [False, True])
def test_the_only_example_of_a_class_has_it_level_with_the_strongest_other(own):
    x, y, sample_weight = draw(40, 5, 3)
    y[0] = 3
    expected = naive(x, y, 4, sample_weight, own)
    expected[0, 3] = np.nanmax(expected[0])
    np.testing.assert_allclose(closed(x, y, 4, sample_weight, own), from_the_strongest(expected), **CLOSE)


@pytest.mark.parametrize("own", [False, True])
def test_a_class_without_examples_explains_nothing_and_disturbs_no_other(own):
    x, y, sample_weight = draw(40, 5, 3)
    expected = closed(x, y, 3, sample_weight, own)
    found = closed(x, np.where(y == 2, 3, y), 4, sample_weight, own)
    assert (found[:, 2] == module.WEAKEST).all()
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected, **CLOSE)


@pytest.mark.parametrize("own", [False, True])
def test_features_that_are_constant_change_nothing(own):
    x, y, sample_weight = draw(40, 5, 3)
    constant = np.tile(np.float32([0, 1e6, -0.1]), (40, 1))
    found = closed(np.hstack([constant[:, :2], x, constant[:, 2:]]), y, 3, sample_weight, own)
    np.testing.assert_allclose(found, from_the_strongest(naive(x, y, 3, sample_weight, own)), **CLOSE)


def test_an_example_of_no_weight_is_judged_and_moves_no_other():
    x, y, sample_weight = draw(40, 5, 3)
    sample_weight[7] = 1e-12
    others = np.arange(40) != 7
    freedom = sample_weight.sum() - 3
    assert freedom == pytest.approx(sample_weight[others].sum() - 3)
    found = closed(x, y, 3, sample_weight, own=True)
    np.testing.assert_allclose(found[others], closed(x[others], y[others], 3, sample_weight[others], own=True), **CLOSE)
    assert np.isfinite(found[7]).all()


@pytest.mark.parametrize(("width", "classes", "numbers"), [(5, 3, 3 * 5**2), (2, 6, 2 * 6**2)])
def test_of_many_numbers_all_classes_share_one_covariance(monkeypatch, width, classes, numbers):
    x, y, sample_weight = draw(40, width, classes)
    shared, own = (closed(x, y, classes, sample_weight, own) for own in (False, True))
    monkeypatch.setattr(module, "OWN_NUMBERS", numbers)
    np.testing.assert_array_equal(closed(x, y, classes, sample_weight, own=True), own)
    monkeypatch.setattr(module, "OWN_NUMBERS", numbers - 1)
    np.testing.assert_array_equal(closed(x, y, classes, sample_weight, own=True), shared)


@pytest.mark.parametrize("own", [False, True])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, own):
    x, y, sample_weight = draw(100, 6, 4)
    whole = closed(x, y, 4, sample_weight, own)
    monkeypatch.setattr(module, "ROWS", 7)
    np.testing.assert_allclose(closed(x, y, 4, sample_weight, own), whole, **CLOSE)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("y", [[0], [0, 0], [0, 1], [2, 1, 0]])
def test_very_few_examples_give_finite_values(y, own):
    x = np.random.default_rng(0).normal(size=(len(y), 3)).astype(np.float32)
    found = closed(x, np.array(y), 3, own=own)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[np.arange(len(y)), y], found.max(1))


@pytest.mark.parametrize("own", [False, True])
def test_a_layer_of_constant_features_says_nothing_but_of_classes_without_examples(own):
    _, y, sample_weight = draw(40, 5, 3)
    found = closed(np.ones((40, 5), np.float32), y, 4, sample_weight, own)
    assert not found[:, :3].any()
    assert (found[:, 3] == module.WEAKEST).all()


def test_the_shrinkage_is_that_of_the_paper():
    for n, p in ((10, 4), (30, 30), (500, 20)):
        x = np.random.default_rng(p).normal(size=(n, p)) @ np.diag(np.arange(1, p + 1))
        found = oracle_shrinkage(torch.from_numpy(np.corrcoef(x.T)), n)
        assert found == pytest.approx(chen(np.corrcoef(x.T), n), rel=1e-10)
    assert oracle_shrinkage(torch.eye(3), 10) == 1


def test_log_likelihoods_are_bounded_below_the_strongest():
    found = bounded(torch.tensor([[-1e6, -5.0, -7.0], [-torch.inf, -torch.inf, -3.0]], dtype=torch.float64))
    assert found.tolist() == [[-1e4, 0, -2], [-1e4, -1e4, 0]]
