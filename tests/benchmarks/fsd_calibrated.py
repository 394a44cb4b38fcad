"""Whether the function space distance and the error that the tool states for it hold, where its model of the data is
tried.

    python tests/benchmarks/fsd_calibrated.py --data FOLDER [--cache FOLDER] [--only noisy,vit,uci,cifar,tables] [--csv
    FILE]

Networks that memorised wrong labels, a vision transformer, regressions, a convolutional net, tables with heavy tails
through batch norm; of each 21 to 26 other checkpoints, among them further training on clean images, corrected labels
and new data.
A row is a case, a mixture and a metric: the median and the largest |log(estimate / exact)| over the checkpoints, the
share of them whose exact distance lies within estimate * (1 +- 2 model_error), the median model_error, and Spearman's
correlation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import State, mlp, options_of, parse, print_table, spearman
from fsd_accuracy import SEED, Case, Trainer, convnet, damaged, summaries, true_distances, uci
from torch import Tensor, nn
from vision_transformer import VisionTransformer

from fsdtool.fsd.drift import distances
from fsdtool.model.checkpoint import Checkpoint

CLASSES = 10


def events(
    trainer: Trainer, reference: State, clean: tuple[Tensor, Tensor], truth: Tensor, rate: float
) -> dict[str, State]:
    """Other checkpoints of a classifier; `truth` (n,) are the right labels of its data, `clean` new data."""
    x, y = trainer.inputs, trainer.targets
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randperm(x[0, 0].numel() if x.dim() == 4 else x.shape[1], generator=generator)
    permuted = x.flatten(2)[:, :, pixels].view_as(x) if x.dim() == 4 else x[:, pixels]
    others = damaged(reference)
    for epochs, factor in ((1, 0.2), (1, 1.0), (3, 1.0)):
        tail, r = f", {epochs} epochs at {factor}", factor * rate
        others["new data" + tail] = trainer.state("new", reference, epochs, r, inputs=clean[0], targets=clean[1])
        others["corrected labels" + tail] = trainer.state("corrected", reference, epochs, r, targets=truth)
        others["the same data" + tail] = trainer.state("same", reference, epochs, r, seed=epochs)
    others["clean part"] = trainer.state("clean", reference, 1, rate, rows=(y == truth).nonzero()[:, 0])
    others["five classes"] = trainer.state("five", reference, 1, rate, rows=(truth < CLASSES // 2).nonzero()[:, 0])
    others["pixels permuted"] = trainer.state("pixels", reference, 1, rate, inputs=permuted)
    return others


def noisy_mnist(data: Path, cache: Path, epochs: int, first: int = 0, seed: int = 1) -> Case:
    """10,000 digits of which 10 % carry a wrong label; the next 10,000, clean, are the new data."""
    with np.load(data / "mnist_train.npz") as file:
        rows = slice(first, first + 20000)
        x = (torch.from_numpy(file["x"][rows]).float().flatten(1) / 255 - 0.1307) / 0.3081
        truth = torch.from_numpy(file["y"][rows])
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(10000, generator=generator) < 0.10
    shifted = (truth[:10000] + torch.randint(1, CLASSES, (10000,), generator=generator)) % CLASSES
    y = torch.where(flip, shifted, truth[:10000])

    def build() -> nn.Module:
        return mlp(784, 256, 128, CLASSES)

    name = f"MNIST 10 % wrong, {epochs} epochs"
    trainer = Trainer(cache, f"{name} {first} {seed}", build, x[:10000], y)
    reference = trainer.state("reference", None, epochs, 0.05)
    others = events(trainer, reference, (x[10000:], truth[10000:]), truth[:10000], rate=0.02)
    return Case(name, build, x[:10000], y, reference, others, 784, mixtures=(None, 64, 256))


def digits_transformer(data: Path, cache: Path) -> Case:
    """2,000 digits of which 10 % carry a wrong label, for a given transformer; the next 2,000 are the new data."""
    with np.load(data / "mnist_train.npz") as file, np.load(data / "lds_vit_mnist.npz") as given:
        x = (torch.from_numpy(file["x"][:4000]).float().flatten(1) / 255 - 0.1307) / 0.3081
        y, truth = torch.from_numpy(given["y_train_noisy"]).long(), torch.from_numpy(file["y"][:4000]).long()
    reference = torch.load(data / "lds_vit_mnist.pt", weights_only=True)
    trainer = Trainer(cache, "MNIST ViT", VisionTransformer, x[:2000], y)
    others = events(trainer, reference, (x[2000:], truth[2000:]), truth[:2000], rate=0.02)
    return Case("MNIST ViT", VisionTransformer, x[:2000], y, reference, others, 784, mixtures=(None, 40))


def noisy_cifar(data: Path, cache: Path, first: int = 0, labels: str = "y_aggregate") -> Case:
    """3,000 images with human labels; the next 3,000, with right labels, are the new data."""
    with np.load(data / "cifar10n_train.npz") as file:
        rows = slice(first, first + 6000)
        x = (torch.from_numpy(file["x"][rows]).float().movedim(3, 1) / 255 - 0.473) / 0.251
        y, truth = (torch.from_numpy(file[key][rows]).long() for key in (labels, "y_clean"))
    # the name of the other benchmark's case, which trains the same reference
    trainer = Trainer(cache, "CIFAR-10N" if not first else f"CIFAR-10N {first}", convnet, x[:3000], y[:3000])
    reference = trainer.state("reference", None, 15, 0.05)
    others = events(trainer, reference, (x[3000:], truth[3000:]), truth[:3000], rate=0.02)
    return Case("CIFAR-10N", convnet, x[:3000], y[:3000], reference, others, 3072, mixtures=(None, 64, 256))


def _columns(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    z = rng.normal(size=(n, 12)) @ (np.eye(12) + 0.3 * rng.normal(size=(12, 12)))
    if kind == "lognormal":
        return np.exp(1.5 * z / z.std(0))
    if kind == "counts":
        return rng.poisson(np.exp(np.minimum(1.2 * z / z.std(0), 5)))
    # as a table comes from a database: times, sums of money, flags, a constant, small fractions
    return np.c_[
        1.7e9 + 1e6 * z[:, 0], np.exp(3 * z[:, 1:4] / z[:, 1:4].std(0)), z[:, 4:6] > 1, np.ones(n), 1e-6 * z[:, 6:9]
    ]


def table(cache: Path, kind: str, seed: int = 0) -> Case:
    """20,000 rows, more than a summary keeps, for a network that begins with batch norm; 5,000 more are new data."""
    rng = np.random.default_rng(seed)
    raw = _columns(kind, 25000, rng)
    scaled = (np.argsort(np.argsort(raw, 0), 0) - 12500) / 7500  # the target depends on ranks, whatever the tails
    score = scaled[:, :3].sum(1) + np.abs(scaled[:, 3]) - np.abs(scaled[:, 4])
    y = torch.from_numpy(np.digitize(score + 0.3 * rng.normal(size=25000), np.quantile(score, (0.4, 0.7)))).long()
    x = torch.from_numpy(raw.astype(np.float32))

    def build() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(x.shape[1]), *mlp(x.shape[1], 64, 32, 3))

    trainer = Trainer(cache, f"{kind} {seed}", build, x[:20000], y[:20000])
    reference = trainer.state("reference", None, 8, 0.05)
    others = damaged(reference)
    permuted = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    for epochs, factor in ((1, 0.1), (1, 1.0), (3, 1.0)):
        tail, r = f", {epochs} epochs at {factor}", 0.02 * factor
        others["new data" + tail] = trainer.state("new", reference, epochs, r, inputs=x[20000:], targets=y[20000:])
        others["the same data" + tail] = trainer.state("same", reference, epochs, r, seed=epochs)
        others["two classes" + tail] = trainer.state("two", reference, epochs, r, rows=(y[:20000] < 2).nonzero()[:, 0])
    others["features permuted"] = trainer.state("permuted", reference, 1, 0.02, inputs=x[:20000, permuted])
    return Case(
        f"table, {kind}", build, x[:20000], y[:20000], reference, others, 4 * x.shape[1], mixtures=(None, 64, 256)
    )


def compare(case: Case) -> Iterator[dict[str, object]]:
    """The rows of one case."""
    others = [Checkpoint(name, "", state, ()) for name, state in case.others.items()]
    with tempfile.TemporaryDirectory() as folder:
        truth: dict[str, list[float]] = {}
        for records, mixtures in ((True, case.mixtures), (False, case.mixtures[:1])):
            for summary in summaries(replace(case, mixtures=mixtures), Path(folder), records=records):
                truth = truth or true_distances(case, summary)
                for metric, exact in truth.items():
                    found = distances(summary, others, metric=metric, seed=SEED).found
                    yield _row(case, len(summary.statistics.names), metric, np.asarray(exact), found)


def _row(case: Case, components: int, metric: str, exact: np.ndarray, found: list) -> dict[str, object]:
    estimate = np.asarray([d.distance for d in found])
    error = np.asarray([d.model_error for d in found])
    off = np.abs(np.log(estimate / exact))
    return {
        "case": case.name,
        "K": components,
        "form": found[0].form,
        "metric": metric,
        "median off": float(np.median(off)),
        "largest off": float(off.max()),
        "of": found[int(off.argmax())].checkpoint,
        "within": float(np.mean(np.abs(exact - estimate) <= 2 * error * estimate)),
        "model error": float(np.median(error)),
        "spearman": spearman(list(estimate), list(exact)),
    }


def _uci(name: str, file: str) -> Callable[[Path, Path], Case]:
    return lambda data, cache: replace(uci(data, cache, name, file), mixtures=(1, 64, 256))


CASES: dict[str, tuple[Callable[[Path, Path], Case], ...]] = {
    "noisy": tuple(lambda data, cache, epochs=epochs: noisy_mnist(data, cache, epochs) for epochs in (15, 60)),
    "vit": (digits_transformer,),
    "uci": (
        _uci("concrete", "uci_concrete.csv"),
        _uci("energy", "uci_energy.csv"),
        _uci("wine", "uci_wine_quality_red.csv"),
    ),
    "cifar": (noisy_cifar,),
    "tables": tuple(lambda data, cache, kind=kind: table(cache, kind) for kind in ("lognormal", "counts", "database")),
}


def main() -> None:
    options = parse(options_of(__doc__, CASES))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for group in options.only.split(","):
            for make in CASES[group]:
                rows += compare(make(options.data, cache))
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
