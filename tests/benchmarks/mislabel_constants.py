"""How much the constants of find-mislabeled matter: each of them halved and doubled.

    python tests/benchmarks/mislabel_constants.py [--seeds 1,2,3] [--threads N] [--csv FILE]

An MLP memorises the digits of sample_data with noise on the pixels, so that classes overlap.  A tenth of the labels is
wrong at random, or a fifth is the next class.  A row has one constant: the average precision with half of its value,
with its value and with twice its value, and likewise the error of the estimated share of wrong labels; means over both
kinds of wrong labels and the seeds.  Constants of new labels are measured on the test digits, a twentieth of whose
labels is wrong at random.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from common import mlp, parse, print_table, train
from influence_methods import Problem, source, summarized

from fsdtool.mislabel.find import Mislabeled, find_mislabeled
from fsdtool.mislabel.new_labels import score_new_labels
from fsdtool.summary.reader import Summary

SAMPLE = Path(__file__).parents[2] / "sample_data"
CLASSES, WIDTHS, EPOCHS = 10, (64, 64, 32, 10), 60
PIXEL_NOISE = 0.3  # deviation; pixels are in [0, 1]
PACKAGE = "fsdtool.mislabel."
# What a constant changes: the evidence in a summary, the scores of its labels, or the scores of new labels.
CONSTANTS = {
    "evidence": ("class_gaussians.OWN_SHARE", "class_gaussians.RIVALS", "label_evidence.LEAST_SAMPLE_WEIGHT"),
    "scores": (
        *("noise.confusion.BY_HEART", "noise.confusion.LEAST_INFORMATION", "noise.confusion.LOOSE"),
        *("noise.confusion.BIAS_SMOOTHING", "noise.confusion.FIRST_RATE", "noise.posterior.NEAR"),
        *("noise.posterior.SLOPE", "noise.unmixing.FREEDOM", "noise.unmixing.TEMPER", "noise.unmixing.STEPS"),
        *("noise.unmixing.LOOSE", "noise.unmixing.FIRST_RATE", "noise.verdict.EACH", "noise.verdict.PRIOR"),
    ),
    "new labels": (
        *("noise.stacking.FIRST", "noise.stacking.FIRST_RATE", "noise.stacking.LEAST_OUTPUTS"),
        *("noise.stacking.LEAST_NEAR", "noise.stacking.FAINT"),
    ),
}


@dataclass(frozen=True)
class Digits:
    """A network that memorised wrong labels, its summary, and new labels some of which are wrong."""

    problem: Problem
    wrong: np.ndarray
    new: np.ndarray
    new_wrong: np.ndarray
    folder: Path

    def summary(self) -> Summary:
        return summarized(self.problem, self.folder, record_bytes=64)


def digits(kind: str, seed: int, folder: Path) -> Digits:
    """The case of one noise and seed."""
    rng = np.random.default_rng(seed)
    images = {name: np.load(SAMPLE / f"{name}.npz") for name in ("train", "test")}
    x, new = (torch.from_numpy(images[name]["x"].reshape(len(images[name]["x"]), -1)).float() for name in images)
    table = np.genfromtxt(SAMPLE / "truth.csv", delimiter=",", names=True, dtype=int)
    true, new_true = table["true_label"], images["test"]["y"].astype(int)
    flip = rng.random(len(true)) < (0.1 if kind == "uniform" else 0.2)
    step = rng.integers(1, CLASSES, len(true)) if kind == "uniform" else 1
    given = np.where(flip, (true + step) % CLASSES, true)
    new_flip = rng.random(len(new_true)) < 0.05
    new_given = np.where(new_flip, (new_true + rng.integers(1, CLASSES, len(new_true))) % CLASSES, new_true)
    torch.manual_seed(seed)
    x, new = (part / x.max() + PIXEL_NOISE * torch.randn(part.shape) for part in (x, new))
    targets = torch.from_numpy(given)
    state = train(mlp(*WIDTHS), x, targets, epochs=EPOCHS, rate=0.05, decay=0.0, seed=seed)
    problem = Problem(lambda: mlp(*WIDTHS), state, x, targets, new, torch.from_numpy(new_given))
    return Digits(problem, given != true, new_given, new_flip, folder)


@contextmanager
def scaled(constant: str, factor: float) -> Iterator[None]:
    """The constant times the factor, whole numbers rounded."""
    name, _, attribute = (PACKAGE + constant).rpartition(".")
    module = import_module(name)
    value = getattr(module, attribute)
    one = lambda v: max(round(v * factor), 1) if isinstance(v, int) else v * factor  # noqa: E731
    setattr(module, attribute, tuple(map(one, value)) if isinstance(value, tuple) else one(value))
    try:
        yield
    finally:
        setattr(module, attribute, value)


def average_precision(wrong: np.ndarray, score: np.ndarray) -> float:
    """Mean precision at each wrong example (N,) in the order of the scores (N,)."""
    hits = wrong[np.argsort(-score, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def measured(case: Digits, kind: str, kept: Summary) -> tuple[float, float]:
    """The average precision, and the error of the estimated share."""
    found: Mislabeled
    if kind == "new labels":
        queries = source(case.problem, case.folder / "new.npz", case.problem.queries, case.problem.query_targets)
        found, wrong = score_new_labels(kept, queries), case.new_wrong
    else:
        found, wrong = find_mislabeled(case.summary() if kind == "evidence" else kept), case.wrong
    return average_precision(wrong, found.score), abs((found.noise_rate or 0.0) - float(wrong.mean()))


def rows(cases: list[tuple[Digits, Summary]]) -> Iterator[dict[str, object]]:
    """A row for each constant."""
    for kind, constants in CONSTANTS.items():
        plain = [measured(case, kind, kept) for case, kept in cases]
        for constant in constants:
            each = {1.0: plain}
            for factor in (0.5, 2.0):
                with scaled(constant, factor):
                    each[factor] = [measured(case, kind, kept) for case, kept in cases]
            yield {"constant": constant, "changes": kind} | {
                f"{name} {word}": float(np.mean([values[place] for values in each[factor]]))
                for place, name in enumerate(("precision", "share off by"))
                for factor, word in ((0.5, "halved"), (1.0, "as it is"), (2.0, "doubled"))
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3", help="of noise and training, separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--csv", type=Path, help="write the table to this file as well")
    options = parse(parser)
    with tempfile.TemporaryDirectory() as temporary:
        cases = []
        for kind in ("uniform", "pairs"):
            for seed in map(int, options.seeds.split(",")):
                folder = Path(temporary) / f"{kind}{seed}"
                folder.mkdir()
                case = digits(kind, seed, folder)
                cases.append((case, case.summary()))
        print_table(list(rows(cases)), options.csv)


if __name__ == "__main__":
    main()
