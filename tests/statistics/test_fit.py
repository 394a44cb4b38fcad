"""The fit of a network to data: its numbers by hand, whom it doubts and whom not, and who says it."""

from __future__ import annotations

import dataclasses
import logging

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fsdtool import cli
from fsdtool.data.formats.load import load_dataset
from fsdtool.influence.scores import influence
from fsdtool.mislabel.new_labels import score_new_labels
from fsdtool.statistics.fit import FitSums, doubt, doubt_new, training_fit
from fsdtool.summary.inspection import inspect_rows
from fsdtool.summary.reader import load
from fsdtool.tasks.task import task_of
from tests.conftest import gaussian_classes, perceptron


def trained(x, y, *, regression: bool = False, steps: int = 200) -> nn.Sequential:
    """A small network trained on all of x (n, d) and y."""
    net = perceptron(x.shape[1], 24, y.shape[1] if regression else int(y.max()) + 1)
    optimizer, x, y = torch.optim.Adam(net.parameters(), 0.02), torch.as_tensor(x), torch.as_tensor(y)
    for _ in range(steps):
        loss = (net(x) - y).square().mean() if regression else nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def classified(outputs, labels):
    """The training fit of outputs (n, O)."""
    outputs, labels = np.asarray(outputs, np.float32), np.asarray(labels)
    losses = nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(labels), reduction="none")
    return training_fit(task_of("classification"), losses.numpy(), outputs, labels)


def honest(labels: np.ndarray, classes: int, knowledge: float, seed: int = 0) -> np.ndarray:
    """Outputs (n, classes) that are the true log-probabilities of labels drawn given z: calibrated, and weak."""
    generator = np.random.default_rng(seed)
    frequency = np.bincount(labels, minlength=classes) / len(labels)
    z = knowledge * np.eye(classes)[labels] + generator.normal(size=(len(labels), classes))
    return np.log(frequency) + knowledge * z


def test_the_numbers_of_a_classification_are_those_of_a_loop():
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(size=(50, 3)).astype(np.float32), generator.integers(0, 3, 50)
    fit = classified(outputs, labels)
    frequency = [sum(label == c for label in labels) / 50 for c in range(3)]
    losses, right, constant = [], [], []
    for f, label in zip(outputs.astype(float), labels, strict=True):
        losses.append(np.log(np.exp(f).sum()) - f[label])
        right.append(f.argmax() == label)
        constant.append(-np.log(frequency[label]))
    assert fit.mean_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert fit.accuracy == pytest.approx(np.mean(right))
    assert fit.baseline_loss == pytest.approx(-sum(p * np.log(p) for p in frequency))
    assert fit.baseline_accuracy == pytest.approx(max(frequency))
    assert fit.loss_error == pytest.approx(np.std(np.array(losses) - constant) / 7, rel=1e-5)


def test_the_numbers_of_a_regression_are_those_of_a_loop():
    generator = np.random.default_rng(1)
    targets = generator.normal(size=(40, 2)) * [1, 10]
    outputs = targets + generator.normal(size=(40, 2))
    fit = training_fit(task_of("regression"), 0.5 * ((outputs - targets) ** 2).sum(1), outputs, targets)
    for o in range(2):
        squared = sum((outputs[i, o] - targets[i, o]) ** 2 for i in range(40))
        around = sum((targets[i, o] - targets[:, o].mean()) ** 2 for i in range(40))
        assert fit.r_squared[o] == pytest.approx(1 - squared / around)
    assert fit.baseline_loss == pytest.approx(0.5 * targets.var(0).sum())


def test_batches_do_not_change_the_fit():
    generator = np.random.default_rng(2)
    outputs, labels, losses = generator.normal(size=(31, 4)), generator.integers(0, 4, 31), generator.random(31)
    whole, parts = (FitSums(task_of("classification"), np.full(4, 0.25)) for _ in range(2))
    whole.update(losses, outputs, labels)
    for rows in np.split(np.arange(31), [3, 4, 20]):
        parts.update(losses[rows], outputs[rows], labels[rows])
    for one, other in zip(dataclasses.astuple(whole.finalize()), dataclasses.astuple(parts.finalize()), strict=True):
        assert one == other or one == pytest.approx(other)


def same(found, expected) -> bool:
    pairs = zip(dataclasses.astuple(found), dataclasses.astuple(expected), strict=True)
    return all(one == other or one == pytest.approx(other) for one, other in pairs)


