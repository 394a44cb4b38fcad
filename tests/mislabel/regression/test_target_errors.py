"""Which target values are wrong: leave-one-out residuals, the two components, and what the command makes of them."""

from __future__ import annotations

import csv
import io
import json
import logging

import numpy as np
import pytest
import torch

from fsdtool.cli import main
from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.features import FeatureStore
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.regression import outlier_mixture as outliers_module
from fsdtool.mislabel.regression import target_residuals as module
from fsdtool.mislabel.regression import wrong_targets as kinds_module
from fsdtool.mislabel.regression.outlier_mixture import outliers
from fsdtool.mislabel.regression.spreads import spread, step_of
from fsdtool.mislabel.regression.target_errors import find_target_errors
from fsdtool.mislabel.regression.target_residuals import mean_over_scales, target_evidence
from fsdtool.mislabel.regression.wrong_targets import kinds
from tests.conftest import perceptron


def draw(n: int, d: int, outputs: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1.5, 1.5, size=(n, d)).astype(np.float32)
    y = np.sin(x @ generator.normal(size=(d, outputs))) + 0.1 * generator.normal(size=(n, outputs))
    return x, y.astype(np.float32)


def collect(layers: dict[str, np.ndarray], y: np.ndarray, outputs: np.ndarray | None = None) -> module.TargetEvidence:
    """The evidence of these layers and of a network with these outputs, by default one that says zero."""
    outputs = np.zeros_like(y) if outputs is None else outputs
    with FeatureStore(len(y), seed=0) as store:
        for name, x in layers.items():
            store.put(name, slice(0, len(y)), torch.from_numpy(x.astype(np.float32)))
        return target_evidence(store, torch.from_numpy(y), torch.from_numpy(outputs), seed=0)


# Residuals


def naive(phi: np.ndarray, y: np.ndarray, weights: np.ndarray, ridge: float) -> np.ndarray:
    """Residuals (N, O) under weighted ridge regressions, each fitted to all other examples."""
    design = np.column_stack([np.ones(len(phi)), phi])
    penalty = ridge * np.diag([0.0] + [1.0] * phi.shape[1])
    found = np.empty_like(y)
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        scaled = design[rest] * weights[rest, None]
        found[i] = y[i] - design[i] @ np.linalg.solve(scaled.T @ design[rest] + penalty, scaled.T @ y[rest])
    return found


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_leaving_an_example_out_in_closed_form_equals_fitting_again_without_it(monkeypatch, ridge):
    generator = np.random.default_rng(0)
    phi, y, weights = generator.normal(size=(40, 6)), generator.normal(size=(40, 2)), generator.uniform(0.1, 1, 40)
    monkeypatch.setattr(module, "RIDGES", torch.tensor([ridge], dtype=torch.float64))
    found = module._Ridge(*(torch.from_numpy(v) for v in (phi, y, weights)))
    np.testing.assert_allclose(found.residuals, naive(phi, y, weights, ridge), rtol=1e-8, atol=1e-9)


def test_the_unit_and_the_zero_of_targets_and_features_change_nothing():
    x, y = draw(150, 3)
    expected = collect({"layer": x}, y)
    moved = collect({"layer": x * np.float32([1e-3, 1.0, 1e4]) + 5}, 1000 * y + 300, np.full_like(y, 300))
    torch.testing.assert_close(moved.residuals / 1000, expected.residuals, rtol=1e-2, atol=1e-2)


def test_an_example_outside_the_fitted_sample_moves_no_other(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 60)
    x, y = draw(120, 3)
    rows = torch.linspace(0, 119, 60).round().long().tolist()
    left = next(i for i in range(120) if i not in rows)
    changed = y.copy()
    changed[left] += 0.5
    before, after = (collect({"a": x, "b": x[:, :2]}, v).residuals for v in (y, changed))
    difference = (after - before)[:, 0].numpy()
    assert difference[left] == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(np.delete(difference, left), 0, atol=1e-4)


def test_examples_outside_the_sample_are_predicted_as_well_as_those_in_it(monkeypatch):
    x, y = draw(600, 3)
    whole = collect({"layer": x}, y).residuals.abs().mean()
    monkeypatch.setattr(module, "SAMPLE", 400)
    assert collect({"layer": x}, y).residuals.abs().mean() < 1.5 * whole


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 50)
    x, y = draw(100, 3)
    whole = collect({"layer": x}, y)
    monkeypatch.setattr(module, "ROWS", 7)
    torch.testing.assert_close(collect({"layer": x}, y).residuals, whole.residuals)


