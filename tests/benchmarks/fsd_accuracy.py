"""How close the function space distance from a summary comes to the true one, over checkpoints from real events.

    python tests/benchmarks/fsd_accuracy.py --data FOLDER [--cache FOLDER] [--only uci,mnist,cifar] [--csv FILE]

For each case a network is trained and summarized, and other checkpoints of it arise: training goes on, on other data,
on a permuted task, on some of the classes, with another seed; weights are pruned, disturbed, quantized.  The table
compares estimates of each one's distance with the mean over the data: Spearman correlation over the checkpoints, median
ratio of estimate to truth, and the bytes that the estimate keeps besides the weights.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import (
    State,
    cached,
    mlp,
    noisy,
    options_of,
    parse,
    print_table,
    pruned,
    quantized,
    spearman,
    standardized,
    train,
)
from fsd_baselines import Baseline, Quadratics, published
from torch import Tensor, nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.data.source import DataSource
from fsdtool.fitting.run import summarize
from fsdtool.fsd.drift import distances
from fsdtool.laftr.distance_forms import output_hessian
from fsdtool.laftr.metrics import measure
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.summary.inspection import part_sizes
from fsdtool.summary.reader import Summary, load

SEED = 0


@dataclass(frozen=True)
class Case:
    """A trained network, its data, and other checkpoints by name.

    inputs (n, ...) float32, targets (n,) int64 or (n, 1) float32; `samples` pseudo-samples for sampled forms (None: the
    default); `bytes_each` what storing one input costs.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    reference: State
    others: dict[str, State]
    bytes_each: int
    samples: int | None = None
    mixtures: tuple[int | None, ...] = (1, None, 16, 64)  # components; None is one per class

    @property
    def classification(self) -> bool:
        return not self.targets.is_floating_point()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("squared_error", "kl") if self.classification else ("squared_error",)


# The cases


