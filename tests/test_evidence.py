"""Evidence on labels, against a loop that takes each example out and fits the Gaussians again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fsdtool import evidence as module
from fsdtool.activations import activation
from fsdtool.evidence import FeatureStore, choose_layers, evidence, layer_features, pool


def oracle_shrinkage(matrix: np.ndarray, n: int) -> float:
    """Chen et al. 2010, equation 23, for a sample covariance of n degrees of freedom."""
    p, square, trace = len(matrix), np.trace(matrix @ matrix), np.trace(matrix)
    return min(1.0, ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * (square - trace**2 / p)))


def scatter(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of outer products around the class means."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for c in np.unique(y):
        d = x[y == c] - x[y == c].mean(0)
        total += d.T @ d
    return total


def naive(x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Log-likelihood (N, classes) of each example under Gaussians fitted to the others; nan for no example.

    Scale, shrinkage and degrees of freedom are those of all examples.
    """
    x = x.astype(np.float64)
    freedom = len(y) - len(np.unique(y))
    covariance = scatter(x, y) / freedom
    scale = 1 / np.sqrt(np.diag(covariance))
    correlation = covariance * np.outer(scale, scale)
    rho = oracle_shrinkage(correlation, freedom)
    found = np.full((len(y), classes), np.nan)
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        rest, labels = x[others] * scale, y[others]
        fitted = (1 - rho) * scatter(rest, labels) / freedom + rho * np.eye(x.shape[1])
        precision = np.linalg.inv(fitted)
        for c in np.unique(labels):
            d = x[i] * scale - rest[labels == c].mean(0)
            found[i, c] = -0.5 * d @ precision @ d
    return found


def collect(layers: dict[str, np.ndarray], y: np.ndarray, logits: np.ndarray, fits: int = 1) -> module.LabelEvidence:
    with FeatureStore(len(y), seed=0) as store:
        for name, x in layers.items():
            store.put(name, slice(0, len(y)), torch.from_numpy(x.astype(np.float32)))
        return evidence(store, torch.from_numpy(y), torch.from_numpy(logits), fits=fits)


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


def test_wide_layers_are_projected_on_512_seeded_directions():
    x = torch.randn(20, 700)

    def stored(seed: int) -> np.ndarray:
        with FeatureStore(20, seed) as store:
            store.put("wide", slice(0, 15), x[:15])
            store.put("wide", slice(15, 20), x[15:])
            return np.array(store.get("wide"))

    assert stored(0).shape == (20, 512)
    np.testing.assert_array_equal(stored(0), stored(0))
    assert not np.array_equal(stored(0), stored(1))
    lengths = np.linalg.norm(stored(0), axis=1) / (512 / 700) ** 0.5
    np.testing.assert_allclose(lengths, x.norm(dim=1), rtol=0.15)  # distances are kept, roughly


def test_the_stored_features_leave_nothing_behind():
    with FeatureStore(3, seed=0) as store:
        store.put("layer", slice(0, 3), torch.ones(3, 2))
        folder = Path(store.get("layer").filename).parent
        assert folder.is_dir()
    assert not folder.exists()


def test_at_most_twelve_layers_are_chosen_from_first_to_last():
    assert choose_layers(["a", "b"]) == ["a", "b"]
    names = [str(i) for i in range(40)]
    chosen = choose_layers(names)
    assert len(set(chosen)) == 12
    assert (chosen[0], chosen[-1]) == ("0", "39")
    assert chosen == sorted(chosen, key=int)


@pytest.mark.parametrize("function", ["relu", "leaky_relu", "tanh"])
def test_the_features_of_a_layer_are_mean_output_and_mean_slope_per_channel(function):
    phi, s = activation(function), torch.randn(5, 3, 2, 2, dtype=torch.float64)
    s.requires_grad_()
    a = phi.function(s)
    (m,) = torch.autograd.grad(a.sum(), s)
    expected = torch.cat([a.mean((2, 3)), m.mean((2, 3))], 1)
    torch.testing.assert_close(layer_features(phi, s.detach(), a, channels_last=False), expected)


def test_channels_may_come_last():
    value = torch.randn(5, 4, 3)
    torch.testing.assert_close(pool(value, channels_last=True), value.mean(1))
    torch.testing.assert_close(pool(value, channels_last=False), value.mean(2))
    torch.testing.assert_close(pool(value[:, 0], channels_last=False), value[:, 0])