def test_a_layer_that_predicts_badly_counts_little():
    x, y = draw(200, 3)
    noise = np.random.default_rng(1).normal(size=(200, 3))
    found = collect({"good": x, "noise": noise}, y)
    assert found.layers == ("good", "noise", "(outputs)")
    assert found.weights[0] > 0.9
    assert float(found.weights.sum()) == pytest.approx(1)


def test_the_mean_of_residuals_is_that_of_their_weights():
    residuals = torch.randn(50, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, weights = mean_over_scales(residuals)
    torch.testing.assert_close(found, sum(weights[i] * residuals[:, i] for i in range(3)))


def test_an_outlier_has_no_say_on_its_neighbours():
    x, y = draw(200, 2)
    x[1] = x[0]  # the same features, so a fit that trusted the wrong target would pass the blame on
    y[1] = y[0]
    wrong = y.copy()
    wrong[0] += 5
    found = collect({"layer": x}, wrong).residuals[:, 0]
    assert found[0] > 4
    assert abs(found[1]) < 1


@pytest.mark.parametrize("examples", [1, 2, 5])
@pytest.mark.parametrize("spreading", [0.0, 1.0])
def test_few_examples_and_constant_targets_give_finite_residuals(examples, spreading):
    x, y = draw(examples, 3)
    found = collect({"layer": x, "dead": np.ones((examples, 2))}, spreading * y)
    assert torch.isfinite(found.residuals).all()


# What the network says itself


def corrupt(n: int = 400) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Layers of which the input tells targets roughly; true and given targets (n, 1), one in 20 wrong, and which."""
    x, truth = draw(n, 3)
    given, wrong = truth.copy(), np.zeros(n, bool)
    wrong[np.random.default_rng(1).permutation(n)[: n // 20]] = True
    given[wrong] += np.where(given[wrong] > 0, -1.5, 1.5).astype(np.float32)
    rough = x + 0.4 * np.random.default_rng(2).normal(size=x.shape)
    return {"(input)": rough, "hidden": x + 0.1 * (rough - x)}, truth, given, wrong


def test_a_network_that_knows_more_than_its_layers_and_has_memorised_nothing_decides():
    layers, truth, given, wrong = corrupt()
    found = collect(layers, given, truth)
    assert found.weights[2] > 0.8
    residuals = found.residuals[:, 0].abs()
    assert residuals[wrong].min() > residuals[~wrong].max()


@pytest.mark.parametrize("learned", [1.0, 0.995])
def test_a_network_that_has_memorised_its_targets_has_no_say(learned):
    layers, truth, given, wrong = corrupt()
    own = (truth + learned * (given - truth)).astype(np.float32) if learned < 1 else given
    noise = np.random.default_rng(3).normal(size=given.shape).astype(np.float32)
    found = collect(layers, given, own + np.float32(0.003) * noise)
    assert found.weights[2] < 0.05
    assert float(found.residuals[:, 0].abs()[wrong].mean()) > 1


def test_features_that_have_memorised_the_targets_have_no_say():
    layers, _, given, wrong = corrupt()
    late = np.column_stack(
        [given, layers["hidden"]]
    )  # a regression on them leaves nothing over, with or without the example
    found = collect(layers | {"late": late}, given)
    assert found.weights[2] < 0.05
    assert float(found.residuals[:, 0].abs()[wrong].mean()) > 1


def test_what_the_network_has_learned_of_a_wrong_value_is_given_back():
    layers, truth, given, wrong = corrupt()
    noise = np.random.default_rng(3).normal(size=given.shape).astype(np.float32)
    half = collect(layers, given, 0.5 * (truth + given) + np.float32(0.02) * noise)
    assert half.weights[2] > 0.5
    np.testing.assert_allclose(half.residuals[:, 0].numpy()[wrong], (given - truth)[wrong, 0], rtol=0.25)


def test_what_each_residual_shows_of_a_wrong_value_is_recovered():
    generator = torch.Generator().manual_seed(0)
    noise, *errors = torch.randn(5, 20_000, 2, generator=generator, dtype=torch.float64)
    truth = torch.tensor([[1.0, 1.0, 0.6, 0.1], [1.0, 1.0, 0.9, 0.0]], dtype=torch.float64)
    parts = [0.3 * errors[0], *(0.2 * error for error in errors[1:])]
    residuals = torch.stack([truth[:, i] * (noise + part) for i, part in enumerate(parts)], 1)
    torch.testing.assert_close(module.share_shown(residuals), truth, atol=0.03, rtol=0)
    residuals[0] = torch.tensor([1e6, -1e6, 1e6, 1e6])[:, None]  # the decimal point has slipped
    torch.testing.assert_close(module.share_shown(residuals), truth, atol=0.03, rtol=0)


def test_an_input_that_predicts_worse_than_the_hidden_layers_does_not_make_them_look_memorised():
    generator = torch.Generator().manual_seed(0)
    noise, error = torch.randn(2, 20_000, 1, generator=generator, dtype=torch.float64)
    residuals = torch.stack([noise + error, noise, noise, 0.5 * noise], 1)
    torch.testing.assert_close(
        module.share_shown(residuals)[0], torch.tensor([1, 1, 1, 0.5]).double(), atol=0.03, rtol=0
    )


def test_the_sum_of_residuals_has_the_least_variance_of_all_sums_that_show_a_wrong_value_in_full():
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    moments = mixed @ mixed.T
    found = module.least_variance(moments)
    steps = np.arange(0, 1.0001, 0.01)
    grid = [np.array([a, b, 1 - a - b]) for a in steps for b in steps if a + b <= 1]
    penalized = moments.numpy() + module.ALIKE * np.diag(moments.numpy().diagonal())
    least = min(w @ penalized @ w for w in grid)
    assert float(found.sum()) == pytest.approx(1)
    assert float(found.min()) >= 0
    assert found.numpy() @ penalized @ found.numpy() <= least + 1e-9


def test_examples_outside_the_sample_have_the_network_s_say_too(monkeypatch):
    layers, truth, given, wrong = corrupt()
    monkeypatch.setattr(module, "SAMPLE", 300)
    residuals = collect(layers, given, truth).residuals[:, 0].abs()
    assert residuals[wrong].min() > residuals[~wrong].max()


# Right values and wrong ones


def mixture(
    kind: str, n: int = 2000, rate: float = 0.05, scale: float = 0.2, tail: float = 5, seed: int = 0, grades: float = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (n,), their residuals and which are wrong.

    Right targets lie `scale` off predictions of deviation 1 as a Student t of `tail` degrees of freedom; wrong ones are
    those of other examples, any in their range, or far off.  grades: what the targets are rounded to.
    """
    generator = np.random.default_rng(seed)
    prediction = generator.normal(size=n)
    target = prediction + scale * (generator.standard_t(tail, n) if tail else generator.normal(size=n))
    wrong = generator.permutation(n) < round(rate * n)
    low, high = np.quantile(target, [0.005, 0.995])
    target = {
        "other": np.where(wrong, generator.permutation(target), target),
        "any": np.where(wrong, generator.uniform(low, high, n), target),
        "off": np.where(wrong, prediction + 2**0.5 * generator.normal(size=n), target),
    }[kind]
    target = (target / grades).round() * grades if grades else target
    return target, target - prediction, wrong


@pytest.mark.parametrize("kind", ["other", "any", "off"])
@pytest.mark.parametrize(("rate", "tail"), [(0.05, 4), (0.05, 0), (0.02, 5), (0.2, 5)])
def test_the_share_of_wrong_values_is_recovered_whatever_they_are(kind, rate, tail):
    target, residual, wrong = mixture(kind, 10_000, rate, tail=tail)
    found = outliers(target, residual)
    assert found.share == pytest.approx(wrong.mean(), rel=0.35)
    assert float(found.probability.mean()) == pytest.approx(found.share, rel=0.05)
    assert float((found.probability[wrong] > 0.5).mean()) > 0.4
    assert float(wrong[found.probability > 0.5].mean()) > 0.7


HARD = {
    "few": {"n": 60},
    "close": {"scale": 0.7},
    "heavy": {"tail": 3},
    "light": {"tail": 0},
    "grades": {"grades": 0.5, "scale": 0.4},
    "coarse": {"grades": 1.0, "scale": 0.5},
    "none": {"rate": 0.0},
    "many": {"rate": 0.3},
}


@pytest.mark.parametrize("kind", ["other", "any", "off"])
@pytest.mark.parametrize("case", HARD)
def test_the_range_holds_the_share(kind, case):
    held = []
    for seed in range(5):
        target, residual, wrong = mixture(kind, **{"n": 800} | HARD[case], seed=seed)
        found = outliers(target, residual)
        low, high = found.between
        assert 0 <= low <= found.share <= high <= 0.5
        held.append(low - 1e-9 <= wrong.mean() <= high)
    assert np.mean(held) == 1


@pytest.mark.parametrize("kind", ["other", "any", "off"])
def test_the_range_is_narrow_where_wrong_values_are_many_and_lie_far_off(kind):
    target, residual, _ = mixture(kind, 5000, 0.1, scale=0.03)
    low, high = outliers(target, residual).between
    assert 0.08 < low < 0.1 < high < 0.12


def test_the_range_is_wide_where_wrong_values_lie_no_farther_off():
    target, residual, _ = mixture("other", 400, 0.05, scale=1.0)
    low, high = outliers(target, residual).between
    assert low == 0
    assert high > 0.1


@pytest.mark.parametrize("tail", [1, 2])
def test_the_range_of_very_heavy_tails_without_wrong_values_begins_at_zero(tail):
    target, residual, _ = mixture("any", 1000, 0.0, scale=0.1, tail=tail)
    assert outliers(target, residual).between[0] == 0


def test_the_range_begins_at_zero_where_most_residuals_are_zero():
    generator = np.random.default_rng(0)
    target = np.where(generator.random(500) < 0.6, 0, generator.exponential(size=500))
    assert outliers(target, target).between[0] == 0


@pytest.mark.parametrize("grades", [0.5, 1.0])
def test_rounded_targets_are_no_wrong_ones(grades):
    clean = mixture("any", 3000, 0.0, scale=0.4, tail=0, grades=grades)
    assert outliers(*clean[:2]).share < 0.02
    target, residual, wrong = mixture("any", 3000, 0.1, scale=0.4, tail=0, grades=grades)
    assert outliers(target, residual).share == pytest.approx(wrong.mean(), rel=0.35)


def test_values_without_wrong_ones_are_hardly_ever_flagged():
    target, residual, _ = mixture("any", 5000, 0.0)
    found = outliers(target, residual)
    assert found.share < 0.005
    assert float((found.probability > 0.5).mean()) < 0.002


def uneven(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets, residuals, which are wrong, and the scale of right residuals, fivefold from one end to the other."""
    generator = np.random.default_rng(seed)
    prediction = generator.uniform(size=n)
    scale = 0.03 * 5**prediction
    wrong = generator.random(n) < 0.05
    target = np.where(wrong, generator.uniform(size=n), prediction + scale * generator.standard_t(5, n))
    return target, target - prediction, wrong, scale


def test_a_scale_that_changes_with_the_prediction_is_found_and_ranks_better():
    target, residual, wrong, scale = uneven(4000, 0)
    found = outliers(target, residual)
    np.testing.assert_allclose(found.scale, scale, rtol=0.3)
    assert found.share == pytest.approx(wrong.mean(), rel=0.25)
    count = wrong.sum()
    hits = [wrong[np.argsort(-by)[:count]].sum() for by in (found.distance, np.abs(residual))]
    assert hits[0] > 1.05 * hits[1]


def test_unit_and_zero_of_targets_change_nothing_about_outliers():
    target, residual, _ = mixture("other", 500, grades=0.25)
    found, again = outliers(target, residual), outliers(1000 * target + 300, 1000 * residual)
    np.testing.assert_allclose(again.probability, found.probability, atol=1e-5)
    np.testing.assert_allclose(again.scale, 1000 * found.scale, rtol=1e-5)
    np.testing.assert_allclose(again.between, found.between, atol=1e-5)


def test_a_sample_tells_the_components_of_all(monkeypatch):
    target, residual, _, _ = uneven(4000, 1)
    whole = outliers(target, residual)
    monkeypatch.setattr(outliers_module, "SAMPLE", 2000)
    found = outliers(target, residual)
    assert found.share == pytest.approx(whole.share, rel=0.25)
    np.testing.assert_allclose(found.scale, whole.scale, rtol=0.15)


@pytest.mark.parametrize(("step", "nu"), [(0.0, 4.0), (0.0, np.inf), (1.0, 4.0), (1.0, np.inf)])
def test_the_density_of_right_residuals_and_its_slope_are_those_of_sums(step, nu):
    """Over a grid of the step the rounded density adds up to one; the slope is that of differences."""
    points = np.arange(-400.0, 401.0) if step else np.linspace(-400, 400, 400_001)
    right = outliers_module._Right(points, np.ones((len(points), 1)), step, base=1.0)
    density, slope = right.density(np.full(len(points), 1.5), nu)
    assert float(density.sum()) * (points[1] - points[0]) == pytest.approx(1, rel=1e-3)
    ahead = right.density(np.full(len(points), 1.5 * np.exp(1e-6)), nu)[0]
    near = np.abs(points) < 10
    np.testing.assert_allclose(slope[near], np.log(ahead / density)[near] / 1e-6, atol=1e-4)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_the_densities_of_wrong_targets_add_up_to_one(monkeypatch, step):
    generator = np.random.default_rng(0)
    target = generator.normal(size=40_000)
    target = (target / step).round() * step if step else target
    found = kinds(target, 0.1 * generator.normal(size=len(target)), step)
    values, first = np.unique(target, return_index=True)
    middle = (values >= np.quantile(target, 0.005)) & (values <= np.quantile(target, 0.995))
    for name in ("other", "any"):
        density = found[name][first[middle]]
        total = density.sum() * step if step else np.trapezoid(density, values[middle])
        assert float(total) == pytest.approx(1, abs=0.05)
    monkeypatch.setattr(kinds_module, "spread", lambda values: 1.0)
    monkeypatch.setattr(kinds_module, "robust_deviation", lambda values: 1.0)
    residual = np.linspace(-20, 20, 4001)
    for name in ("off", "farther"):
        assert float(kinds(np.zeros(4001), residual, 0.0)[name].sum() * 0.01) == pytest.approx(1, abs=0.02)


def test_values_made_to_rise_are_the_nearest_that_do():
    """By the formula of the greatest of least means (Robertson, Wright, Dykstra 1988)."""
    generator = np.random.default_rng(0)
    values, by = generator.uniform(size=30), generator.permutation(30).astype(float)
    ordered = values[by.argsort()]
    naive = [max(min(ordered[i : j + 1].mean() for j in range(k, 30)) for i in range(k + 1)) for k in range(30)]
    found = outliers_module._rising(values, by)
    np.testing.assert_allclose(found[by.argsort()], naive)
    assert float(found.sum()) == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("steps", [300, 2])
def test_a_share_that_has_not_settled_is_told(monkeypatch, steps):
    monkeypatch.setattr(outliers_module, "STEPS", steps)
    assert outliers(*mixture("any")[:2]).settled is (steps == 300)


@pytest.mark.parametrize("steps", [300, 2])
def test_a_share_that_has_not_settled_is_said(wrong, monkeypatch, caplog, steps):
    monkeypatch.setattr(outliers_module, "STEPS", steps)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        find_target_errors(wrong[0])
    assert caplog.text.count("the share of wrong targets had not settled") == (steps == 2)


@pytest.mark.parametrize("kind", ["other", "any", "off"])
def test_what_lies_further_off_is_no_less_suspicious(kind):
    target, residual, _ = mixture(kind, 500, tail=2)
    found = outliers(target, residual)
    probability = found.probability[found.distance.argsort(kind="stable")]
    assert (np.diff(probability) >= -1e-12).all()
    assert 0 <= float(probability.min()) <= float(probability.max()) <= 1


def test_one_slip_of_the_decimal_point_is_found_and_changes_no_other():
    target, residual, _ = mixture("any", 1000)
    before = outliers(target, residual)
    slipped, off = target.copy(), residual.copy()
    slipped[3] += 1e6
    off[3] += 1e6
    found = outliers(slipped, off)
    assert found.probability[3] > 0.9
    rest = np.arange(1000) != 3
    np.testing.assert_allclose(found.probability[rest], before.probability[rest], atol=0.1)
    assert found.share == pytest.approx(before.share, rel=0.2)
    assert spread(slipped) == pytest.approx(spread(target), rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_few_or_constant_targets_give_numbers(n, moved):
    target, residual = np.ones(n), np.zeros(n)
    target[0] += moved
    residual[0] += moved
    found = outliers(target, residual)
    for values in (found.probability, found.scale, found.distance, found.between, found.share):
        assert np.isfinite(values).all()
    assert (found.scale > 0).all()


def test_the_step_of_values_is_that_of_those_that_occur_again():
    grades = np.array([3.0, 3, 4, 4, 4, 5, 5, 7, 7])
    assert step_of(grades) == 1
    assert step_of(np.append(grades, [3.3, 4.71, 6.2])) == 1
    assert step_of(np.random.default_rng(0).normal(size=50)) == 0
    assert step_of(np.ones(5)) == 0


# The command


def rows_of(capsys, *arguments: object) -> list[dict[str, object]]:
    capsys.readouterr()
    assert main([str(a) for a in ("find-mislabeled", *arguments, "--format", "jsonl", "-q")]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def wrong(summarized):
    """A summary of 400 examples with two targets each; the second output of 20 of them is wrong."""
    x, y = draw(400, 3, outputs=2)
    chosen = np.random.default_rng(1).permutation(400)[:20]
    y[chosen, 1] += np.where(y[chosen, 1] > 0, -1.2, 1.2).astype(np.float32)
    return summarized(perceptron(3, 16, 2), x, y, task="regression"), set(chosen.tolist()), y


def test_wrong_targets_are_flagged_with_their_output_and_what_they_should_be(wrong, capsys):
    summary, chosen, y = wrong
    found = rows_of(capsys, summary.path)
    assert list(found[0]) == ["id", "output", "given_target", "suggested_target", "standard_error", "score", "rank"]
    flagged = {row["id"] for row in found}
    assert len(flagged & chosen) >= 16
    assert len(flagged - chosen) <= 4
    first = found[0]
    assert (first["output"], first["rank"]) == (1, 1)
    assert first["given_target"] == pytest.approx(float(y[first["id"], 1]), rel=1e-5)
    assert abs(first["suggested_target"] - first["given_target"]) > 0.6
    assert 0 < first["standard_error"] < 0.5


def test_the_ranking_has_every_example_once_in_the_order_of_the_scores(wrong, capsys):
    found = rows_of(capsys, wrong[0].path, "--all")
    assert sorted(row["id"] for row in found) == list(range(400))
    assert [row["rank"] for row in found] == list(range(1, 401))
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert rows_of(capsys, wrong[0].path, "--top", 3) == found[:3]


def test_right_targets_are_hardly_ever_flagged(summarized):
    x, y = draw(500, 3)
    found = find_target_errors(summarized(perceptron(3, 16, 1), x, y, task="regression"))
    assert found.flagged <= 5
    assert found.noise_rate < 0.01


def test_thresholds_limits_and_words_are_those_of_targets(wrong, capsys, tmp_path):
    path = str(wrong[0].path)
    flagged = len(rows_of(capsys, path))
    assert main(["find-mislabeled", path, "--max-flagged", "2"]) == 1
    err = capsys.readouterr().err
    assert f"{flagged} of 400 targets are flagged (score above 0.5)" in err
    low, high = find_target_errors(wrong[0]).between
    assert f"({low:.1%} to {high:.1%} with other tails)" in err.split("estimated share of wrong targets: ")[1]
    assert f"warning: {flagged} targets are flagged, more than --max-flagged 2" in err
    assert main(["find-mislabeled", path, "--max-rate", "0.5", "-q"]) == 0
    (tmp_path / "ids").write_text("3\n4\n")
    assert {row["id"] for row in rows_of(capsys, path, "--all", "--ids", tmp_path / "ids")} == {3, 4}
    main(["find-mislabeled", path, "--top", "1", "--format", "github", "-q"])
    assert capsys.readouterr().out.startswith("::warning title=fsdtool find-mislabeled::the target ")


@pytest.mark.parametrize("noise", [0.05, 2.0])
def test_a_share_that_cannot_be_told_is_said_with_its_range(summarized, capsys, tmp_path, noise):
    generator = np.random.default_rng(0)
    x, y = draw(400, 3)
    y += noise * generator.normal(size=y.shape).astype(np.float32)
    y[:20] = generator.permutation(y)[:20]
    summary = summarized(perceptron(3, 16, 1), x, y, task="regression")
    found = find_target_errors(summary)
    low, high = found.between
    assert low <= found.noise_rate <= high
    assert low <= 0.05 <= high
    assert found.contradicted is (high - low > 0.1) is (noise > 1)
    capsys.readouterr()
    assert main(["find-mislabeled", str(summary.path), "--report", f"{tmp_path}/page.html", "-q"]) == 0
    said = f"cannot be told: {found.noise_rate:.1%} is the likeliest, but it may be {low:.1%} to {high:.1%}, since"
    assert capsys.readouterr().err.count(said) == found.contradicted
    text = (tmp_path / "page.html").read_text()
    assert f"; {low:.1%} to {high:.1%} with other tails" in text
    assert ("The share of wrong targets cannot be told" in text) is found.contradicted


def test_the_standard_error_is_that_of_the_example(wrong):
    summary = wrong[0]
    found = find_target_errors(summary, everything=True)
    target, residual = summary.records.read("target"), summary.records.read("residual")
    scales = np.stack([outliers(target[:, o], residual[:, o]).scale for o in range(2)], 1)
    rows = {row["id"]: row for row in found.rows()}
    for i in (0, 17, 399):
        assert rows[i]["standard_error"] == pytest.approx(scales[i, rows[i]["output"]])


def test_the_page_of_a_regression_leaves_out_what_has_no_meaning(wrong, capsys, tmp_path):
    assert main(["find-mislabeled", str(wrong[0].path), "--report", f"{tmp_path}/page.html", "-q"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "Suspicious targets in" in text
    assert "Suggested target" in text
    assert "(output 1)" in text
    assert "Standard error" in text
    assert "Wrong labels by class" not in text
    assert "onfidence<" not in text


def test_a_single_output_has_no_column_of_its_own_and_can_be_corrected(summarized, capsys, tmp_path):
    x, y = draw(300, 3)
    y[7] += 4
    summary = summarized(perceptron(3, 16, 1), x, y, task="regression")
    main(["find-mislabeled", str(summary.path), "--format", "csv", "-q"])
    out = capsys.readouterr().out
    row = next(csv.DictReader(io.StringIO(out)))
    assert out.startswith("id,given_target,suggested_target,standard_error,score,rank\n")
    assert row["id"] == "7"
    (tmp_path / "fixes.csv").write_text(out)
    np.savez(tmp_path / "again.npz", x=x, y=y)
    torch.save(perceptron(3, 16, 1).state_dict(), tmp_path / "n.pt")
    command = f"summarize --model mlp:relu --checkpoint {tmp_path}/n.pt --data {tmp_path}/again.npz --task regression"
    assert main([*command.split(), "--labels", f"{tmp_path}/fixes.csv", "-o", f"{tmp_path}/again.h5", "-q"]) == 0
    assert "7" not in {row["id"] for row in rows_of(capsys, tmp_path / "again.h5")}


def test_records_without_residuals_are_refused_in_one_line(wrong, edited, capsys):
    def forget(file):
        del file["records/residual"]

    path = edited(wrong[0].path, forget)
    assert main(["find-mislabeled", str(path)]) == 2
    assert f"'{path}': '/records/residual' is missing; write the summary again" in capsys.readouterr().err


@pytest.mark.parametrize("weights", [np.ones(5), np.full(2, np.nan), np.array([b"a", b"b"])])
def test_weights_that_are_none_are_refused_in_one_line(wrong, edited, capsys, weights):
    def change(file):
        file["records/residual"].attrs["weights"] = weights

    assert main(["find-mislabeled", str(edited(wrong[0].path, change))]) == 2
    assert "the attributes of '/records/residual': 'weights' is not a list of 3 numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--by-layer",), "is of a regression, and --by-layer is of class labels; leave it out"),
        (("--noise-matrix", "n.csv"), "is of a regression, and --noise-matrix is of class labels; leave it out"),
        (("--data", "again.npz"), "is of a regression, and only class labels can be judged; give a summary of"),
    ],
)
def test_what_has_a_meaning_for_labels_alone_is_refused_in_one_line(
    wrong, capsys, monkeypatch, tmp_path, more, message
):
    monkeypatch.chdir(tmp_path)
    np.savez("again.npz", x=np.zeros((3, 3), np.float32), y=np.zeros((3, 2), np.float32))
    capsys.readouterr()
    assert main(["find-mislabeled", str(wrong[0].path), *more, "-q"]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]  # the network is not trained
    assert (out, len(errors)) == ("", 1)
    assert message in errors[0]
    assert not (tmp_path / "n.csv").exists()


def test_a_summary_without_records_is_refused(summarized):
    x, y = draw(50, 3)
    summary = summarized(perceptron(3, 8, 1), x, y, task="regression", records=False)
    with pytest.raises(FsdtoolError, match="written with `records=False`; write it again with records"):
        find_target_errors(summary)


def test_labels_are_not_looked_for_in_a_regression(wrong):
    with pytest.raises(FsdtoolError, match="is of a regression, and only class labels can be judged"):
        find_mislabeled(wrong[0])