def test_parts_of_the_data_add_up_in_any_order_and_come_back_from_their_state():
    generator = np.random.default_rng(2)
    outputs, labels, losses = generator.normal(size=(31, 4)), generator.integers(0, 4, 31), 1e3 + generator.random(31)

    def over(rows: np.ndarray) -> FitSums:
        found = FitSums(task_of("classification"), np.full(4, 0.25))
        if len(rows):
            found.update(losses[rows], outputs[rows], labels[rows])
        return found

    whole = over(np.arange(31))
    parts = [over(rows) for rows in np.split(np.arange(31), [3, 3, 20])]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        total = over(np.arange(0))
        for i in order:
            total.merge(parts[i])
        assert same(total.finalize(), whole.finalize())
        assert same(over(np.arange(0)).from_state(total.state()).finalize(), whole.finalize())


@pytest.mark.parametrize("knowledge", [0.4, 1.0, 3.0])
def test_a_weak_and_honest_network_is_not_doubted(knowledge):
    labels = np.random.default_rng(3).integers(0, 4, 2000)
    assert doubt(classified(honest(labels, 4, knowledge), labels)) is None


def test_unequal_classes_are_not_doubted_where_the_accuracy_is_that_of_the_largest():
    labels = (np.random.default_rng(4).random(5000) < 0.02).astype(np.int64)
    fit = classified(honest(labels, 2, 0.9), labels)
    assert abs(fit.accuracy - fit.baseline_accuracy) < 0.005
    assert doubt(fit) is None


def test_outputs_that_know_nothing_are_doubted():
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 3, 300)
    assert "neither accuracy nor mean loss" in doubt(classified(generator.normal(size=(300, 3)), labels))
    assert "neither accuracy nor mean loss" in doubt(classified(np.zeros((300, 3)), labels))


def test_few_examples_and_a_single_class_are_not_doubted():
    generator = np.random.default_rng(6)
    assert doubt(classified(generator.normal(size=(10, 3)), generator.integers(0, 3, 10))) is None
    assert doubt(classified(generator.normal(size=(100, 3)), np.ones(100, np.int64))) is None


@pytest.mark.parametrize(("factor", "found"), [(100, "far too sure"), (0.01, "far too unsure")])
def test_a_scale_that_is_not_that_of_training_is_named(factor, found):
    labels = np.random.default_rng(7).integers(0, 4, 1000)
    outputs = honest(labels, 4, 2.0)
    assert doubt(classified(outputs, labels)) is None
    fit = classified(factor * outputs, labels)
    assert found in doubt(fit)
    assert fit.accuracy_is_good
    assert fit.output_factor == pytest.approx(1 / factor, rel=0.3)
    assert fit.refitted_loss == pytest.approx(classified(outputs, labels).mean_loss, rel=0.02)


def test_probabilities_in_place_of_logits_are_doubted():
    labels = np.random.default_rng(8).integers(0, 3, 500)
    logits = torch.from_numpy(honest(labels, 3, 4.0))
    assert "logits, not probabilities" in doubt(classified(torch.sigmoid(logits).numpy(), labels))
    assert "logits, not probabilities" in doubt(classified(torch.softmax(logits, 1).numpy(), labels))


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 0], [4, 3, 2, 1, 0]])
def test_another_order_of_the_labels_is_named(order):
    labels = np.random.default_rng(9).integers(0, 5, 600)
    fit = classified(honest(labels, 5, 3.0), np.array(order)[labels])
    assert "in another order than the labels" in doubt(fit)
    assert fit.reordered_accuracy == pytest.approx(classified(honest(labels, 5, 3.0), labels).accuracy)


def test_random_outputs_have_no_order_to_be_found():
    generator = np.random.default_rng(10)
    for classes, examples in ((2, 20), (10, 30), (50, 400)):
        fit = classified(generator.normal(size=(examples, classes)), generator.integers(0, classes, examples))
        assert fit.reordered_accuracy < fit.accuracy + 0.3


def regressed(outputs, targets):
    return training_fit(task_of("regression"), 0.5 * ((outputs - targets) ** 2).sum(1), outputs, targets)


def test_targets_in_other_units_are_named():
    generator = np.random.default_rng(11)
    targets = 50 + 20 * generator.normal(size=(300, 1))
    outputs = (targets - 50) / 20 + 0.3 * generator.normal(size=(300, 1))
    assert "not in their units" in doubt(regressed(outputs, targets))
    assert doubt(regressed(50 + 20 * outputs, targets)) is None
    assert "R^2 and mean loss are not better" in doubt(regressed(generator.normal(size=(300, 1)), targets))


