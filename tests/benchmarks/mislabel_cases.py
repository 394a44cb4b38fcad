"""The cases of mislabel_accuracy.py: data with wrong labels, and the networks trained on it.

A network is trained in stages, one after another on the same labels, and judged after each: more of the wrong labels
are memorised from stage to stage.  All that was trained is kept by its recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import State, cached, mlp, standardized, state_of, train
from torch import Tensor, nn

SEED = 0
FOLDS = 5
UNIFORM_SEED = 1


@dataclass(frozen=True)
class Recipe:
    """How a case is trained: (epochs, rate, warmup) of each stage, and what `common.train` takes besides."""

    stages: tuple[tuple[int, float, float], ...]
    batch: int
    adam: bool
    decay: float = 0.0
    midway: tuple[int, ...] = ()  # epochs of the first stage after which a state is kept as well


MLP = Recipe(((5, 1e-3, 0.0), (10, 1e-3, 0.0), (45, 1e-3, 0.0)), batch=64, adam=True)
CNN = Recipe(((20, 0.05, 0.3), (30, 0.005, 0.0)), batch=128, adam=False, decay=5e-4, midway=(7, 14))
REGRESSION = Recipe(((100, 0.02, 0.0),), batch=64, adam=False, decay=1e-4)


@dataclass(frozen=True)
class Case:
    """A data set with given and true labels, and how its network is trained.

    inputs (n, ...) float32; given and truth (n,) int64, or (n, 1) float32 of a regression.  stages: after which
    stages of the recipe it is judged; folds: at which of them cross-validation is compared.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Tensor
    given: Tensor
    truth: Tensor
    recipe: Recipe
    cache: Path
    stages: tuple[int, ...]
    folds: tuple[int, ...]

    @property
    def classification(self) -> bool:
        return not self.given.is_floating_point()

    @property
    def wrong(self) -> Tensor:
        """Which labels differ from the truth (n,) bool."""
        return (self.given != self.truth).view(len(self.given), -1).any(1)

    def trajectory(self, stages: int) -> list[State]:
        """The states after each of the first stages."""
        return [trained.state for trained in self._all(stages)]

    def along(self, stages: int) -> list[State]:
        """The states of `trajectory` and those kept midway through the first stage."""
        first, *later = self._all(stages)
        return [*first.midway, first.state, *(trained.state for trained in later)]

    def margins(self, stages: int) -> Tensor:
        """Logit of the given label less the strongest other (n, epochs), as training saw each example."""
        return torch.cat([trained.margins for trained in self._all(stages)], 1)

    def _all(self, stages: int) -> list[Trained]:
        return self._train("all", torch.arange(len(self.inputs)), stages)

    def out_of_sample(self, stages: int) -> Tensor:
        """Outputs (n, O) for each example of a network that was trained on the other folds."""
        fold = np.random.default_rng(SEED).permutation(len(self.inputs)) % FOLDS
        outputs: Tensor | None = None
        for k in range(FOLDS):
            rest, own = (torch.from_numpy(np.flatnonzero(part)) for part in (fold != k, fold == k))
            found = self.outputs(self._train(f"without fold {k}", rest, stages)[-1].state, own)
            outputs = found.new_empty(len(self.inputs), found.shape[1]) if outputs is None else outputs
            outputs[own] = found
        return outputs

    def outputs(self, state: State, rows: Tensor | None = None) -> Tensor:
        """Outputs (n, O) of a state in eval mode."""
        model, x = self.model(state), self.inputs if rows is None else self.inputs[rows]
        with torch.no_grad():
            return torch.cat([model(part) for part in x.split(500)])

    def model(self, state: State) -> nn.Module:
        model = self.build()
        model.load_state_dict(state)
        return model.eval()

    def _train(self, what: str, rows: Tensor, stages: int) -> list[Trained]:
        x, y = self.inputs[rows], self.given[rows]
        recipe: dict[str, object] = {"case": self.name, "what": what, "model": str(self.build()), "seed": SEED}
        recipe |= {
            "sums": [float(x.double().sum()), float((y * (rows + 1).view(-1, *[1] * (y.dim() - 1))).double().sum())]
        }
        settings = {"batch": self.recipe.batch, "adam": self.recipe.adam, "decay": self.recipe.decay}
        recipe |= settings | {"keeps": "state, margins and midway"}
        found: list[Trained] = []
        for stage, (epochs, rate, warmup) in enumerate(self.recipe.stages[:stages]):

            def make(stage: int = stage, epochs: int = epochs, rate: float = rate, warmup: float = warmup) -> State:
                torch.manual_seed(SEED)
                model = self.build()
                if found:
                    model.load_state_dict(found[-1].state)
                log = _Log(y, epochs, self.recipe.midway if stage == 0 else ())
                schedule = {"epochs": epochs, "rate": rate, "warmup": warmup, "seed": SEED + stage}
                state = train(model, x, y, **schedule, **settings, watch=log)
                return {"state": state, "margins": log.margins, "midway": log.midway}

            kept = cached(self.cache, recipe | {"stages": self.recipe.stages[: stage + 1]}, make)
            found.append(Trained(**kept))
        return found


