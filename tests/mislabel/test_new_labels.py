"""New labels judged by an old summary: as they would be in the data, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool import cli
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.mislabel import layer_observer as module
from fsdtool.mislabel.class_model_file import read_class_models
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.new_labels import score_new_labels
from fsdtool.mislabel.suspects import NEAR_BOUNDARIES
from fsdtool.summary.reader import Summary, load
from tests.conftest import SAMPLE, gaussian_classes, perceptron, unseen
from tests.fitting.test_run import images, small_convnet
from tests.influence.test_scores import Product
from tests.report.test_html import Reader
from tests.util.test_memory import failing


def agreement(summary: Summary, data, **options) -> np.ndarray:
    """By layer (L,): the correlation of the margins of the summarized data with those of `data`, the same again."""
    recorded, again = find_mislabeled(summary), score_new_labels(summary, load_dataset(str(data)), **options)
    assert again.layers == recorded.layers
    np.testing.assert_array_equal(again.weights, read_class_models(summary).weights)
    np.testing.assert_array_equal(again.given, recorded.given)
    pairs = zip(recorded.margins.T, again.margins.T, strict=True)
    return np.array([np.corrcoef(pair)[0, 1] for pair in pairs])


class Hooked(nn.Module):
    """A convolutional network that is not traced in full, with activations on channels first and last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.norm = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.LayerNorm(6)
        self.hidden, self.gelu, self.head = nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.relu(self.conv(x)).mean((2, 3))
        return self.head(self.gelu(self.hidden(unseen(self.norm(pooled)))))


# As in the data


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_wrong_labels_are_found_as_well_as_in_the_data(request, truth, network):
    summary = request.getfixturevalue(f"{network}_summary")
    wrong = set(np.flatnonzero(truth["given_label"] != truth["true_label"]).tolist())
    data = load_dataset(str(SAMPLE / "train.npz"))
    recorded, again = find_mislabeled(summary, top=len(wrong)), score_new_labels(summary, data, top=len(wrong))
    assert len(wrong.intersection(again.order.tolist())) >= len(wrong.intersection(recorded.order.tolist())) - 3
    assert again.noise_rate == pytest.approx(len(wrong) / 1437, rel=0.25)


def test_right_labels_that_were_never_seen_are_hardly_flagged(mlp_summary):
    clean = score_new_labels(mlp_summary, load_dataset(str(SAMPLE / "test.npz")))
    assert clean.flagged < 0.05 * 360
    assert clean.noise_rate < 0.03
    assert clean.between_by == NEAR_BOUNDARIES
    assert clean.between[0] <= clean.noise_rate < clean.between[1] < 0.1


def test_a_new_example_has_the_score_that_it_has_in_the_data(summarized, arrays):
    x, y = gaussian_classes(800, 4, 3)
    y[::10] = (y[::10] + 1) % 3
    network = perceptron(4, 16, 8, 3)
    without = summarized(network, x[40:], y[40:], name="without.h5")
    found = score_new_labels(without, load_dataset(str(arrays(x[:40], y[:40]))))
    inside = find_mislabeled(summarized(network, x, y, name="with.h5"))
    new, old = found.score, inside.score[:40]
    np.testing.assert_allclose(new, old, atol=0.1)
    assert np.corrcoef(new, old)[0, 1] > 0.98


def test_every_layer_is_observed_as_in_the_pass(summarized, tmp_path):
    summary = summarized(small_convnet(), *images(300))
    assert agreement(summary, tmp_path / "summary.h5.npz").min() > 0.95


def test_inputs_of_reduced_rank_and_layers_that_were_projected_are_observed_as_in_the_pass(summarized, tmp_path):
    x, y = gaussian_classes(300, 300, 3)
    summary = summarized(perceptron(300, 300, 8, 3), x / 10, y)
    assert summary.statistics.input.basis is not None
    assert agreement(summary, tmp_path / "summary.h5.npz").min() > 0.8


@pytest.mark.parametrize("network", [Product, Hooked])
def test_in_last_layer_mode_the_model_is_observed_as_in_the_pass(summarized, tmp_path, network):
    torch.manual_seed(0)
    model = network()
    summary = summarized(model, *(images(300) if network is Hooked else gaussian_classes(300, 4, 3)))
    assert summary.identity.mode == "last layer"
    assert agreement(summary, tmp_path / "summary.h5.npz", model=model).min() > 0.95


def test_the_outputs_say_their_log_probabilities(summarized, arrays):
    network = perceptron(4, 16, 3)
    x, y = gaussian_classes(60, 4, 3)
    found = score_new_labels(summarized(network, x, y), load_dataset(str(arrays(x, y))))
    log_p = torch.log_softmax(network(torch.from_numpy(x)), 1).detach()
    own = log_p.gather(1, torch.from_numpy(y)[:, None])
    others = log_p.scatter(1, torch.from_numpy(y)[:, None], -torch.inf)
    np.testing.assert_allclose(found.margins[:, -1], (others - own).amax(1), rtol=2e-3, atol=2e-3)


