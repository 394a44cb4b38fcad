"""Class means and their common covariance for new examples, against dense ones and leave-one-out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdtool.mislabel.class_gaussians import ClassGaussians
from fsdtool.mislabel.discriminant import Discriminant, student_log_density
from tests.mislabel.test_class_gaussians import chen, class_means, class_scatters, draw
from tests.mislabel.test_label_evidence import by_class, collect
from tests.mislabel.test_label_evidence import draw as draw_with_logits


def naive(x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray, classes: int, new: np.ndarray) -> np.ndarray:
    """Log-likelihood (n, classes) of new examples (n, D) under a Student t around each class mean, up to a constant."""
    x, new = x.astype(np.float64), new.astype(np.float64)
    freedom = sample_weight.sum() - len(np.unique(y))
    covariance = class_scatters(x, y, sample_weight, classes).sum(0) / freedom
    scale = 1 / np.sqrt(np.diag(covariance))
    correlation = covariance * np.outer(scale, scale)
    shrinkage = chen(correlation, freedom)
    precision = np.linalg.inv((1 - shrinkage) * correlation + shrinkage * np.eye(x.shape[1]))
    d = (new[:, None] - class_means(x, y, sample_weight, classes)) * scale
    return -x.shape[1] * np.log1p(np.einsum("ncd,de,nce->nc", d, precision, d) / x.shape[1])


def fitted(x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray, classes: int, own: bool = False) -> Discriminant:
    return ClassGaussians(x, torch.from_numpy(y), classes, torch.from_numpy(sample_weight), own).discriminant()


@pytest.mark.parametrize(("d", "classes"), [(12, 3), (3, 12), (5, 5), (1, 2)])
def test_new_examples_are_as_likely_as_under_dense_models(d, classes):
    x, y, sample_weight = draw(200, d, classes)
    new = draw(40, d, classes, seed=1)[0]
    scores = fitted(x, y, sample_weight, classes).log_likelihood(torch.from_numpy(new)).numpy()
    np.testing.assert_allclose(scores, naive(x, y, sample_weight, classes, new), rtol=2e-3, atol=0.02)


def test_own_covariances_stay_with_the_data():
    x, y, sample_weight = draw(200, 4, 3)
    own, common = (fitted(x, y, sample_weight, 3, own).log_likelihood(torch.from_numpy(x)) for own in (True, False))
    assert torch.equal(own, common)


def test_features_without_life_do_not_disturb_the_others():
    x, y, sample_weight = draw(100, 6, 4)
    expected = fitted(x, y, sample_weight, 4).log_likelihood(torch.from_numpy(x))
    found = fitted(np.insert(x, 2, 1e30, axis=1), y, sample_weight, 4)
    assert found.scale[2] == 0
    scores = found.log_likelihood(torch.from_numpy(np.insert(x, 2, 7.0, axis=1)))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_the_unit_of_a_feature_changes_nothing():
    x, y, sample_weight = draw(100, 4, 3)
    scaled = x * np.float32([1e-12, 1.0, 1e12, 1e5])
    expected, found = (fitted(z, y, sample_weight, 3).log_likelihood(torch.from_numpy(z)) for z in (x, scaled))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("d", "classes"), [(4, 3), (30, 3), (3, 6)])
def test_an_example_left_out_of_the_data_and_one_never_in_them_have_the_same_evidence(d, classes):
    x, y, logits = draw_with_logits(400, d, classes)
    left_out = by_class(collect({"layer": x}, y, logits), classes)[:, 0]
    for i in range(0, 400, 40):
        others = np.arange(400) != i
        (found,) = collect({"layer": x[others]}, y[others], logits[others]).discriminants
        scores = found.log_likelihood(torch.from_numpy(x[i : i + 1])).numpy()[0]
        np.testing.assert_allclose(scores - scores[y[i]], left_out[i], rtol=0.02, atol=0.03)


def test_layers_that_are_constant_say_nothing():
    x, y, sample_weight = draw(60, 2, 3)
    found = fitted(np.ones_like(x), y, sample_weight, 3)
    assert found.root.shape == (2, 0)
    assert not found.log_likelihood(torch.ones(5, 2)).any()


def test_the_density_is_a_normal_one_whose_precision_is_drawn_from_a_gamma():
    freedom, q = 3, torch.tensor([0.0, 1.0, 25.0], dtype=torch.float64)
    precision = torch.linspace(1e-4, 40, 400_000, dtype=torch.float64)  # density u^(nu/2 - 1) exp(-u nu / 2)
    weight = precision ** (freedom / 2 - 1) * (-precision * freedom / 2).exp()
    density = (weight * precision ** (freedom / 2) * (-precision * q[:, None] / 2).exp()).sum(1)
    torch.testing.assert_close(student_log_density(q, freedom), (density / density[0]).log(), rtol=1e-4, atol=1e-4)
