"""Several checkpoints of one training: what the earlier ones add, and what they leave alone."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.cli import main
from fsdtool.mislabel.earlier_checkpoints import distinct_names, earlier_networks, layers_each, parameters_before
from fsdtool.mislabel.features import FEATURES, OUTPUTS, layer_features
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.network.graph import Graph
from fsdtool.network.tracing.trace import trace
from fsdtool.summary.reader import Summary, load
from tests.conftest import gaussian_classes, perceptron, unseen


class Normed(nn.Module):
    """A network that cannot be traced in full."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.phi, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.phi(unseen(self.norm(self.first(x)))))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with data, three checkpoints of a fully connected network, and one of another width."""
    monkeypatch.chdir(tmp_path)
    x, y = gaussian_classes(300, 4, 3)
    np.savez("data.npz", x=x, y=y)
    for seed, name in enumerate(["a", "b", "final"]):
        torch.save(perceptron(4, 8, 6, 3, seed=seed).state_dict(), f"{name}.pt")
    torch.save(perceptron(4, 9, 6, 3).state_dict(), "wide.pt")
    return tmp_path


EVIDENCE = {"records/evidence", "records/candidates"}


def summarize(*checkpoints: str, more: tuple[str, ...] = (), output: str = "s.h5") -> int:
    flags = [word for name in checkpoints for word in ("--checkpoint", name)]
    return main(["summarize", "--model", "mlp:relu", *flags, "--data", "data.npz", "-o", output, "-q", *more])


def layers_of(summary: Summary) -> list[str]:
    return list(summary.records.layers("evidence"))


def test_the_last_checkpoint_is_summarized_and_the_earlier_ones_are_further_layers(here):
    assert summarize("a.pt", "b.pt", "final.pt") == 0
    summary = load("s.h5")
    assert summary.identity.checkpoint_name == "final.pt"
    of_one = ["0_activation", "2_activation", "(outputs)"]
    expected = ["(input)", *of_one[:2], *(f"{layer}@{name}.pt" for name in "ab" for layer in of_one), "(outputs)"]
    assert layers_of(summary) == expected
    shas = [read_checkpoint(f"{name}.pt").sha256 for name in "ab"]
    assert summary.identity.earlier == (("a.pt", shas[0]), ("b.pt", shas[1]))


def test_the_parameters_before_each_layer_are_counted(here):
    assert summarize("a.pt", "final.pt") == 0
    state = torch.load("final.pt", weights_only=True)
    of_layer = [state[f"{i}.weight"].numel() + state[f"{i}.bias"].numel() for i in (0, 2, 4)]
    one = np.cumsum(of_layer).tolist()
    records = load("s.h5").records
    assert (records.parameters() * len(records)).round().tolist() == [0, *one[:2], *one, one[2]]


def test_in_last_layer_mode_every_parameter_may_come_before_a_layer():
    traced = trace(Normed().eval(), torch.randn(3, 4))
    whole = sum(value.numel() for value in Normed().state_dict().values())
    assert [parameters_before(traced, (), layer) for layer in (FEATURES, traced.hooked[0], OUTPUTS)] == [whole] * 3


def test_nothing_but_the_evidence_depends_on_earlier_checkpoints(here):
    summarize("final.pt", output="alone.h5")
    summarize("a.pt", "final.pt")
    parts: list[dict[str, np.ndarray]] = []
    for name in ("alone.h5", "s.h5"):
        with h5py.File(name) as file:
            found: dict[str, np.ndarray] = {}
            file.visititems(
                lambda path, item, found=found: found.update({path: item[()]} if hasattr(item, "dtype") else {})
            )
            parts.append(found)
    assert set(parts[0]) == set(parts[1])
    for found in parts:
        told = json.loads(bytes(found.pop("identity")))  # of when, by what command and with which checkpoints
        found["identity"] = np.array(json.dumps([told["/"]["task"], told["data"]]))
    differing = {path for path in parts[0] if not np.array_equal(parts[0][path], parts[1][path])}
    assert all(path.split("/")[0] == "evidence" or path in EVIDENCE for path in differing)
    alone, both = (load(name) for name in ("alone.h5", "s.h5"))
    assert layers_of(both)[:3] == layers_of(alone)[:3]


