"""Which labels are wrong: the weights of the layers, the scores, and what is listed."""

from __future__ import annotations

import logging
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool import cli
from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.noise import layer_weights as module
from fsdtool.mislabel.noise.layer_weights import combination, layer_weights, margins_of, weighted
from fsdtool.summary.reader import load
from tests.conftest import gaussian_classes, perceptron


def one_factor(loadings: list[float], n: int, seed: int = 0) -> np.ndarray:
    """Margins (n, L) with correlations loading_l loading_m off the diagonal."""
    generator = np.random.default_rng(seed)
    factor, own = generator.normal(size=(n, 1)), generator.normal(size=(n, len(loadings)))
    lambda_ = np.array(loadings)
    return (lambda_ * factor + np.sqrt(1 - lambda_**2) * own).astype(np.float32)


def trained(network: nn.Module, x: np.ndarray, y: np.ndarray, *, epochs: int, rate: float) -> nn.Module:
    """The network after so many epochs of AdamW in batches of 50."""
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


# Weights of the layers


def test_the_loadings_of_one_factor_are_recovered():
    loadings = np.array([0.9, 0.7, 0.5, 0.3])
    expected = loadings / (1 - loadings**2)
    found = layer_weights(one_factor(loadings.tolist(), 50_000))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(("steps", "settles"), [(2000, True), (3, False)])
def test_weights_that_have_not_settled_are_said(monkeypatch, caplog, steps, settles):
    monkeypatch.setattr(module, "STEPS", steps)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        layer_weights(one_factor([0.9, 0.7, 0.5, 0.3], 5000))
    assert (f"the weights of the layers had not settled after {steps} steps" in caplog.text) is not settles


def test_of_many_examples_a_sample_tells_the_weights(monkeypatch):
    margins = one_factor([0.8, 0.7, 0.5, 0.3], 20_000)
    whole = layer_weights(margins)
    monkeypatch.setattr(module, "SAMPLE", 10_000)
    np.testing.assert_allclose(layer_weights(margins), whole, atol=0.02)
    np.testing.assert_array_equal(layer_weights(margins), layer_weights(margins[::2]))


def test_only_the_order_of_the_margins_matters():
    margins = one_factor([0.8, 0.7, 0.6], 2000)
    stretched = np.stack([np.exp(margins[:, 0]), 1e3 * margins[:, 1] - 5, margins[:, 2] ** 3], 1)
    np.testing.assert_allclose(layer_weights(stretched), layer_weights(margins), rtol=1e-5)


def test_a_layer_that_memorised_the_labels_has_almost_no_weight():
    weights = layer_weights(one_factor([0.9, 0.8, 0.85, 0.0], 20_000))
    assert weights[3] < 0.02


def test_a_layer_that_disagrees_has_no_weight():
    margins = one_factor([0.9, 0.8, 0.85, 0.7], 5000)
    margins[:, 3] *= -1
    assert layer_weights(margins)[3] == 0


@pytest.mark.parametrize("dead", [0, 2, 3])
def test_a_layer_that_says_nothing_has_no_weight(dead):
    margins = one_factor([0.9, 0.8, 0.85, 0.5], 5000)
    margins[:, dead] = 2.0
    weights = layer_weights(margins)
    assert weights[dead] == 0
    np.testing.assert_allclose(np.delete(weights, dead), layer_weights(np.delete(margins, dead, 1)), rtol=1e-6)


def test_where_all_but_two_layers_are_dead_these_count_alike():
    margins = np.zeros((100, 4), np.float32)
    margins[:, 1:3] = one_factor([0.9, 0.2], 100)
    np.testing.assert_allclose(layer_weights(margins), [0, 0.5, 0.5, 0])
    assert not layer_weights(np.zeros((100, 4), np.float32)).any()


def test_no_layer_takes_all_the_weight_even_if_two_are_the_same():
    margins = one_factor([0.9, 0.8, 0.85], 5000)
    weights = layer_weights(margins[:, [0, 0, 1, 2]])
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.max()) < 0.95


