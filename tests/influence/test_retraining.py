"""The sign of influence, by retraining: removing opponents lowers the loss of what they harm, proponents raise it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.influence.scores import influence
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.model.factory import load_model
from fsdtool.summary.reader import load

REMOVED, QUERIES = 10, 20
SEEDS = 6
STEPS = 150


def digits(sample_data, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(sample_data / f"{part}.npz") as file:
        return torch.from_numpy(file["x"])[:, None].float() / 255, torch.from_numpy(file["y"])


def retrained(sample_data, x, y, seed: int) -> nn.Module:
    """The sample MLP trained for a while, from the same start and in the same way for the same seed."""
    torch.manual_seed(seed)
    network = load_model(f"{sample_data}/model.py:mlp")
    optimizer = torch.optim.Adam(network.parameters(), 3e-3, weight_decay=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["opponents", "proponents"])
def test_removing_the_strongest_moves_the_loss_as_the_sign_says(kind, sample_data, tmp_path):
    x, y = digits(sample_data, "train")
    test_x, test_y = digits(sample_data, "test")
    network = retrained(sample_data, x, y, seed=0)
    torch.save(network.state_dict(), tmp_path / "c.pt")
    summarize(
        model=network,
        checkpoint=read_checkpoint(tmp_path / "c.pt"),
        data=load_dataset(str(sample_data / "train.npz")),
        output=tmp_path / "s.h5",
    )
    with torch.no_grad():
        wrong = network(test_x).argmax(1) != test_y
    rows = (wrong if kind == "opponents" else ~wrong).nonzero()[:QUERIES, 0]
    np.savez(tmp_path / "q.npz", x=(test_x[rows, 0] * 255).byte().numpy(), y=test_y[rows].numpy())
    found = influence(load(tmp_path / "s.h5"), load_dataset(str(tmp_path / "q.npz")), mean=True, top=REMOVED)
    strongest = getattr(found, kind)[0][0]

    def loss_without(removed: torch.Tensor, seed: int) -> float:
        kept = torch.ones(len(x), dtype=torch.bool)
        kept[removed] = False
        network = retrained(sample_data, x[kept], y[kept], seed)
        with torch.no_grad():
            return float(cross_entropy(network(test_x[rows]), test_y[rows]))

    generator = torch.Generator().manual_seed(0)
    random = [torch.randperm(len(x), generator=generator)[:REMOVED] for _ in range(SEEDS)]
    changes = [loss_without(strongest, s) - loss_without(random[s], s) for s in range(SEEDS)]
    sign = -1 if kind == "opponents" else 1
    assert sign * np.mean(changes) > 2 * np.std(changes, ddof=1) / np.sqrt(SEEDS)
