"""Networks and data on the edge: what is not finite is named and nothing is written; what is merely odd works."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool import cli
from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.influence.scores import influence, self_influence
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.summary.reader import Summary, load
from tests.conftest import gaussian_classes, perceptron

OLD = b"the old one"
FACTORY = """
from torch import nn

def f():
    return nn.Sequential(nn.Linear(4, 8), nn.{activation}(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3))
"""


def network(activation: str = "ReLU") -> nn.Module:
    names: dict = {}
    exec(FACTORY.format(activation=activation), names)
    torch.manual_seed(0)
    return names["f"]()


@pytest.fixture
def refused(tmp_path, arrays, capsys):
    """Runs the command line on a network and arrays; it must exit with 2, in one line, and leave the old file."""

    def run(built: nn.Module, x, y, activation: str = "ReLU") -> str:
        (tmp_path / "net.py").write_text(FACTORY.format(activation=activation))
        torch.save(built.state_dict(), tmp_path / "n.pt")
        (tmp_path / "s.h5").write_bytes(OLD)
        files = {"--model": f"{tmp_path}/net.py:f", "--checkpoint": f"{tmp_path}/n.pt", "--data": str(arrays(x, y))}
        words = [word for option in files.items() for word in option]
        code = cli.main(["summarize", *words, "--output", f"{tmp_path}/s.h5", "--quiet"])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert (tmp_path / "s.h5").read_bytes() == OLD
        assert not list(tmp_path.glob(".*"))
        return err

    yield run
    sys.modules.pop("net", None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(refused, value):
    broken = network()
    with torch.no_grad():
        broken[2].weight[1, 2] = value
    assert "the tensor '2.weight'" in (message := refused(broken, *gaussian_classes(60, 4, 3)))
    assert "holds NaN or infinity (1 of 48 values)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_named(refused, value):
    x, y = gaussian_classes(60, 4, 3)
    x[37, 2] = value
    assert "the inputs of example 37 hold NaN or infinity; remove it or fill in the value" in refused(network(), x, y)


@pytest.mark.parametrize(("activation", "layer"), [("ReLU", "3"), ("ELU", "1")])
def test_the_layer_whose_activations_overflow_is_named_though_the_outputs_are_finite(refused, activation, layer):
    x, y = gaussian_classes(60, 4, 3)
    broken = network(activation)
    # One example's sums of positive numbers are far beyond float32, all others' far below: infinity on every kernel,
    # which ReLU and ELU hand on and sigmoid makes finite again.  (GELU of infinity is NaN on some kernels.)
    with torch.no_grad():
        broken[0].weight.abs_().add_(0.1).mul_(1e30)
        broken[2].weight.abs_()
    x[37] = 1e12
    message = refused(broken, np.abs(x), y, activation)
    assert f"the activations of layer '{layer}' " in message
    assert "not finite" in message
    assert "check the weights and the preprocessing" in message


def test_outputs_that_overflow_name_the_example(refused):
    x, y = gaussian_classes(60, 4, 3)
    broken = network()
    with torch.no_grad():
        broken[4].weight.fill_(3e38)
    assert "the model's outputs for example 0 are not finite, from layer '4' on" in refused(broken, x, y)


def written(tmp_path, arrays, built: nn.Module, x, y, name: str) -> Summary:
    torch.save(built.state_dict(), tmp_path / "n.pt")
    data = load_dataset(str(arrays(x, y, f"{name}.npz")))
    summarize(model=built, checkpoint=read_checkpoint(tmp_path / "n.pt"), data=data, output=tmp_path / f"{name}.h5")
    return load(tmp_path / f"{name}.h5")


def test_a_model_left_in_train_mode_is_summarized_as_in_eval_mode(tmp_path, arrays):
    x, y = gaussian_classes(90, 4, 3)
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in built.state_dict().items()}
    expected = written(tmp_path, arrays, built.eval(), x, y, "eval")
    found = written(tmp_path, arrays, built.train(), x, y, "train")
    np.testing.assert_array_equal(found.records.read("logits"), expected.records.read("logits"))
    torch.testing.assert_close(found.statistics.gates[3].probabilities, expected.statistics.gates[3].probabilities)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())


def dead_units(built: nn.Module, x: np.ndarray) -> None:
    with torch.no_grad():
        built[0].bias[:3] = -1e4


def dead_layer(built: nn.Module, x: np.ndarray) -> None:
    with torch.no_grad():
        built[0].bias[:] = -1e4


def constant_feature(built: nn.Module, x: np.ndarray) -> None:
    x[:, 1] = 5


def constant_inputs(built: nn.Module, x: np.ndarray) -> None:
    x[:] = 0.5


@pytest.mark.parametrize("change", [dead_units, dead_layer, constant_feature, constant_inputs])
def test_dead_units_and_constant_features_give_finite_answers(tmp_path, arrays, capsys, change):
    x, y = gaussian_classes(120, 4, 3)
    built = perceptron(4, 8, 6, 3)
    change(built, x)
    summary = written(tmp_path, arrays, built, x, y, "odd")
    queries = load_dataset(summary.identity.data_spec)
    assert np.isfinite(find_mislabeled(summary).score).all()
    assert np.isfinite(self_influence(summary).values).all()
    assert all(np.isfinite(row["loss_change_if_removed"]) for row in influence(summary, queries, mean=True).rows())
    capsys.readouterr()
    code = cli.main(["fsd", str(summary.path), "--checkpoint", str(tmp_path / "n.pt"), "--format", "jsonl", "-q"])
    out, err = capsys.readouterr()
    assert code == 0
    assert all("the network does not know its training data" in line for line in err.splitlines())  # it is untrained
    assert json.loads(out)["distance"] == 0