def test_layers_that_are_nearly_always_level_do_not_agree_because_of_that():
    margins = one_factor([0.9, 0.8, 0.85, 0.0, 0.0], 5000)
    margins[:, 3:] = margins[:, 3:] > 2.5  # the same rank for nearly all examples
    weights = layer_weights(margins)
    assert float(weights[3:].sum()) < 0.05


def test_ties_share_their_mean_rank():
    found = module._normal_scores(np.array([3.0, 1.0, 3.0, 2.0]))
    knots = np.array([NormalDist().inv_cdf((rank + 0.5) / 4) for rank in range(4)])
    np.testing.assert_allclose(found, [(knots[2] + knots[3]) / 2, knots[0], (knots[2] + knots[3]) / 2, knots[1]])


def test_the_order_of_the_examples_does_not_matter():
    margins = one_factor([0.8, 0.7, 0.6, 0.2], 3000).round(1)
    shuffled = margins[np.random.default_rng(0).permutation(3000)]
    np.testing.assert_allclose(layer_weights(shuffled), layer_weights(margins), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (50, 1), (50, 2)])
def test_where_no_loadings_can_be_fitted_the_layers_count_alike(shape):
    weights = layer_weights(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert np.isfinite(weights).all()
    assert len(set(weights.tolist())) == 1


def test_evidence_is_added_up_in_units_of_the_spread_of_its_margins(monkeypatch):
    evidence = np.random.default_rng(0).normal(size=(500, 4, 3)).astype(np.float16)
    evidence[:, :, 0] = 0
    factors, weights = combination(evidence)
    margins = evidence[:, :, 1:].astype(np.float64).max(2)
    np.testing.assert_allclose(margins_of(evidence), margins, rtol=1e-6)
    np.testing.assert_allclose(factors, weights / margins.std(0), rtol=1e-4)
    expected = sum(factors[layer] * evidence[:, layer].astype(np.float64) for layer in range(4))
    np.testing.assert_allclose(weighted(evidence, factors), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "SAMPLE", 7)
    np.testing.assert_allclose(weighted(evidence, factors), expected, rtol=1e-4, atol=1e-5)


# Scores and what is listed


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_scores_and_confidences_are_probabilities_in_the_order_of_the_ranks(sample_paths, network):
    found = find_mislabeled(load(sample_paths[network]), everything=True)
    rows = list(found.rows())
    assert [row["rank"] for row in rows] == list(range(1, 1438))
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= row["score"] <= 1 and 0 <= row["confidence"] <= 1 for row in rows)
    assert sorted(row["id"] for row in rows) == list(range(1437))
    assert all(row["given_label"] != row["suggested_label"] for row in rows)


def test_flagged_are_those_with_a_score_above_one_half(mlp_summary):
    found = find_mislabeled(mlp_summary)
    assert found.flagged == int((found.score > 0.5).sum()) == len(list(found.rows()))
    assert all(row["score"] > 0.5 for row in found.rows())


@pytest.mark.parametrize(("top", "listed"), [(1, 1), (200, 200), (10_000, 1437)])
def test_top_lists_that_many_flagged_or_not(mlp_summary, top, listed):
    rows = list(find_mislabeled(mlp_summary, top=top).rows())
    everything = list(find_mislabeled(mlp_summary, everything=True).rows())
    assert rows == everything[:listed]


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_flags_hold_most_wrong_labels_and_few_right_ones(sample_paths, truth, network):
    found = find_mislabeled(load(sample_paths[network]))
    wrong = truth["given_label"] != truth["true_label"]
    flagged = np.zeros(1437, dtype=bool)
    flagged[found.order] = True
    assert wrong[flagged].mean() > 0.85
    assert flagged[wrong].mean() > 0.85
    assert (found.suggested == truth["true_label"])[wrong & flagged].mean() > 0.9


def test_equal_scores_stand_in_record_order(mlp_summary, edited):
    def level(file):
        file["records/evidence"][100:200] = file["records/evidence"][100]
        file["records/candidates"][100:200] = file["records/candidates"][100]

    found = find_mislabeled(load(edited(mlp_summary.path, level)), everything=True)
    place = {row["id"]: row["rank"] for row in found.rows()}
    ranks = [place[i] for i in range(100, 200)]
    assert ranks == list(range(ranks[0], ranks[0] + 100))


