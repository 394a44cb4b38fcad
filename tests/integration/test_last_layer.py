"""Summaries in last layer mode: a distance sees what changed, or is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fsdtool import cli
from tests.conftest import gaussian_classes

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, act="relu"):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.act = getattr(nn.functional, act)
    def forward(self, x):
        h = self.norm(self.first(x))
        h = self.act(h if h.requires_grad else torch.from_numpy(h.numpy()))  # seen by no tracer
        return {"features": h, "z": self.head(h)}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A folder with data, w.pt summarized, head.pt with another head and all.pt with other weights; `shell(...)`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "net.py").write_text(FACTORY)
    x, y = gaussian_classes(90, 5, 3)
    np.savez("d.npz", x=x, y=y)
    np.savez("few.npz", x=x[:20], y=y[:20])
    scope: dict = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    net = scope["Net"](width=6, act="tanh")
    states = {"w": {name: value.clone() for name, value in net.state_dict().items()}}
    states["head"] = {k: v + 0.1 * torch.randn_like(v) if k.startswith("head") else v for k, v in states["w"].items()}
    states["all"] = {k: v + 0.1 * torch.randn_like(v) for k, v in states["w"].items()}
    for name, state in states.items():
        torch.save({"ema": states["all"], "state_dict": state}, f"{name}.pt")

    def outputs(name: str) -> torch.Tensor:
        net.load_state_dict(states[name])
        return net(torch.from_numpy(x))["z"].detach().log_softmax(1).double()

    def kl(name: str, rows=slice(None)) -> float:
        p, q = outputs("w")[rows], outputs(name)[rows]
        return float((p.exp() * (p - q)).sum(1).mean())

    def shell(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    arguments = ("--model", "net.py:Net", "--model-arg", "width=6", "--model-arg", "act=tanh", "--output-name", "z")
    code, _, said = shell("summarize", *arguments, "--checkpoint", "w.pt", "--data", "d.npz", "-o", "s.h5")
    assert code == 0, said
    shell.kl = kl
    return shell


WITH_CODE = ("--model", "net.py:Net", "--data", "d.npz")


def test_a_change_before_the_head_is_refused(folder):
    code, out, said = folder("fsd", "s.h5", "--checkpoint", "head.pt", "--checkpoint", "all.pt")
    assert (code, out) == (2, "")
    assert "'all.pt' differs from the summarized checkpoint before the last layer 'head' (first.weight," in said
    assert "give --model and --data for the exact distance of the whole network" in said
    code, _, said = folder("fsd", "s.h5", "--checkpoint", "all.pt", "--model", "net.py:Net")
    assert code == 2
    code, _, said = folder("fsd", "s.h5", "--checkpoint", "head.pt", "--data", "d.npz")
    assert code == 2
    assert "give --model with its code, or leave --data out" in said


def test_a_change_of_the_head_alone_is_estimated(folder):
    code, out, said = folder("fsd", "s.h5", "--checkpoint", "head.pt", "--format", "csv")
    assert code == 0, said
    assert float(out.splitlines()[1].split(",")[1]) == pytest.approx(folder.kl("head"), rel=0.5)


def test_with_code_and_data_the_whole_network_is_measured(folder):
    both = ("--checkpoint", "head.pt", "--checkpoint", "all.pt")
    code, out, said = folder("fsd", "s.h5", *both, *WITH_CODE, "--format", "csv")
    assert code == 0, said
    head, moved = (line.split(",") for line in out.splitlines()[1:])
    assert float(head[-1]) == pytest.approx(folder.kl("head"), rel=1e-4)
    assert float(moved[-1]) == pytest.approx(folder.kl("all"), rel=1e-4)
    assert head[1]
    assert moved[1:4] == ["", "", ""]


def test_without_other_checkpoints_the_outputs_are_those_recorded_or_of_the_reference(folder):
    code, out, said = folder("fsd", "s.h5", "--checkpoint", "all.pt", *WITH_CODE, "--format", "csv")
    assert code == 0, said
    assert "--reference gives it itself" in said
    assert float(out.splitlines()[1].split(",")[-1]) == pytest.approx(folder.kl("all"), rel=0.02)
    few = ("--model", "net.py:Net", "--data", "few.npz", "--format", "csv")
    code, out, said = folder("fsd", "s.h5", "--checkpoint", "all.pt", *few)
    assert code == 2
    assert "give it as --reference (w.pt)" in said
    code, out, said = folder("fsd", "s.h5", "--checkpoint", "all.pt", *few, "--reference", "w.pt")
    assert code == 0, said
    assert float(out.splitlines()[1].split(",")[-1]) == pytest.approx(folder.kl("all", slice(20)), rel=1e-4)


@pytest.mark.parametrize("form", ["json", "github", "junit", "table"])
def test_the_limit_is_for_the_exact_distance_where_there_is_no_other(folder, form):
    limit = folder.kl("all")
    given = ("fsd", "s.h5", "--checkpoint", "all.pt", *WITH_CODE, "--reference", "w.pt", "--format", form)
    assert folder(*given, "--max-distance", str(limit * 0.9))[0] == 1
    assert folder(*given, "--max-distance", str(limit * 1.1))[0] == 0
    code, out, said = folder(*given, "--by-component")
    assert (code, out) == (2, "")
    assert "leave --by-component out" in said


def test_arguments_of_the_model_are_those_of_the_summary(folder):
    again = ("--model", "net.py:Net", "--checkpoint", "w.pt")
    code, _, said = folder("influence", "s.h5", "--queries", "few.npz", "--mean", *again)
    assert code == 0, said
    assert "the model's width=6, act=tanh are as summarized (--model-arg)" in said
    code, _, said = folder("influence", "s.h5", "--queries", "few.npz", "--mean", *again, "--model-arg", "width=7")
    assert code == 2
    code, _, said = folder("find-mislabeled", "s.h5", "--data", "few.npz", *again)
    assert code == 0, said


def test_other_weights_of_the_same_file_are_refused(folder):
    again = ("--model", "net.py:Net", "--checkpoint", "w.pt", "--checkpoint-key", "ema")
    code, _, said = folder("influence", "s.h5", "--queries", "few.npz", "--mean", *again)
    assert code == 2
    assert "the weights of 'w.pt' are not those that were summarized" in said