@dataclass(frozen=True)
class Trained:
    """What a stage of training leaves: its state, the margins (n, epochs) of the labels, the states kept midway."""

    state: State
    margins: Tensor
    midway: list[State]


class _Log:
    """Watches a training of labels (n,): their margins in each epoch, and the states after some of the epochs."""

    def __init__(self, given: Tensor, epochs: int, midway: tuple[int, ...]):
        self.given, self.margins = given, torch.zeros(len(given), epochs)
        self.midway: list[State] = []
        self._wanted, self._seen = midway, 0

    def __call__(self, epoch: int, model: nn.Module, rows: Tensor, f: Tensor) -> None:
        if not self.given.is_floating_point():
            own = self.given[rows, None]
            others = f.scatter(1, own, -torch.inf).amax(1)
            self.margins[rows, epoch] = f.gather(1, own)[:, 0] - others
        self._seen += len(rows)
        if epoch + 1 in self._wanted and self._seen == (epoch + 1) * len(self.given):
            self.midway.append(state_of(model))


# Networks


def convnet() -> nn.Module:
    """Six 3 x 3 convolutions with batch norm, pooled after each pair and over the image at the end, then one linear."""
    layers: list[nn.Module] = []
    before = 3
    for block, after in enumerate((32, 32, 64, 64, 128, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if block % 2 else []
        before = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return net.to(memory_format=torch.channels_last)


# Data


def mnist_images(data: Path, count: int, first: int = 0, part: str = "train") -> tuple[Tensor, Tensor]:
    """Images of MNIST (count, 784) in [0, 1] from the row `first` on, and their labels.  part: train or test."""
    with np.load(data / f"mnist_{part}.npz") as file:
        x = torch.from_numpy(file["x"][first : first + count]).float().flatten(1) / 255
        return x, torch.from_numpy(file["y"][first : first + count]).long()


def photographs(x: np.ndarray) -> Tensor:
    """Pictures (n, 3, 32, 32) of CIFAR-10 as the networks take them, from bytes (n, 32, 32, 3)."""
    return ((torch.from_numpy(x).float().movedim(3, 1) / 255 - 0.473) / 0.251).contiguous()


def uniform(truth: Tensor, rate: float, seed: int = UNIFORM_SEED) -> Tensor:
    """Labels of which a fraction is replaced by any other class."""
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(len(truth), generator=generator) < rate
    return torch.where(flip, (truth + torch.randint(1, 10, truth.shape, generator=generator)) % 10, truth)


CONFUSABLE = {4: 9, 3: 5, 7: 1}
ASYMMETRIC = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}  # of MNIST, after Patrini et al. 2017
PHOTOGRAPHS = {3: 5, 9: 1, 4: 7, 2: 0}  # of CIFAR-10, likewise: cat as dog, truck as car, deer as horse, bird as plane
NEXT = {c: (c + 1) % 10 for c in range(10)}  # every class is confused with one other


def renamed(truth: Tensor, rate: float, names: dict[int, int], seed: int = UNIFORM_SEED) -> Tensor:
    """Labels of which a fraction of some classes is replaced by another class each."""
    flip = torch.rand(len(truth), generator=torch.Generator().manual_seed(seed)) < rate
    given = truth.clone()
    for before, after in names.items():
        given[(truth == before) & flip] = after
    return given


def nearest(x: Tensor, truth: Tensor, rate: float, seed: int = UNIFORM_SEED) -> Tensor:
    """Labels of which the fraction nearest a boundary is replaced by the other class there.

    The boundaries are those of a small network that was trained on the true labels for two epochs: x (n, d).
    """
    torch.manual_seed(seed)
    probe = mlp(x.shape[1], 64, 10)
    train(probe, x, truth, epochs=2, rate=1e-3, adam=True, seed=seed)
    with torch.no_grad():
        own = truth[:, None]
        f = torch.log_softmax(probe(x), 1)
        beyond = f.scatter(1, own, -torch.inf).max(1)
    closest = (f.gather(1, own)[:, 0] - beyond.values).abs().argsort()[: int(rate * len(truth))]
    given = truth.clone()
    given[closest] = beyond.indices[closest]
    return given


def long_tailed(truth: Tensor, factor: float) -> Tensor:
    """Rows such that class 9 keeps one in `factor` of its examples, class 0 all, the others in between."""
    keep = factor ** (-truth.double() / 9)
    return (torch.rand(len(truth), generator=torch.Generator().manual_seed(SEED)) < keep).nonzero()[:, 0]


def mnist(data: Path, cache: Path, name: str, noise: Callable[[Tensor], Tensor], stages: tuple[int, ...]) -> Case:
    x, y = mnist_images(data, 10000)
    return Case(name, lambda: mlp(784, 256, 128, 10), x, noise(y), y, MLP, cache, stages, folds=stages)


def dropping(data: Path, cache: Path, seed: int) -> Case:
    """The wrong labels of dattri (Deng et al. 2024): 5,000 digits, one in ten wrong, 20 epochs with dropout."""
    x, y = mnist_images(data, 5000)
    x = (x - 0.1307) / 0.3081

    def build() -> nn.Module:
        hidden = [[nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.1)] for a, b in ((784, 128), (128, 64))]
        return nn.Sequential(*hidden[0], *hidden[1], nn.Linear(64, 10))

    recipe = Recipe(((20, 0.01, 0.0),), batch=64, adam=False)
    return Case("MNIST as in dattri", build, x, uniform(y, 0.1, seed), y, recipe, cache, stages=(1,), folds=())


