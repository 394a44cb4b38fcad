"""One network of each task, through every command."""

from __future__ import annotations

import csv
import io
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsdtool import cli
from tests.conftest import gaussian_classes, perceptron

FACTORY = """
import itertools
from torch import nn

def net(outputs="1"):
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, int(outputs)))
"""
COUNT = 300


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    """`shell(*arguments)` runs a command in a folder with net.py: its exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "net.py").write_text(FACTORY)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def trained(x: np.ndarray, y: np.ndarray) -> None:
    """Writes w.pt, trained with binary cross-entropy on y (N, O), and other.pt near it."""
    network = perceptron(6, 24, 16, y.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(torch.from_numpy(x)), torch.from_numpy(y).float()).backward()
        optimizer.step()
    torch.save(network.state_dict(), "w.pt")
    with torch.no_grad():
        for p in network.parameters():
            p += 0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    torch.save(network.state_dict(), "other.pt")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def ok(found: tuple[int, str, str]) -> str:
    code, out, said = found
    assert code == 0, said
    return out


def test_a_binary_network_from_a_table_of_two_words(shell):
    x, y = gaussian_classes(COUNT, 6, 2)
    trained(x, y[:, None])
    given = y.copy()
    given[:12] = 1 - given[:12]
    words = np.array(["ham", "spam"])[given]
    lines = [",".join([*map(repr, map(float, row)), word]) for row, word in zip(x, words, strict=True)]
    for name, part in (("d.csv", lines), ("q.csv", lines[:3])):
        with open(name, "w") as file:
            file.write("\n".join(["a,b,c,d,e,f,label", *part]) + "\n")
    start = ("summarize", "--model", "net.py:net", "--checkpoint", "w.pt", "--data", "d.csv")
    code, _, said = shell(*start, "-o", "s.h5")
    assert code == 0, said
    assert "the logit of class 1 against class 0 (--task binary)" in said
    assert "for a regression give --task regression" in said
    ok(shell(*start, "--task", "binary", "-o", "given.h5"))
    found = rows(ok(shell("find-mislabeled", "s.h5", "--top", "12", "--format", "csv")))
    assert len({int(row["id"]) for row in found} & {*range(12)}) >= 9
    assert {row["given_label"] for row in found} == {"ham", "spam"}
    other_task = shell("find-mislabeled", "given.h5", "--top", "12", "--format", "csv", "--report", "p.html")
    assert rows(ok(other_task)) == found
    by_query = rows(ok(shell("influence", "s.h5", "--queries", "q.csv", "--top", "1", "--format", "csv")))
    assert [row["label"] in ("ham", "spam") for row in by_query] == [True] * 6
    new = ("--data", "q.csv")
    assert rows(ok(shell("find-mislabeled", "s.h5", *new, "--all", "--format", "csv")))[0]["given_label"] in words
    (drift,) = rows(ok(shell("fsd", "s.h5", "--checkpoint", "other.pt", "--data", "d.csv", "--format", "csv")))
    assert drift["metric"] == "kl"
    assert float(drift["distance"]) == pytest.approx(float(drift["exact"]), rel=0.1)
    assert "binary" in shell("inspect", "s.h5")[2]
    code, _, said = shell(*start[:-1], "d.csv", "--task", "regression", "-o", "r.h5")
    assert (code, "is text; give numbers for regression" in said) == (2, True)


def several(count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (count, 6), and for each whether four features lie on the positive side (count, 4)."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 6)).astype(np.float32)
    return x, (x[:, :4] + 0.5 * x[:, 2:] > [0, 0.5, 0, -0.5]).astype(int)


def test_several_labels_from_a_table(shell):
    x, y = several()
    trained(x, y)
    given = y.copy()
    given[:12, 1] = 1 - given[:12, 1]
    lines = [
        ",".join([*map(repr, map(float, row)), *map(str, labels.astype(bool))])
        for row, labels in zip(x, given, strict=True)
    ]
    for name, part in (("d.csv", lines), ("q.csv", lines[20:23])):
        with open(name, "w") as file:
            file.write("\n".join(["a,b,c,d,e,f,cat,dog,cow,hen", *part]) + "\n")
    model = ("--model", "net.py:net", "--model-arg", "outputs=4", "--checkpoint", "w.pt")
    keys = ("--y-key", "cat,dog,cow,hen")
    code, _, said = shell("summarize", *model, "--data", "d.csv", *keys, "-o", "s.h5")
    assert code == 0, said
    assert "several labels for each example (--task multilabel; if they are numbers, give --task regression)" in said
    assert "accuracy 0.9" in said
    assert "per label" in said
    by_query = rows(ok(shell("influence", "s.h5", "--queries", "q.csv", *keys, "--top", "1", "--format", "csv")))
    assert len(by_query) == 6
    assert all(set(row["label"].split(", ")) <= {"cat", "dog", "cow", "hen", "none"} for row in by_query)
    (drift,) = rows(ok(shell("fsd", "s.h5", "--checkpoint", "other.pt", "--data", "d.csv", *keys, "--format", "csv")))
    assert drift["metric"] == "kl"
    assert float(drift["distance"]) == pytest.approx(float(drift["exact"]), rel=0.1)
    assert "multilabel" in shell("inspect", "s.h5")[2]
    code, _, said = shell("influence", "s.h5", "--queries", "q.csv", "--y-key", "dog,cat,cow,hen")
    assert (code, "has its labels in another order than cat, dog, cow, hen" in said) == (2, True)
    code, _, said = shell("summarize", *model, "--data", "d.csv", *keys, "--task", "classification", "-o", "c.h5")
    assert (code, "classification takes one" in said) == (2, True)