def test_the_size_of_a_batch_and_memory_that_runs_out_change_nothing(summarized, arrays, monkeypatch, caplog):
    x, y = gaussian_classes(130, 4, 14)
    summary, data = summarized(perceptron(4, 16, 14), x, y), load_dataset(str(arrays(x, y)))
    whole = score_new_labels(summary, data, everything=True)
    monkeypatch.setattr(module, "SCORES", 14 * 3 * 5)
    failing(monkeypatch, module.LayerObserver, "_observe", above=9, error=MemoryError(), rows=lambda _, b: len(b.index))
    parts = score_new_labels(summary, data, everything=True, batch_size=37)
    assert "going on with 9" in caplog.text
    np.testing.assert_allclose(parts.score, whole.score, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(parts.suggested, whole.suggested)


def test_a_class_without_examples_is_suggested_by_no_layer(summarized, arrays):
    x, y = gaussian_classes(120, 4, 3)
    found = score_new_labels(
        summarized(perceptron(4, 12, 4), x, y), load_dataset(str(arrays(x, np.where(y == 2, 3, y))))
    )
    assert (found.margins[y == 2][:, :-1] > 1000).all()
    assert not (found.suggested == 3).any()


def test_few_examples_are_judged_without_an_estimate_of_the_wrong_ones(mlp_summary, arrays, caplog):
    digits = np.load(SAMPLE / "test.npz")
    with caplog.at_level(logging.INFO, "fsdtool"):
        found = score_new_labels(
            mlp_summary, load_dataset(str(arrays(digits["x"][:1], digits["y"][:1]))), everything=True
        )
    assert (found.noise_rate, found.noise_matrix) == (None, None)
    assert "too few examples (1) to estimate" in caplog.text
    assert [row["rank"] for row in found.rows()] == [1]


def test_how_many_examples_are_judged_with_it_changes_no_score_of_a_few(mlp_summary, arrays):
    digits = np.load(SAMPLE / "test.npz")
    data = [load_dataset(str(arrays(digits["x"][:n], digits["y"][:n], f"{n}.npz"))) for n in (5, 99)]
    few, more = (score_new_labels(mlp_summary, source) for source in data)
    np.testing.assert_allclose(few.score, more.score[:5], rtol=1e-4)


def test_a_few_wrong_labels_are_flagged_and_a_few_right_ones_are_not(mlp_summary, arrays):
    digits = np.load(SAMPLE / "test.npz")
    given = np.where(np.arange(60) % 3 == 0, (digits["y"][:60] + 1 + np.arange(60) % 7) % 10, digits["y"][:60])
    found = score_new_labels(mlp_summary, load_dataset(str(arrays(digits["x"][:60], given))))
    flags = found.score > 0.5
    assert flags[given != digits["y"][:60]].sum() >= 18
    assert flags[given == digits["y"][:60]].sum() <= 2


# Refusals


def test_a_summary_that_cannot_judge_is_refused(summarized, arrays, edited):
    x, y = gaussian_classes(60, 4, 3)
    data = load_dataset(str(arrays(x, y)))
    for options, message in (
        ({"records": False}, "written with `records=False`; write it again with records"),
        ({"keep_weights": False}, "written with `keep_weights=False`; write it again with weights"),
    ):
        with pytest.raises(FsdtoolError, match=message):
            score_new_labels(summarized(perceptron(4, 8, 3), x, y, **options), data)
    with pytest.raises(FsdtoolError, match="of a regression"):
        score_new_labels(summarized(perceptron(4, 8, 1), x, x.sum(1), task="regression"), data)
    whole = summarized(perceptron(4, 8, 3), x, y)
    for change, message in (
        (lambda file: file.pop("evidence"), "'/evidence' is missing; write the summary again"),
        (lambda file: file.pop("evidence/layers/1/root"), "'/evidence/layers/1/root' is missing"),
        (lambda file: file["evidence/members"].write_direct(np.array([-1, 2, 3])), "a count or factor is negative"),
        (lambda file: file.move("evidence/layers/1", "evidence/layers/(input)/x"), "'/evidence/layers/1' is missing"),
        (lambda file: rename_layer(file["records/evidence"]), "its records have no layer '(input)'"),
        (lambda file: shorten(file["evidence/layers/1"]), "layer '1' has 16 features, the file 5"),
    ):
        path = edited(whole.path, change)
        with pytest.raises(FsdtoolError, match=re.escape(message)):
            score_new_labels(load(path), data)


def rename_layer(recorded) -> None:
    recorded.attrs["layers"] = np.array(["other", *recorded.attrs["layers"][1:]], "S")


def shorten(layer) -> None:
    for name in ("middle", "scale", "root"):
        values = layer[name][:5]
        del layer[name]
        layer[name] = values


def test_data_that_the_network_does_not_take_are_refused(summarized, arrays):
    x, y = gaussian_classes(60, 4, 3)
    summary = summarized(perceptron(4, 8, 3), x, y)
    with pytest.raises(FsdtoolError, match=r"inputs of shape \(5,\), the summary was made from \(4,\)"):
        score_new_labels(summary, load_dataset(str(arrays(*gaussian_classes(5, 5, 3)))))
    with pytest.raises(FsdtoolError, match=r"label 7 of example 2 is out of range: the model has 3 outputs"):
        score_new_labels(summary, load_dataset(str(arrays(x[:3], [0, 1, 7]))))
    x[4] = 1e38
    with pytest.raises(FsdtoolError, match=r"for example 4 are not finite.*correct or remove it"):
        score_new_labels(summary, load_dataset(str(arrays(x, y))))


def test_in_last_layer_mode_the_model_that_was_summarized_is_needed(summarized, tmp_path):
    torch.manual_seed(0)
    summary = summarized(Product(), *gaussian_classes(60, 4, 3))
    data = load_dataset(str(tmp_path / "summary.h5.npz"))
    with pytest.raises(FsdtoolError, match=r"holds only the last layer 'head'.*give `model` and `checkpoint`"):
        score_new_labels(summary, data)
    other = Product()
    other.relu = nn.Identity()
    with pytest.raises(FsdtoolError, match=r"no activation layer 'relu'.*give the model that was summarized"):
        score_new_labels(summary, data, model=other)


# On the command line


@pytest.fixture
def shell(capsys, tmp_path, mlp_summary):
    """Runs find-mislabeled on the sample summary in a folder of its own; returns (exit code, stdout, stderr)."""
    shutil.copy(mlp_summary.path, tmp_path / "mlp.h5")

    def shell(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["find-mislabeled", str(tmp_path / "mlp.h5"), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return shell


TEST = ("--data", SAMPLE / "test.npz")


def test_new_labels_are_listed_counted_and_pictured_like_old_ones(shell, tmp_path):
    code, out, err = shell(*TEST, "--top", 3, "--format", "jsonl", "--report", tmp_path / "p.html")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [list(row) for row in rows] == [
        ["id", "given_label", "suggested_label", "score", "confidence", "rank"] for _ in range(3)
    ]
    labels = np.load(SAMPLE / "test.npz")["y"]
    assert [row["given_label"] for row in rows] == labels[[row["id"] for row in rows]].tolist()
    assert "of 360 labels are flagged" in err
    assert re.search(r"estimated share of wrong labels: .*% \(.*% to .*% with those near class boundaries\)", err)
    page = Reader((tmp_path / "p.html").read_text("utf-8"))
    assert len(page.all("img")) == 3
    assert "Suspicious labels in test.npz" in page.of("h1")[0]
    assert "360 examples" in page.of("header")[0]
    (tmp_path / "ids").write_text(f"{rows[1]['id']}\n")
    code, out, _ = shell(*TEST, "--all", "--ids", tmp_path / "ids", "--format", "jsonl")
    assert [json.loads(line) for line in out.splitlines()] == [rows[1] | {"rank": 1}]
    assert shell(*TEST, "--max-flagged", 0, "--threshold", 0.001, "-q")[0] == 1


@pytest.mark.parametrize("data", [(), TEST])
def test_by_layer_adds_a_column_per_layer_in_every_format(shell, data):
    columns = ["margin:(input)", "margin:2", "margin:4", "margin:(outputs)"]
    options = (*data, "--top", 2, "--threshold", 1e-4, "--by-layer", "--format")
    code, out, err = shell(*options, "json")
    rows = json.loads(out)
    assert code == 0
    assert [list(row)[6:] for row in rows] == [columns, columns]
    assert "note: weights of the layers: (input) 0." in err
    (header, *lines) = csv.reader(shell(*options, "csv")[1].splitlines())
    assert header[6:] == columns
    assert [[float(v) for v in line[6:]] for line in lines] == [[row[c] for c in columns] for row in rows]
    assert [json.loads(line) for line in shell(*options, "jsonl")[1].splitlines()] == rows
    assert all(column in shell(*options, "table")[1].splitlines()[0] for column in columns)
    said = f"; margins in nats: (input) {rows[0]['margin:(input)']:.3g}, 2 "
    assert said in shell(*options, "github")[1].splitlines()[0]
    assert said in shell(*options, "junit")[1]


def test_the_noise_matrix_goes_to_a_file(shell, tmp_path, mlp_summary):
    found = find_mislabeled(mlp_summary)
    assert shell("--noise-matrix", tmp_path / "n.json", "-q")[0] == 0
    content = json.loads((tmp_path / "n.json").read_text())
    assert content["labels"] == list(range(10))
    np.testing.assert_allclose(content["given_by_true"], found.noise_matrix, rtol=1e-6)
    assert content["noise_rate"] == pytest.approx(found.noise_rate, rel=1e-6)
    assert list(content["layer_weights"]) == list(found.layers)
    assert shell("--noise-matrix", tmp_path / "n.csv", "-q")[0] == 0
    header, *lines = csv.reader((tmp_path / "n.csv").read_text().splitlines())
    assert header == ["given_label", *map(str, range(10))]
    assert [line[0] for line in lines] == header[1:]
    np.testing.assert_allclose([[float(v) for v in line[1:]] for line in lines], found.noise_matrix, rtol=1e-6)


def test_class_names_in_the_noise_matrix_are_no_formulas(summarized, tmp_path):
    x, y = gaussian_classes(300, 4, 3)
    summary = summarized(perceptron(4, 8, 3), x, np.array(["=1+1", "-1", 'a,"b\n'])[y])
    assert cli.main(["find-mislabeled", "-q", str(summary.path), "--noise-matrix", str(tmp_path / "n.csv")]) == 0
    with open(tmp_path / "n.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["given_label", *(line[0] for line in lines)]
    assert sorted(header[1:]) == ["'=1+1", "-1", 'a,"b\n']


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--noise-matrix", "n.txt"), "--noise-matrix 'n.txt' does not end in .csv or .json; give a name that does"),
        (("--by-layer", "--ids-only"), "--ids-only and --by-layer exclude each other; give one of them"),
        (("--model", "m.py:f"), "--model has no meaning without --data; leave it out or give --data"),
        (("--split", "a", "--skip-bad"), "--split, --skip-bad has no meaning without --data"),
        ((*TEST, "--report", "p.html", "--report-data", "x"), "--report-data x has no meaning with --data"),
        ((*TEST, "--model", "m.py:f"), "--model is given without --checkpoint; give both or neither"),
        (("--data", "none.npz"), "none.npz"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(shell, arguments, message):
    code, out, err = shell(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_in_last_layer_mode_model_and_checkpoint_are_given_again(summarized, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    summary = summarized(Product(), *gaussian_classes(120, 4, 3))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    command = ["find-mislabeled", str(summary.path), "--data", str(tmp_path / "summary.h5.npz"), "--all", "-q"]
    assert cli.main(command) == 2
    assert "give --model and --checkpoint" in capsys.readouterr().err
    model = ["--model", "tests.influence.test_scores:Product", "--checkpoint", str(tmp_path / "summary.h5.pt")]
    assert cli.main([*command, *model]) == 0
    assert capsys.readouterr().out.count("\n") == 121


@pytest.mark.parametrize(("count", "message"), [(0, "give at least one example"), (3, "too few to estimate the noise")])
def test_too_few_examples_for_what_is_asked_leave_the_old_file(shell, arrays, tmp_path, count, message):
    digits = np.load(SAMPLE / "test.npz")
    (tmp_path / "n.csv").write_text("old")
    data = arrays(digits["x"][:count], digits["y"][:count])
    code, out, err = shell("--data", data, "--noise-matrix", tmp_path / "n.csv", "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert (tmp_path / "n.csv").read_text() == "old"


def test_max_rate_exits_with_1_above_and_0_at_or_below_the_share_that_is_flagged(shell):
    code, out, err = shell("--format", "csv")
    flagged = len(out.splitlines()) - 1
    share = flagged / 1437
    for rate, expected in ((0, 1), (share * 0.99, 1), (share, 0), (1, 0)):
        code, again, err = shell("--max-rate", rate, "-q")
        assert (code, again) == (expected, out)
        said = f"warning: {share:.2%} of the labels are flagged, more than --max-rate {rate:g}\n"
        assert err == (said if expected else "")


def test_max_rate_counts_among_the_ids_alone(shell, tmp_path):
    rows = [json.loads(line) for line in shell("--all", "--format", "jsonl")[1].splitlines()]
    few = rows[:2] + rows[-6:]  # two of eight are flagged
    (tmp_path / "ids").write_text("".join(f"{row['id']}\n" for row in few))
    ids = ("--ids", tmp_path / "ids", "-q", "--max-rate")
    assert shell(*ids, 0.25)[0] == 0
    code, out, err = shell(*ids, 0.2)
    assert (code, len(out.splitlines())) == (1, 3)
    assert err == "warning: 25.00% of the labels are flagged, more than --max-rate 0.2\n"
    assert shell(*ids, 1.5)[0] == 2
