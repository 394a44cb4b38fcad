"""One network of each task, through every command."""

from __future__ import annotations

import csv
import io
import json
import sys
from xml.etree import ElementTree

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

    run.folder = tmp_path
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


def test_wrong_labels_among_several(shell):
    x, y = several(400)
    trained(x, y)
    given = y.copy()
    wrong = np.random.default_rng(1).random(y.shape) < 0.05
    given[wrong] = 1 - given[wrong]
    np.savez("d.npz", x=x, y=given, class_names=np.array(["cat", "dog", "cow", "hen"]))
    model = ("--model", "net.py:net", "--model-arg", "outputs=4", "--checkpoint", "w.pt")
    code, _, said = shell("summarize", *model, "--data", "d.npz", "-o", "s.h5")
    assert code == 0, said
    count = str(int(wrong.sum()))
    code, out, said = shell("find-mislabeled", "s.h5", "--top", count, "--format", "csv")
    assert code == 0, said
    assert "of 1600 labels are flagged" in said
    assert "estimated share of wrong labels" in said
    found = rows(out)
    assert list(found[0]) == ["id", "label", "given_label", "suggested_label", "score", "confidence", "rank"]
    names = ["cat", "dog", "cow", "hen"]
    hits = [wrong[int(row["id"]), names.index(row["label"])] for row in found]
    assert sum(hits) > 0.7 * len(hits)
    assert all(int(row["given_label"]) == given[int(row["id"]), names.index(row["label"])] for row in found)
    assert all(int(row["given_label"]) + int(row["suggested_label"]) == 1 for row in found)
    by_json = json.loads(ok(shell("find-mislabeled", "s.h5", "--top", count, "--format", "json")))
    assert [(str(row["id"]), row["label"]) for row in by_json] == [(row["id"], row["label"]) for row in found]
    cases = ElementTree.fromstring(ok(shell("find-mislabeled", "s.h5", "--top", "5", "--format", "junit")))
    assert {case.get("name") for case in cases.iter("testcase")} >= {f"{found[0]['id']} {found[0]['label']}"}
    assert f"the label '{found[0]['label']}' of {found[0]['id']} is probably" in ok(
        shell("find-mislabeled", "s.h5", "--top", "1", "--format", "github")
    )
    ids = ok(shell("find-mislabeled", "s.h5", "--top", count, "--ids-only")).split()
    assert len(ids) == len(set(ids))
    (shell.folder / "ids.txt").write_text("3\n5\n")
    some = rows(ok(shell("find-mislabeled", "s.h5", "--all", "--ids", "ids.txt", "--format", "csv")))
    assert sorted((int(row["id"]), row["label"]) for row in some) == sorted((i, n) for i in (3, 5) for n in names)
    assert shell("find-mislabeled", "s.h5", "--max-flagged", "1")[0] == 1
    ok(shell("find-mislabeled", "s.h5", "--top", "9", "--report", "p.html"))
    assert f"{found[0]['label']}: {found[0]['given_label']}" in (shell.folder / "p.html").read_text()
    for refused in (("--by-layer",), ("--noise-matrix", "n.csv"), ("--data", "d.npz")):
        code, _, said = shell("find-mislabeled", "s.h5", *refused)
        assert (code, "is of a multilabel" in said) == (2, True), said