def test_new_data_are_judged_by_the_layers_of_the_last_checkpoint(here, capsys):
    assert summarize("a.pt", "b.pt", "final.pt") == 0
    assert main(["find-mislabeled", "s.h5", "--data", "data.npz", "--all", "--by-layer", "--format", "csv", "-q"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split(",")[6:] == [f"margin:{layer}" for layer in layers_of(load("s.h5")) if "@" not in layer]
    assert len(rows) == 300


@pytest.mark.parametrize("network", [perceptron(4, 8, 6, 3), Normed()])
def test_the_features_are_those_of_the_earlier_network_run_by_itself(network, tmp_path):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    traced = trace(network.eval(), x[:3])
    torch.manual_seed(7)
    other = Normed() if isinstance(network, Normed) else perceptron(4, 8, 6, 3, seed=7)
    torch.save(other.state_dict(), tmp_path / "early.pt")
    (earlier,) = earlier_networks(network, traced, [read_checkpoint(tmp_path / "early.pt")])
    found: dict[str, torch.Tensor] = {}
    names = traced.hooked or [traced.graph.steps[i].name for i in traced.graph.indices("activation")]
    earlier.see(x, dict.fromkeys(names, False), found.__setitem__)
    with torch.no_grad():
        torch.testing.assert_close(found["(outputs)@early.pt"], other.eval()(x))
        first = other.norm(other.first(x)) if isinstance(other, Normed) else other[0](x)
    phi = Graph.from_json(trace(perceptron(4, 8, 3), x[:3]).graph.to_json()).steps[2].activation()
    torch.testing.assert_close(found[f"{names[0]}@early.pt"], layer_features(phi, first, first.relu(), False))
    assert len(found) == len(names) + 1


def test_a_regression_takes_earlier_checkpoints_too(here):
    x, y = gaussian_classes(200, 4, 3)
    np.savez("data.npz", x=x, y=np.stack([x.sum(1), x[:, 0], y], 1).astype(np.float32))
    assert summarize("a.pt", "final.pt", more=("--task", "regression")) == 0
    of_one = ["0_activation", "2_activation"]
    names = list(load("s.h5").records.layers("residual"))
    assert names == ["(input)", *of_one, *(f"{layer}@a.pt" for layer in of_one), "(outputs)@a.pt", "(outputs)"]
    assert main(["find-mislabeled", "s.h5", "-q"]) == 0


def test_inspect_shows_the_earlier_checkpoints(here, capsys):
    summarize("a.pt", "b.pt", "final.pt")
    assert main(["inspect", "s.h5", "--format", "table"]) == 0
    out = capsys.readouterr().out
    for name in ("a", "b"):
        assert f"{name}.pt (SHA-256 {read_checkpoint(f'{name}.pt').sha256[:16]}...)" in out


@pytest.mark.parametrize(
    ("checkpoints", "more", "message"),
    [
        (("gone.pt", "final.pt"), (), "gone.pt"),
        (("a.pt", "a.pt", "final.pt"), (), "--checkpoint 'a.pt' has the same content as 'a.pt'; give checkpoints of"),
        (("wide.pt", "final.pt"), (), "wide.pt"),
        (("a.pt", "final.pt"), ("--no-records",), "1 earlier checkpoint adds evidence on labels, which --no-records"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line_before_the_pass(
    here, capsys, monkeypatch, checkpoints, more, message
):
    monkeypatch.setattr("fsdtool.fitting.passes.Pass.run", lambda *a, **k: pytest.fail("the pass began"))
    assert summarize(*checkpoints, more=more) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (here / "s.h5").exists()


def test_more_checkpoints_than_there_is_room_for_are_refused(here, capsys):
    for seed in range(14):
        torch.save(perceptron(4, 8, 6, 3, seed=seed).state_dict(), f"{seed}.pt")
    assert summarize(*(f"{seed}.pt" for seed in range(14))) == 2
    assert "14 checkpoints are given, and 12 earlier ones can be used; leave some out" in capsys.readouterr().err


def test_the_layers_of_all_earlier_networks_stay_within_the_budget_of_one():
    assert [layers_each(n) for n in (1, 2, 5, 12)] == [12, 6, 2, 1]


def test_names_have_as_many_folders_as_they_need_to_differ():
    assert distinct_names(["runs/1/a.pt", "b.pt"]) == ["a.pt", "b.pt"]
    assert distinct_names(["runs/1/m.pt", "runs/2/m.pt"]) == ["1/m.pt", "2/m.pt"]
    assert distinct_names(["m.pt", "2/m.pt"]) == ["m.pt", "2/m.pt"]
    assert distinct_names([]) == []
