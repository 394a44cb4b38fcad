"""What retraining says: the ground truth of the linear datamodeling score, and the score.

A network is trained on many random halves of the data, with several seeds, and each time the loss of every query is
noted.  An attribution tau (Q, N), the effect of removing example i on the loss of query q, foretells for a half the
loss -sum of tau[q] over the half.  Its score is the Spearman correlation over the halves of foretold and found (mean
over seeds), averaged over the queries (Park et al., TRAK, 2023).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import State, cached, train
from influence_methods import Problem
from torch import Tensor, nn
from vision_transformer import VisionTransformer

SUBSETS = 80
RECIPE = {"epochs": 15, "rate": 0.1, "decay": 1e-3}
SEED = 0


@dataclass(frozen=True)
class Truth:
    """What retraining on halves found: masks (halves, N) bool, query_loss (halves, seeds, Q) nats."""

    name: str
    problem: Problem
    masks: np.ndarray
    query_loss: np.ndarray

    def score(self, tau: np.ndarray) -> float:
        """The linear datamodeling score of an attribution (Q, N)."""
        foretold = -(self.masks.astype(np.float64) @ tau.T)
        return float(rank_correlation(foretold, self.query_loss.mean(1)).mean())

    def ceiling(self) -> float:
        """The score of one retraining against the mean of the others, over all choices of the one."""
        seeds = range(self.query_loss.shape[1])
        one = [rank_correlation(self.query_loss[:, s], np.delete(self.query_loss, s, 1).mean(1)) for s in seeds]
        return float(np.mean(one))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of each column of a and b (n, Q): (Q,).  Ties keep their order; losses hardly tie."""
    a, b = (v.argsort(0, kind="stable").argsort(0).astype(np.float64) for v in (a, b))
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


def mnist(data: Path, cache: Path) -> Truth:
    """The given ground truth: 3,000 digits, 100 halves, 3 seeds."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )  # fmt: skip

    with np.load(data / "mnist_test.npz") as file:
        queries = _digits(file["x"][:200]), torch.from_numpy(file["y"][:200]).long()
    return _given("MNIST MLP", data, "lds_mnist3000", "lds_mnist3000_mlp.pt", build, queries)


def vit(data: Path, cache: Path) -> Truth:
    """The given ground truth for a vision transformer: 2,000 digits, 40 halves, 2 seeds."""
    with np.load(data / "mnist_train.npz") as file:
        rows = slice(50000, 50150)
        queries = _digits(file["x"][rows]), torch.from_numpy(file["y"][rows]).long()
    return _given("MNIST ViT", data, "lds_vit_mnist", "lds_vit_mnist.pt", VisionTransformer, queries)


def _digits(x: np.ndarray) -> Tensor:
    return (torch.from_numpy(x).float().flatten(1) / 255 - 0.1307) / 0.3081


def _given(
    name: str, data: Path, truth: str, checkpoint: str, build: Callable[[], nn.Module], queries: tuple[Tensor, Tensor]
) -> Truth:
    with np.load(data / f"{truth}.npz") as file:
        targets = torch.from_numpy(file["y_train_noisy"]).long()
        masks = np.unpackbits(file["subset_masks"], axis=1)[:, : len(targets)].astype(bool)
        query_loss = file["query_loss"]
    with np.load(data / "mnist_train.npz") as file:
        x = _digits(file["x"][: len(targets)])
    reference = torch.load(data / checkpoint, weights_only=True)
    return Truth(name, Problem(build, reference, x, targets, *queries), masks, query_loss)


def convnet() -> nn.Module:
    """Three convolutions and a linear layer, small enough to train some hundred times."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
    )
    return net.to(memory_format=torch.channels_last)


def cifar(data: Path, cache: Path) -> Truth:
    """2,000 images with human labels; 80 halves, 2 seeds, trained here (a quarter of an hour) and kept in `cache`."""

    def inputs(x: np.ndarray) -> Tensor:
        return (torch.from_numpy(x).float().movedim(3, 1).contiguous() / 255 - 0.473) / 0.251

    with np.load(data / "cifar10n_train.npz") as file:
        x, y = inputs(file["x"][:2000]), torch.from_numpy(file["y_aggregate"][:2000]).long()
    with np.load(data / "cifar10_test.npz") as file:
        queries, query_targets = inputs(file["x"][:200]), torch.from_numpy(file["y"][:200]).long()
    generator = np.random.default_rng(SEED)
    masks = np.zeros((SUBSETS, len(x)), bool)
    for mask in masks:
        mask[generator.permutation(len(x))[: len(x) // 2]] = True

    def state(rows: Tensor, seed: int) -> tuple[nn.Module, State]:
        torch.manual_seed(seed)
        model = convnet()
        return model, train(model, x[rows], y[rows], seed=seed, **RECIPE)

    def loss(mask: np.ndarray, seed: int) -> State:
        model, _ = state(torch.from_numpy(mask).nonzero()[:, 0], seed)
        with torch.no_grad():
            return {"loss": nn.functional.cross_entropy(model(queries), query_targets, reduction="none")}

    recipe = {"case": "lds-cifar", "model": str(convnet()), "sum": float(x.double().sum()), **RECIPE}
    reference = cached(cache, recipe, lambda: state(torch.arange(len(x)), SEED)[1])
    found = []
    for i, mask in enumerate(masks):
        print(f"\rCIFAR CNN: half {i + 1} of {SUBSETS}", end="", file=sys.stderr)
        parts = [
            cached(cache / "lds-cifar", recipe | {"half": i, "seed": seed}, lambda m=mask, s=seed: loss(m, s))
            for seed in (1, 2)
        ]
        found.append(torch.stack([part["loss"] for part in parts]).numpy())
    print(file=sys.stderr)
    problem = Problem(convnet, reference, x, y, queries, query_targets)
    return Truth("CIFAR CNN", problem, masks, np.stack(found))
