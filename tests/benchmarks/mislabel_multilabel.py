"""Wrong labels among several of each example: how well they are ranked and flagged.

    python tests/benchmarks/mislabel_multilabel.py [--seeds 0,1,2] [--epochs 20,120] [--threads N] [--csv FILE]

Two kinds of examples, 5 % of whose labels are flipped, or 15 % of whose ones are forgotten, or none:
- the digits of sample_data with seven properties of each (even, from 5 on, with a loop, ...),
- synthetic ones: 20 numbers made of 6 hidden ones, and 8 labels, each on a side of a curved surface in these.
A row has the means over the seeds of the average precision of fsdtool, of the network's loss, and of class models of
each label by itself (fsdtool.mislabel.label_evidence, as of a classification of two classes, scored together); the
share of wrong labels, that which fsdtool estimates, and of what it flags how many are wrong, and of the wrong how many
it flags.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import mlp, parse, print_table
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting import run
from fsdtool.mislabel.features import OUTPUTS, FeatureStore
from fsdtool.mislabel.label_evidence import evidence
from fsdtool.mislabel.label_scores import JudgedLabels, score_labels
from fsdtool.mislabel.multilabel.label_errors import find_label_errors
from fsdtool.mislabel.multilabel.label_residuals import label_residuals
from fsdtool.mislabel.noise.verdict import verdict
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.summary.reader import load

SAMPLE = Path(__file__).parents[2] / "sample_data"
WIDTH, RATE, BATCH = 64, 2e-3, 64
Labels = tuple[np.ndarray, np.ndarray]
NOISES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "5 % flipped": lambda y, rng: rng.random(y.shape) < 0.05,
    "15 % of the ones forgotten": lambda y, rng: (rng.random(y.shape) < 0.15) & (y > 0),
    "none": lambda y, rng: np.zeros(y.shape, dtype=bool),
}


def digits(seed: int) -> Labels:
    """The pixels (n, 64) and seven properties (n, 7) of the digits, by their right labels."""
    with np.load(SAMPLE / "train.npz") as file:
        x = file["x"].reshape(len(file["x"]), -1).astype(np.float32) / 255
    with open(SAMPLE / "truth.csv", newline="", encoding="utf-8") as file:
        t = np.array([int(row["true_label"]) for row in sorted(csv.DictReader(file), key=lambda row: int(row["id"]))])
    sets = ((0, 6, 8, 9), (2, 3, 5, 7), (1, 4, 7), (3,), (0, 1))
    y = np.stack([t % 2 == 0, t >= 5, *(np.isin(t, members) for members in sets)], 1)
    return x, y.astype(np.float32)


def synthetic(seed: int, count: int = 2000) -> Labels:
    """Inputs (count, 20) and labels (count, 8)."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, 6))
    x = np.tanh(0.5 * hidden @ rng.normal(size=(6, 20))) + 0.3 * rng.normal(size=(count, 20))
    s = hidden @ rng.normal(size=(6, 8)) + 0.7 * (hidden**2 - 1) @ rng.normal(size=(6, 8))
    limits = np.quantile(s, rng.uniform(0.4, 0.9, 8), axis=0).diagonal()
    return x.astype(np.float32), (s > limits).astype(np.float32)


def trained(x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> nn.Module:
    """A network with two hidden layers, by Adam on the mean binary cross-entropy."""
    torch.manual_seed(seed)
    network = mlp(x.shape[1], WIDTH, WIDTH, y.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return network.eval()


def by_class_models(store: FeatureStore, labels: torch.Tensor, logits: torch.Tensor, network: nn.Module) -> np.ndarray:
    """Scores (n O,) of the labels (n, O) by class models of each label: the two classes of [0, z]."""
    sizes = [p.numel() for p in network.parameters()]
    before = np.cumsum([0, sizes[0] + sizes[1], sizes[2] + sizes[3], sizes[4] + sizes[5]])[: len(store.layers) + 1]
    found = []
    for o in range(labels.shape[1]):
        two = torch.stack([torch.zeros(len(logits)), logits[:, o]], 1)
        found.append(evidence(store, labels[:, o].long(), two, before))
    candidates = np.concatenate([one.candidates.numpy() for one in found])
    values = np.concatenate([one.evidence.numpy() for one in found])
    parameters = before / len(candidates)
    judged = JudgedLabels("", np.arange(len(values)), candidates, values, (*store.layers, OUTPUTS), parameters)
    scores = score_labels(judged, verdict(values, candidates, 2, parameters), 2).posterior.score
    return scores.reshape(labels.shape[1], -1).T.ravel()


def measured(x: np.ndarray, y: np.ndarray, noise: str, epochs: int, seed: int) -> dict[str, float]:
    """The columns of one seed."""
    from sklearn.metrics import average_precision_score

    wrong = NOISES[noise](y, np.random.default_rng(100 + seed))
    given = np.where(wrong, 1 - y, y).astype(np.float32)
    network, others = trained(x, given, epochs, seed), {}

    def beside(store: FeatureStore, labels: torch.Tensor, logits: torch.Tensor, seed: int):
        others["class models"] = by_class_models(store, labels, logits, network)
        return label_residuals(store, labels, logits, seed)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "d.npz", x=x, y=given)
        torch.save(network.state_dict(), folder / "w.pt")
        data, run.label_residuals = load_dataset(str(folder / "d.npz"), task="multilabel"), beside
        try:
            run.summarize(model=network, checkpoint=read_checkpoint(folder / "w.pt"), data=data, output=folder / "s.h5")
        finally:
            run.label_residuals = label_residuals
        with load(folder / "s.h5") as summary:
            found = find_label_errors(summary)
    with torch.no_grad():
        z = network(torch.from_numpy(x)).numpy()
    scores = {"fsdtool": found.score, "loss": np.logaddexp(0, np.where(given > 0, -z, z)).ravel(), **others}
    at = wrong.ravel()
    flagged = at[found.order]
    precision = {name: average_precision_score(at, score) if at.any() else np.nan for name, score in scores.items()}
    return precision | {
        "wrong": at.mean(),
        "estimated": found.noise_rate,
        "flagged": len(flagged) / at.size,
        "right flags": flagged.mean() if len(flagged) else np.nan,
        "found": flagged.sum() / max(at.sum(), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", default="20,120")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    options = parse(parser)
    rows: list[dict[str, object]] = []
    for noise in NOISES:
        for make in (digits, synthetic):
            for epochs in map(int, options.epochs.split(",")):
                each = [measured(*make(seed), noise, epochs, seed) for seed in map(int, options.seeds.split(","))]
                means = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
                rows.append({"examples": make.__name__, "noise": noise, "epochs": epochs, **means})
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