def test_labels_are_called_by_their_names(summarized, arrays):
    x, y = gaussian_classes(300, 4, 3)
    names = np.array(["ant", "bee", "cat"])
    summary = summarized(perceptron(4, 16, 3), x, names[y])
    row = next(find_mislabeled(summary, top=1).rows())
    assert {row["given_label"], row["suggested_label"]} < set(names)


def test_the_threshold_sets_what_is_flagged(mlp_summary):
    found = find_mislabeled(mlp_summary, threshold=0.9)
    assert found.flagged == int((found.score > 0.9).sum()) == len(found.order)
    assert found.threshold == 0.9


# How many are wrong


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_noise_rate_is_within_a_quarter_of_the_truth(sample_paths, truth, network):
    found = find_mislabeled(load(sample_paths[network]))
    wrong = (truth["given_label"] != truth["true_label"]).mean()
    assert found.noise_rate == pytest.approx(wrong, rel=0.25)
    given = np.bincount(truth["given_label"], minlength=10)
    np.testing.assert_allclose(found.noise_matrix.sum(1), given, rtol=1e-6)


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_very_few_examples_are_scored_with_a_warning(summarized, caplog, examples):
    x, _ = gaussian_classes(examples, 4, 3)
    summary = summarized(perceptron(4, 8, 3), x, np.arange(examples) % 3)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        found = find_mislabeled(summary, everything=True)
    assert np.isfinite(found.score).all()
    assert "too few" in caplog.text


def test_a_summary_of_one_layer_is_judged(mlp_summary, edited):
    def outputs_alone(file):
        values = file["records/evidence"][:, -1:]
        del file["records/evidence"]
        file["records/evidence"] = values
        file["records/evidence"].attrs["layers"] = np.array(["(outputs)"], "S")
        file["records/evidence"].attrs["parameters"] = np.array([9000])

    found = find_mislabeled(load(edited(mlp_summary.path, outputs_alone)))
    assert np.isfinite(found.score).all()
    assert not found.noise.layers


# Refusals


def test_a_summary_without_records_is_refused(summarized):
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(50, 4, 3), records=False)
    with pytest.raises(FsdtoolError, match="written with `records=False`; write it again with records"):
        find_mislabeled(summary)


def test_labels_that_are_all_of_one_class_are_not_wrong(summarized):
    x, _ = gaussian_classes(50, 4, 3)
    found = find_mislabeled(summarized(perceptron(4, 8, 1), x, np.zeros(50, dtype=np.int64)))
    assert found.flagged == 0
    assert np.isfinite(found.score).all()


@pytest.mark.parametrize("broken", [None, [1, 2], [-1, 0, 0, 0], [0.5, 1, 2, 3]])
def test_a_damaged_count_of_parameters_is_refused(mlp_summary, edited, broken):
    def damage(file):
        del file["records/evidence"].attrs["parameters"]
        if broken is not None:
            file["records/evidence"].attrs["parameters"] = broken

    with pytest.raises(FsdtoolError, match=r"'parameters' is|a negative count of parameters"):
        load(edited(mlp_summary.path, damage))