def test_heavy_tails_do_not_make_a_good_regression_doubtful():
    generator = np.random.default_rng(12)
    targets = generator.standard_t(1.5, size=(400, 1))
    assert doubt(regressed(0.7 * targets + 0.1 * generator.normal(size=(400, 1)), targets)) is None


def test_new_data_that_a_sure_network_gets_partly_wrong_is_no_fault():
    generator = np.random.default_rng(13)
    labels = generator.integers(0, 4, 500)
    outputs = 20 * np.eye(4)[labels] + generator.normal(size=(500, 4))
    training = classified(outputs, labels)
    for share, fault in ((0.3, None), (0.9, "does not know the new data")):
        given = np.where(generator.random(500) < share, (labels + 1) % 4, labels)
        sums = FitSums(task_of("classification"), np.array(training.constant))
        losses = nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(given), reduction="none")
        sums.update(losses.numpy(), outputs, given)
        found = doubt_new(sums.finalize(), training, "new")
        assert sums.finalize().mean_loss > training.baseline_loss
        assert (found is None) if fault is None else fault in found


def test_the_file_holds_the_fit_and_every_command_repeats_the_doubt(summarized, capsys):
    x, y = gaussian_classes(200, 6, 3)
    net = trained(x, y)
    good = summarized(net, x, y, name="good.h5")
    with h5py.File(good.path) as file:
        held = dict(file["calibration/fit"].attrs)
        np.testing.assert_allclose(file["calibration/fit/constant"], np.bincount(y) / 200)
        assert held["accuracy"] == pytest.approx((file["records/prediction"][:] == y).mean())
        assert held["mean_loss"] == pytest.approx(file["records/loss"][:].mean(), rel=1e-5)
        assert held["description"]
    assert "accuracy 0." in dict(inspect_rows(good.path)[0])["fit"]
    bad = summarized(net, 100 * x, y, name="bad.h5")
    torch.save(net.state_dict(), bad.path.with_suffix(".pt"))
    commands = (
        ["find-mislabeled", "--top", "1"],
        ["influence", "--self", "--top", "1"],
        ["influence", "--queries", good.identity.data_spec, "--mean", "--top", "1"],
        ["fsd", "--checkpoint", str(bad.path.with_suffix(".pt")), "--samples", "64"],
    )
    for command, *rest in commands:
        for summary, doubted in ((good, False), (bad, True)):
            capsys.readouterr()
            assert cli.main([command, str(summary.path), *rest, "-q"]) == 0
            assert ("the mean loss is worse than that of the class frequencies" in capsys.readouterr().err) is doubted


def test_new_data_and_queries_in_another_scale_are_named(summarized, arrays, caplog):
    x, y = gaussian_classes(200, 6, 3)
    summary = summarized(trained(x, y), x, y)
    for factor, doubted in ((1, False), (100, True)):
        data = load_dataset(str(arrays(factor * x[:100], y[:100], f"new{factor}.npz")))
        for ask in (
            lambda data=data: score_new_labels(summary, data),
            lambda data=data: influence(summary, data, mean=True),
        ):
            caplog.clear()
            with caplog.at_level(logging.INFO, "fsdtool"):
                ask()
            assert any("fit to the " in line and "accuracy" in line for line in caplog.messages)
            assert any("times as large as on the training data" in line for line in caplog.messages) is doubted


def test_a_regression_keeps_r_squared_of_each_output(summarized):
    generator = np.random.default_rng(14)
    x = generator.normal(size=(200, 5)).astype(np.float32)
    y = (x @ generator.normal(size=(5, 2))).astype(np.float32)
    summary = summarized(trained(x, y, regression=True), x, y, task="regression")
    assert len(summary.fit.r_squared) == 2
    assert min(summary.fit.r_squared) > 0.9


def test_a_file_without_a_fit_is_read(summarized, edited):
    x, y = gaussian_classes(60, 4, 3)
    path = edited(summarized(perceptron(4, 8, 3), x, y).path, lambda file: file.pop("calibration"))
    assert load(path).fit is None
    assert cli.main(["find-mislabeled", str(path), "-q"]) == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda group: group.attrs.__delitem__("accuracy"),
        lambda group: group.attrs.__setitem__("mean_loss", np.nan),
        lambda group: group.__delitem__("constant"),
    ],
)
def test_a_damaged_fit_is_one_line(summarized, edited, capsys, spoil):
    x, y = gaussian_classes(60, 4, 3)
    path = edited(summarized(perceptron(4, 8, 3), x, y).path, lambda file: spoil(file["calibration/fit"]))
    capsys.readouterr()
    assert cli.main(["find-mislabeled", str(path), "-q"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
