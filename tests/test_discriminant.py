"""Class Gaussians in their compact form, against dense ones and against leave-one-out on the same example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_evidence import by_class, collect, draw

from fsdtool import evidence as module
from fsdtool.discriminant import discriminant
from fsdtool.evidence import FeatureStore


def gaussians(seed: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """middle (d,), whiten (d, d), centres (classes, d) in whitened coordinates, and examples x (40, d)."""
    generator = np.random.default_rng(seed)
    middle, whiten = 100 * generator.normal(size=d), generator.normal(size=(d, d))
    return middle, whiten, 3 * generator.normal(size=(classes, d)) + 50, middle + generator.normal(size=(40, d))


def quadratic(x: np.ndarray, middle: np.ndarray, whiten: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Log-likelihoods (n, classes), the strongest class at 0."""
    z = (x - middle) @ whiten
    found = -0.5 * ((z[:, None] - centres) ** 2).sum(2)
    return found - found.max(1, keepdims=True)


def compact(middle, whiten, centres, live=None, present=None):
    live = np.ones(len(middle), bool) if live is None else live
    present = np.ones(len(centres), bool) if present is None else present
    return discriminant(*(torch.from_numpy(a) for a in (middle, live, whiten, centres, present)))


@pytest.mark.parametrize(("d", "classes"), [(12, 3), (3, 12), (5, 5), (1, 2)])
def test_the_compact_form_orders_classes_as_the_dense_gaussians_do(d, classes):
    middle, whiten, centres, x = gaussians(0, d, classes)
    found = compact(middle, whiten, centres)
    assert found.directions.shape == (d, min(d, classes))
    scores = found.log_likelihood(torch.from_numpy(x)).numpy()
    expected = quadratic(x, middle, whiten, centres)
    np.testing.assert_allclose(scores - scores.max(1, keepdims=True), expected, rtol=2e-3, atol=0.02)


def test_a_class_that_is_not_present_and_features_without_life_do_not_disturb_the_others():
    middle, whiten, centres, x = gaussians(1, 6, 4)
    expected = compact(middle, whiten, centres).log_likelihood(torch.from_numpy(x))
    present = np.array([True, True, False, True, True])
    more = np.insert(centres, 2, 1e9, axis=0)
    live = np.array([True, True, False, True, True, True, True])
    found = compact(np.insert(middle, 2, 1e30), whiten, more, live, present)
    scores = found.log_likelihood(torch.from_numpy(np.insert(x, 2, 7.0, axis=1)))[:, present]
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=0.02)


def test_the_unit_of_a_feature_changes_nothing():
    middle, whiten, centres, x = gaussians(2, 4, 3)
    unit = np.array([1e-12, 1.0, 1e12, 1e5])
    expected = compact(middle, whiten, centres).log_likelihood(torch.from_numpy(x))
    found = compact(middle * unit, whiten / unit[:, None], centres).log_likelihood(torch.from_numpy(x * unit))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("d", "classes"), [(4, 3), (30, 3), (3, 6)])
def test_an_example_left_out_of_the_data_and_one_never_in_them_have_the_same_evidence(d, classes):
    x, y, logits = draw(400, d, classes)
    left_out = by_class(collect({"layer": x}, y, logits), classes)[:, 0]
    for i in range(0, 400, 40):
        others = np.arange(400) != i
        (found,) = collect({"layer": x[others]}, y[others], logits[others]).discriminants
        scores = found.log_likelihood(torch.from_numpy(x[i : i + 1])).numpy()[0]
        np.testing.assert_allclose(scores - scores[y[i]], left_out[i], rtol=0.02, atol=0.03)


def test_layers_that_are_constant_say_nothing():
    _, y, logits = draw(60, 3, 3)
    (found,) = collect({"dead": np.ones((60, 2))}, y, logits).discriminants
    assert found.directions.shape == (2, 0)
    assert not found.log_likelihood(torch.ones(5, 2)).any()


def test_the_random_directions_are_made_again_from_width_and_seed():
    x = torch.randn(20, 700)
    with FeatureStore(20, 3) as store:
        store.put("wide", slice(0, 20), x)
        np.testing.assert_array_equal(store.get("wide"), (x @ module.projection(700, 3)).numpy())