class Signals:
    """Four kinds of signals in noise with random phase and frequency: their mean tells an input model nothing."""

    def __init__(self, seed: int, rate: float, kinds: str):
        generator = np.random.default_rng(seed)
        self.true = generator.integers(0, 4, 600)
        z = generator.uniform(2, 5, (600, 1)) * np.arange(64) / 64 + generator.uniform(0, 1, (600, 1))
        wave = np.sin(2 * np.pi * z)
        if kinds == "waves":
            found = [wave, np.sign(wave), 2 * (z % 1) - 1, 4 * np.abs(z % 1 - 0.5) - 1]
        else:
            pulse, bursts = np.where(z % 1 < 0.15, 2.0, -0.3), wave * np.abs(np.sin(np.pi * z / 3))
            found = [
                bursts,
                np.sin(2 * np.pi * z * (1 + np.arange(64) / 64)),
                pulse,
                wave + 0.7 * np.sin(6 * np.pi * z),
            ]
        x = np.stack(found, 1)[np.arange(600), self.true] + 0.3 * generator.normal(size=(600, 64))
        self.x = x.astype(np.float32)[:, None]
        wrong = generator.random(600) < rate
        self.y = np.where(wrong, (self.true + generator.integers(1, 4, 600)) % 4, self.true)

    def network(self) -> nn.Module:
        torch.manual_seed(1)
        net = nn.Sequential(
            *(nn.Conv1d(1, 16, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(16, 32, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten()),
            *(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 4)),
        )
        return trained(net, self.x, self.y, epochs=30, rate=3e-3)


@pytest.mark.parametrize(("seed", "kinds"), [(5, "waves"), (6, "waves"), (5, "others")])
def test_a_share_that_the_layers_contradict_is_said_with_its_range(summarized, caplog, capsys, seed, kinds):
    signals = Signals(seed, 0.0, kinds)
    summary = summarized(signals.network(), signals.x, signals.y)
    found = find_mislabeled(summary)
    right = found.noise_rate < 0.02
    assert found.contradicted is not right
    if right:
        return
    low, high = found.between
    assert low < 0.02
    assert low <= found.noise_rate <= high + 1e-6
    assert "is contradicted by the layers together" in caplog.text
    capsys.readouterr()
    for limit, code in ((1.0, 0), (0.001, 1)):
        assert cli.main(["find-mislabeled", str(summary.path), "--max-rate", str(limit)]) == code
        err = capsys.readouterr().err
        assert "is contradicted" in err
        assert "by single layers)" in err


@pytest.mark.parametrize(("rate", "spread"), [(0.1, 1.0), (0.2, 1.0), (0.1, 0.8), (0.0, 1.0), (0.0, 0.6)])
def test_labels_wrong_near_the_boundary_are_in_the_range_and_said(summarized, caplog, capsys, rate, spread):
    """Labels of the fraction nearest a boundary are those across it; of clean data whose classes overlap (spread .6)
    nothing tells that they are right."""
    generator = np.random.default_rng(0)
    true = generator.integers(0, 4, 2000)
    centres = spread * generator.normal(size=(4, 20))
    x = (centres[true] + generator.normal(size=(2000, 20))).astype(np.float32)
    distance = ((x[:, None] - centres) ** 2).sum(2)
    own = np.take_along_axis(distance, true[:, None], 1)[:, 0]
    np.put_along_axis(distance, true[:, None], np.inf, 1)
    y = true.copy()
    nearest = np.abs(distance.min(1) - own).argsort()[: int(rate * len(y))]
    y[nearest] = distance.argmin(1)[nearest]
    summary = summarized(trained(perceptron(20, 64, 32, 4), x, y, epochs=10, rate=2e-3), x, y)
    found = find_mislabeled(summary)
    low, high = found.between
    assert low < rate + 0.001
    assert rate < high
    assert high < 0.02 if (rate, spread) == (0.0, 1.0) else found.ambiguous
    assert ("labels that are wrong near class boundaries" in caplog.text) == ((rate, spread) != (0.0, 1.0))
    capsys.readouterr()
    assert cli.main(["find-mislabeled", str(summary.path), "--report", str(summary.path.with_suffix(".html"))]) == 0
    assert ("with those near class boundaries" in capsys.readouterr().err) == found.ambiguous
    assert ("with those near class boundaries" in summary.path.with_suffix(".html").read_text()) == found.ambiguous


def test_shares_that_are_about_right_are_not_contradicted(mlp_summary, convnet_summary):
    for summary in (mlp_summary, convnet_summary):
        found = find_mislabeled(summary)
        assert not found.contradicted
        assert 0.06 < found.noise_rate < 0.1


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_wrong_labels_of_classes_that_the_input_tells_apart_are_not_contradicted(summarized, rate):
    x, true = gaussian_classes(600, 10, 4)
    generator = np.random.default_rng(8)
    wrong = generator.random(600) < rate
    y = np.where(wrong, (true + generator.integers(1, 4, 600)) % 4, true)
    found = find_mislabeled(summarized(perceptron(10, 16, 16, 4), x, y))
    assert not found.contradicted
    assert found.noise_rate == pytest.approx(wrong.mean(), abs=0.04)