def convnet(width: int = 16, classes: int = 10) -> nn.Module:
    """Six 3 x 3 convolutions with batch norm, pooled twice, averaged."""
    layers: list[nn.Module] = []
    before = 3
    for block, after in enumerate((width, width, 2 * width, 2 * width, 4 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if block in (1, 3) else []
        before = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    return net.to(memory_format=torch.channels_last)


def damaged(state: State) -> dict[str, State]:
    """Checkpoints of `state` that need no training."""
    found = {f"pruned {fraction:.0%}": pruned(state, fraction) for fraction in (0.2, 0.4, 0.6)}
    found |= {f"noise {size}": noisy(state, size, seed=i) for i, size in enumerate((0.02, 0.05, 0.1, 0.2, 0.4))}
    return found | {f"{bits} bits": quantized(state, bits) for bits in (8, 6, 4)}


class Trainer:
    """Trains the states of one case, each kept by its recipe."""

    def __init__(self, folder: Path, case: str, build: Callable[[], nn.Module], inputs: Tensor, targets: Tensor):
        self.folder, self.case, self.build, self.inputs, self.targets = folder, case, build, inputs, targets

    def state(
        self,
        what: str,
        start: State | None,
        epochs: int,
        rate: float,
        *,
        rows: Tensor | None = None,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        seed: int = SEED,
    ) -> State:
        """A state trained from `start` (None: at random) on some rows, other inputs or other targets."""
        inputs = self.inputs if inputs is None else inputs
        targets = self.targets if targets is None else targets
        rows = torch.arange(len(inputs)) if rows is None else rows
        sums = [float(part.double().sum()) for part in (inputs[rows], targets[rows], *(start or {}).values())]

        def make() -> State:
            torch.manual_seed(seed)
            model = self.build()
            if start is not None:
                model.load_state_dict(start)
            return train(model, inputs[rows], targets[rows], epochs=epochs, rate=rate, seed=seed)

        recipe = {"case": self.case, "what": what, "epochs": epochs, "rate": rate, "seed": seed, "sums": sums}
        return cached(self.folder, recipe | {"model": str(self.build())}, make)


def uci(data: Path, cache: Path, name: str, file: str) -> Case:
    """A regression: 70 % of the table is the data, the rest is what training goes on with."""
    x, y = standardized(data / file)
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = x[order], y[order]
    cut = int(0.7 * len(x))
    (x, later_x), (y, later_y) = x.split([cut, len(x) - cut]), y.split([cut, len(y) - cut])

    def build() -> nn.Module:
        return mlp(x.shape[1], 50, 50, 1)

    trainer = Trainer(cache, name, build, x, y)
    reference = trainer.state("reference", None, 100, 0.02)
    generator = torch.Generator().manual_seed(SEED)
    others = damaged(reference)
    shuffled = x[:, torch.randperm(x.shape[1], generator=generator)]
    for epochs in (1, 5, 20):
        later = trainer.state("other data", reference, epochs, 0.01, inputs=later_x, targets=later_y)
        others[f"other data, {epochs} epochs"] = later
        others[f"features permuted, {epochs} epochs"] = trainer.state(
            "permuted", reference, epochs, 0.01, inputs=shuffled
        )
        others[f"another seed, {epochs} epochs"] = trainer.state("seed", reference, epochs, 0.02, seed=epochs)
        others[f"targets turned, {epochs} epochs"] = trainer.state("turned", reference, epochs, 0.005, targets=-y)
        low = (y[:, 0] < y.median()).nonzero()[:, 0]
        others[f"low targets, {epochs} epochs"] = trainer.state("low", reference, epochs, 0.01, rows=low)
    return Case(name, build, x, y, reference, others, 4 * x.shape[1], mixtures=(1, 16, 64))


def classifier_events(
    trainer: Trainer, reference: State, later: tuple[Tensor, Tensor], rate: float
) -> dict[str, State]:
    """Other checkpoints of a classifier: further training on the rows `later`, permuted tasks, five classes."""
    generator = torch.Generator().manual_seed(SEED)
    x, y = trainer.inputs, trainer.targets
    pixels = torch.randperm(x[0, 0].numel() if x.dim() == 4 else x.shape[1], generator=generator)
    permuted = x.flatten(2)[:, :, pixels].view_as(x) if x.dim() == 4 else x[:, pixels]
    labels = torch.randperm(10, generator=generator)[y]
    five = (y < 5).nonzero()[:, 0]
    others = damaged(reference)
    for epochs, factor in ((1, 0.2), (1, 1.0), (3, 1.0)):
        tail, r = f", {epochs} epochs at {factor}", factor * rate
        others["other data" + tail] = trainer.state("other", reference, epochs, r, inputs=later[0], targets=later[1])
        others["pixels permuted" + tail] = trainer.state("pixels", reference, epochs, r, inputs=permuted)
        others["five classes" + tail] = trainer.state("five", reference, epochs, r, rows=five)
        others["another seed" + tail] = trainer.state("seed", reference, epochs, r, seed=epochs)
    others["labels permuted"] = trainer.state("labels", reference, 1, 0.1 * rate, targets=labels)
    return others


def mnist(data: Path, cache: Path) -> Case:
    """5,000 images of digits; training goes on with the next 5,000."""
    with np.load(data / "mnist_train.npz") as file:
        x = (torch.from_numpy(file["x"][:10000]).float().flatten(1) / 255 - 0.1307) / 0.3081
        y = torch.from_numpy(file["y"][:10000])

    def build() -> nn.Module:
        return mlp(784, 128, 64, 10)

    trainer = Trainer(cache, "MNIST", build, x[:5000], y[:5000])
    reference = trainer.state("reference", None, 15, 0.05)
    others = classifier_events(trainer, reference, (x[5000:], y[5000:]), rate=0.02)
    return Case("MNIST", build, x[:5000], y[:5000], reference, others, 784)


def cifar(data: Path, cache: Path) -> Case:
    """3,000 images with human labels; training goes on with the next 3,000."""
    with np.load(data / "cifar10n_train.npz") as file:
        x = (torch.from_numpy(file["x"][:6000]).float().movedim(3, 1) / 255 - 0.473) / 0.251
        y = torch.from_numpy(file["y_aggregate"][:6000]).long()
    trainer = Trainer(cache, "CIFAR-10N", convnet, x[:3000], y[:3000])
    reference = trainer.state("reference", None, 15, 0.05)
    others = classifier_events(trainer, reference, (x[3000:], y[3000:]), rate=0.02)
    return Case("CIFAR-10N", convnet, x[:3000], y[:3000], reference, others, 3072, samples=1024)


# The methods


@dataclass(frozen=True)
class Estimate:
    """What one method says of every other checkpoint, from `size` bytes."""

    method: str
    distances: list[float]
    size: int


def true_distances(case: Case, summary: Summary, rows: Tensor | None = None) -> dict[str, list[float]]:
    """For each metric the means of rho over the data, or some rows of it, in float64."""
    x, graph = case.inputs if rows is None else case.inputs[rows], summary.identity.graph
    totals = {metric: [0.0] * len(case.others) for metric in case.metrics}
    with torch.no_grad():
        for part in x.split(1000):
            f0 = graph.run(case.reference, part)
            for i, state in enumerate(case.others.values()):
                f1 = graph.run(state, part)
                for metric, total in totals.items():
                    total[i] += float(measure(metric, f0, f1).sum()) / len(x)
    return totals


def summaries(case: Case, folder: Path, records: bool = False) -> Iterator[Summary]:
    """A summary for each mixture, with or without records of single examples."""
    model, data = case.build(), _source(case, folder)
    for components in case.mixtures:
        path = folder / f"{components}.h5"
        reference = Checkpoint("reference", "", case.reference, ())
        summarize(
            model=model, checkpoint=reference, data=data, output=path, components=components, records=records, seed=SEED
        )
        yield load(path)


def _source(case: Case, folder: Path) -> DataSource:
    path = folder / "data.npz"
    np.savez(path, x=case.inputs.numpy(), y=case.targets.numpy())
    return load_dataset(str(path), task="classification" if case.classification else "regression")


def laftr(case: Case, summary: Summary, metric: str) -> Iterator[Estimate]:
    """LAFTR by fsdtool in all its forms, and as published where that has a closed form."""
    others = [Checkpoint(name, "", state, ()) for name, state in case.others.items()]
    mixture, size = _mixture(summary), statistics_bytes(summary)
    second_order = {"kl": "kl2"}.get(metric, metric)
    closed = summary.identity.graph.is_chain()
    if closed:
        found = distances(summary, others, metric=second_order, form="closed")
        yield Estimate(f"LAFTR, {mixture}, closed form", found.distances, size)
    every = closed or summary.statistics.kind != "cluster"
    for gates in ("moving", "coupled", "independent") if every else ("moving",):
        found = distances(summary, others, metric=metric, form="sampled", gates=gates, samples=case.samples, seed=SEED)
        yield Estimate(f"LAFTR, {mixture}, {gates} gates", found.distances, size)
    if closed and len(summary.statistics.names) <= 10:
        statistics = summary.statistics.to(dtype=torch.float64)
        hessian = output_hessian(statistics, second_order, summary.identity.graph.outputs)
        yield _estimate(case, published(summary.identity.graph, case.reference, statistics, hessian, size))


def _mixture(summary: Summary) -> str:
    return "per class" if summary.statistics.kind == "class" else f"K = {len(summary.statistics.names)}"


def statistics_bytes(summary: Summary) -> int:
    """Bytes of the file's `statistics` part."""
    return sum(size for name, size in part_sizes(summary.path).items() if name.startswith("statistics"))


def _estimate(case: Case, baseline: Baseline) -> Estimate:
    return Estimate(baseline.name, [baseline.distance(state) for state in case.others.values()], baseline.size)


def others_of_the_field(case: Case, summary: Summary, metric: str) -> Iterator[Estimate]:
    """The quadratic forms."""
    quadratics = Quadratics(summary.identity.graph, case.reference, case.inputs, metric)
    yield _estimate(case, quadratics.diagonal())
    yield _estimate(case, quadratics.kronecker())
    if summary.identity.graph.is_chain():  # of a convolutional net it would take longer than all else
        yield _estimate(case, quadratics.full())


def stored_subset(case: Case, summary: Summary, size: int) -> dict[str, Estimate]:
    """For each metric the mean over as many random inputs as fit into `size` bytes."""
    count = min(max(size // case.bytes_each, 1), len(case.inputs))
    rows = torch.randperm(len(case.inputs), generator=torch.Generator().manual_seed(SEED))[:count]
    found = true_distances(case, summary, rows)
    name = f"random subset, {count} inputs"
    return {metric: Estimate(name, values, count * case.bytes_each) for metric, values in found.items()}


def compare(case: Case) -> Iterator[dict[str, object]]:
    """The rows of one case."""
    with tempfile.TemporaryDirectory() as folder:
        opened = list(summaries(case, Path(folder)))
        equal = statistics_bytes(opened[case.mixtures.index(None if case.classification else 1)])
        subset = stored_subset(case, opened[0], equal)
        for metric, truth in true_distances(case, opened[0]).items():
            found = [estimate for summary in opened for estimate in laftr(case, summary, metric)]
            found += others_of_the_field(case, opened[0], metric)
            found.append(subset[metric])
            for estimate in found:
                ratios = np.asarray(estimate.distances) / np.asarray(truth)
                yield {
                    "case": case.name,
                    "metric": metric,
                    "method": estimate.method,
                    "spearman": spearman(estimate.distances, truth),
                    "median ratio": float(np.median(ratios)),
                    "lowest": float(ratios.min()),
                    "highest": float(ratios.max()),
                    "bytes": estimate.size,
                }


CASES: dict[str, tuple[Callable[[Path, Path], Case], ...]] = {
    "uci": (
        lambda data, cache: uci(data, cache, "concrete", "uci_concrete.csv"),
        lambda data, cache: uci(data, cache, "energy", "uci_energy.csv"),
        lambda data, cache: uci(data, cache, "wine", "uci_wine_quality_red.csv"),
    ),
    "mnist": (mnist,),
    "cifar": (cifar,),
}


def main() -> None:
    options = parse(options_of(__doc__, CASES))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for group in options.only.split(","):
            for make in CASES[group]:
                started = time.perf_counter()
                rows += compare(make(options.data, cache))
                print(f"{rows[-1]['case']}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