def unequal(data: Path, cache: Path) -> Case:
    x, y = mnist_images(data, 20000)
    rows = long_tailed(y, 10)
    x, y = x[rows], y[rows]
    given, name = uniform(y, 0.1), "MNIST unequal classes, 10 % uniform"
    return Case(name, lambda: mlp(784, 256, 128, 10), x, given, y, MLP, cache, stages=(2, 3), folds=(2, 3))


def cifar(data: Path, cache: Path, labels: str, folds: tuple[int, ...] = ()) -> Case:
    """10,000 images with human labels: `labels` is random1, aggregate or worst."""
    with np.load(data / "cifar10n_train.npz") as file:
        x = photographs(file["x"])
        given, truth = (torch.from_numpy(file[f"y_{name}"]).long() for name in (labels, "clean"))
    return Case(f"CIFAR-10N {labels}", convnet, x, given, truth, CNN, cache, (1, 2), folds)


def uci(data: Path, cache: Path, name: str, file: str) -> Case:
    """A table, standardized; one target in twenty is replaced by another value that occurs."""
    x, y = standardized(data / file)
    values, place = y[:, 0].unique(return_inverse=True)
    generator = torch.Generator().manual_seed(UNIFORM_SEED)
    chosen = torch.randperm(len(y), generator=generator)[: len(y) // 20]
    step = torch.randint(1, len(values), chosen.shape, generator=generator)
    given = y.clone()
    given[chosen, 0] = values[(place[chosen] + step) % len(values)]
    name = f"UCI {name}, 5 % corrupted"
    return Case(name, lambda: mlp(x.shape[1], 50, 50, 1), x, given, y, REGRESSION, cache, stages=(1,), folds=(1,))
