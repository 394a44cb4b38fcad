"""Evidence on labels: what the layers and the outputs say of the classes, and what sample weights add."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdtool.mislabel import label_evidence as module
from fsdtool.mislabel.features import FeatureStore
from fsdtool.mislabel.label_evidence import evidence
from tests.mislabel.test_class_gaussians import naive


def collect(
    layers: dict[str, np.ndarray], y: np.ndarray, logits: np.ndarray, equal_weights: bool = True
) -> module.LabelEvidence:
    with FeatureStore(len(y), seed=0) as store:
        for name, x in layers.items():
            store.put(name, slice(0, len(y)), torch.from_numpy(x.astype(np.float32)))
        before = range(len(store.layers) + 1)
        return evidence(store, torch.from_numpy(y), torch.from_numpy(logits), before, equal_weights=equal_weights)


def by_class(found: module.LabelEvidence, classes: int) -> np.ndarray:
    """Evidence (N, L, classes), nan where a class is no candidate."""
    n, layers, _ = found.evidence.shape
    values = torch.full((n, layers, classes), torch.nan)
    index = found.candidates.long()[:, None].expand(-1, layers, -1)
    return values.scatter(2, index, found.evidence).numpy()


def draw(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    mix = generator.normal(size=(d, d))
    x = (generator.normal(size=(n, d)) @ mix + generator.normal(size=(classes, d))[y]).astype(np.float32)
    return x, y, generator.normal(size=(n, classes)).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(60, 4), (40, 30)])
def test_leaving_an_example_out_in_closed_form_equals_fitting_again_without_it(n, d):
    x, y, logits = draw(n, d, 3)
    expected = naive(x, y, 3)
    expected -= expected[np.arange(n), y][:, None]
    found = by_class(collect({"layer": x}, y, logits), 3)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-3)


def test_the_outputs_are_the_last_layer_with_their_log_probabilities():
    x, y, logits = draw(50, 3, 4)
    found = collect({"first": x, "second": x}, y, logits)
    log_p = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
    assert found.layers == ("first", "second", "(outputs)")
    np.testing.assert_allclose(by_class(found, 4)[:, 2], log_p - log_p[np.arange(50), y][:, None], rtol=1e-5, atol=1e-5)


def test_the_given_label_stands_first_with_evidence_zero():
    x, y, logits = draw(50, 3, 14)
    found = collect({"layer": x}, y, logits)
    np.testing.assert_array_equal(found.candidates[:, 0], y)
    assert not found.evidence[:, :, 0].any()


def test_of_many_classes_the_strongest_are_kept():
    x, y, _ = draw(300, 6, 14)
    expected = naive(x, y, 14)
    logits = (2 * expected).astype(np.float32)  # layer and outputs agree, so there is one order of strength
    found = collect({"layer": x}, y, logits)
    assert found.candidates.shape == (300, 10)
    for i in range(300):
        others = [c for c in np.argsort(-expected[i]) if c != y[i]][:9]
        assert set(found.candidates[i, 1:].tolist()) == set(others)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    x, y, logits = draw(200, 6, 14)
    whole = collect({"a": x, "b": x[:, :3]}, y, logits)
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "SCORES", 14 * 3 * 5)
    parts = collect({"a": x, "b": x[:, :3]}, y, logits)
    assert torch.equal(whole.candidates, parts.candidates)
    torch.testing.assert_close(whole.evidence, parts.evidence, rtol=1e-4, atol=1e-4)


def test_the_unit_of_a_feature_changes_nothing():
    x, y, logits = draw(80, 4, 3)
    scaled = x * np.array([1e-8, 1.0, 1e8, 1e3], dtype=np.float32)
    expected, found = (by_class(collect({"layer": z}, y, logits), 3)[:, 0] for z in (x, scaled))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_constant_features_change_nothing():
    x, y, logits = draw(80, 4, 3)
    constant = np.tile(np.float32([0, 1e6, -0.1]), (80, 1))
    expected, found = (by_class(collect({"layer": z}, y, logits), 3)[:, 0] for z in (x, np.hstack([x, constant])))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_of_constant_features_says_nothing():
    _, y, logits = draw(80, 4, 3)
    found = collect({"dead": np.ones((80, 2))}, y, logits)
    assert not by_class(found, 3)[:, 0].any()


def test_a_class_with_one_example_gives_no_evidence_either_way_on_that_example():
    x, y, logits = draw(60, 3, 3)
    y = y.copy()
    y[0] = 3
    found = by_class(collect({"layer": x}, y, np.pad(logits, ((0, 0), (0, 1)))), 4)
    expected = naive(x, y, 4)
    expected[0] -= np.nanmax(expected[0])  # its own class is put level with the strongest other one
    np.testing.assert_allclose(found[0, 0, :3], expected[0, :3], rtol=1e-4, atol=1e-3)
    expected[1:] -= expected[np.arange(1, 60), y[1:]][:, None]
    np.testing.assert_allclose(found[1:, 0], expected[1:], rtol=1e-4, atol=1e-3)


def test_a_class_without_examples_is_never_suggested_by_a_layer():
    x, y, logits = draw(60, 3, 3)
    found = by_class(collect({"layer": x}, y, np.pad(logits, ((0, 0), (0, 1)))), 4)
    assert np.isfinite(found).all()
    assert (found[:, 0, 3] < found[:, 0, :3].min(1) - 1000).all()


@pytest.mark.parametrize("y", [[0], [0, 0], [0, 1], [2, 1, 0]])
def test_very_few_examples_give_finite_evidence(y):
    generator = np.random.default_rng(0)
    found = collect({"layer": generator.normal(size=(len(y), 3))}, np.array(y), np.zeros((len(y), 3), "f4"))
    assert torch.isfinite(found.evidence).all()


def test_an_example_far_from_every_class_still_has_a_nearest_one():
    x, y, logits = draw(200, 3, 3)
    x[0] = 1e4 * (x[y == 1].mean(0) - x[y == 0].mean(0))
    y[0] = 0
    found = by_class(collect({"layer": x}, y, logits), 3)
    assert len(np.unique(found[0, 0])) == 3
