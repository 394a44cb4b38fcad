"""How well wrong labels are found from a checkpoint that was trained on them.

    python tests/benchmarks/mislabel_accuracy.py --data FOLDER [--cache FOLDER] [--only mnist,random1] [--csv FILE]

For each case a network is trained on labels of which some are known to be wrong.  The table compares the rankings of
fsdtool with default settings and of other methods by the area under the ROC curve and average precision; what each
flags by its own cut-off by precision, recall and F1, beside the best F1 of any cut-off on the same ranking; and its
estimate of how many labels are wrong.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mislabel_baselines as baselines
import numpy as np
import torch
from common import State, options_of, parse, print_table
from mislabel_baselines import Verdict
from mislabel_cases import Case, cifar, mnist, pairs, uci, unequal, uniform
from torch import Tensor

from fsdtool.catalogue import open_catalogue
from fsdtool.checkpoints import Checkpoint
from fsdtool.datasets import load_dataset
from fsdtool.mislabel import THRESHOLD, find_mislabeled
from fsdtool.misvalue import find_misvalued
from fsdtool.summarize import summarize

NONE = "-"


def fsdtool(case: Case, stages: int) -> Iterator[Verdict]:
    """summarize and find-mislabeled, as a user gets them."""
    yield _fsdtool(case, "fsdtool", case.trajectory(stages)[-1:])


def trajectory(case: Case, stages: int) -> Iterator[Verdict]:
    """The same with the states after earlier stages as earlier checkpoints."""
    states = case.trajectory(stages)
    if len(states) > 1:
        yield _fsdtool(case, f"fsdtool, {len(states)} checkpoints", states)


def _fsdtool(case: Case, name: str, states: list[State]) -> Verdict:
    *earlier, last = [Checkpoint(f"{i}.pt", str(i), state, ()) for i, state in enumerate(states)]
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "data.npz", Path(folder) / "summary.h5"
        np.savez(source, x=case.inputs.numpy(), y=case.given.numpy())
        data = load_dataset(str(source), task="classification" if case.classification else "regression")
        summarize(model=case.build(), checkpoint=last, earlier=earlier, data=data, output=output)
        opened = open_catalogue(output)
        found = find_mislabeled(opened) if case.classification else find_misvalued(opened, threshold=THRESHOLD)
        flagged = torch.zeros(len(found.score), dtype=torch.bool)
        flagged[torch.from_numpy(found.order)] = True
        suggested = torch.from_numpy(found.suggested) if case.classification else None
        return Verdict(name, torch.from_numpy(found.score), flagged, suggested, found.noise_rate)


METHODS: dict[str, Callable[[Case, int], Iterator[Verdict]]] = {
    "fsdtool": fsdtool,
    "trajectory": trajectory,
    "loss": baselines.loss,
    "margin": baselines.margin,
    "residual": baselines.residual,
    "cleanlab": baselines.cleanlab_in_sample,
    "neighbours": baselines.neighbours,
    "tracin": baselines.tracin,
    "kronfluence": baselines.kronfluence,
    "folds": baselines.cleanlab_folds,
}
OF_CLASSES = ("loss", "margin", "neighbours", "tracin")
OF_NUMBERS = ("residual",)

CASES: dict[str, tuple[Callable[[Path, Path], Case], ...]] = {
    "mnist": (lambda data, cache: mnist(data, cache, "MNIST 10 % uniform", lambda y: uniform(y, 0.1), (1, 2, 3)),),
    "pair": (lambda data, cache: mnist(data, cache, "MNIST pairs", lambda y: pairs(y, 0.4), (2, 3)),),
    "uniform40": (lambda data, cache: mnist(data, cache, "MNIST 40 % uniform", lambda y: uniform(y, 0.4), (2, 3)),),
    "unequal": (unequal,),
    "clean": (lambda data, cache: mnist(data, cache, "MNIST clean", lambda y: y, (1, 2, 3)),),
    "random1": (lambda data, cache: cifar(data, cache, "random1", folds=(1,)),),
    "aggregate": (lambda data, cache: cifar(data, cache, "aggregate"),),
    "worst": (lambda data, cache: cifar(data, cache, "worst"),),
    "uci": (
        lambda data, cache: uci(data, cache, "concrete", "uci_concrete.csv"),
        lambda data, cache: uci(data, cache, "energy", "uci_energy.csv"),
        lambda data, cache: uci(data, cache, "wine", "uci_wine_quality_red.csv"),
    ),
}


def judged(case: Case, verdict: Verdict) -> dict[str, object]:
    """The columns that say how good a verdict is."""
    wrong = case.wrong
    row: dict[str, object] = {"roc": NONE, "ap": NONE, "precision": NONE, "recall": NONE, "f1": NONE, "best f1": NONE}
    if wrong.any():
        row |= _ranking(wrong, verdict.score)
    row |= {"flagged": NONE, "right suggestions": NONE}
    if verdict.flagged is not None:
        hits = wrong & verdict.flagged
        row["flagged"] = float(verdict.flagged.double().mean())
        if wrong.any():
            precision = int(hits.sum()) / max(int(verdict.flagged.sum()), 1)
            recall = int(hits.sum()) / int(wrong.sum())
            row |= {"precision": precision, "recall": recall}
            row["f1"] = 2 * precision * recall / max(precision + recall, 1e-12)
        if verdict.suggested is not None and hits.any():
            row["right suggestions"] = float((verdict.suggested == case.truth)[hits].double().mean())
    rate = NONE if verdict.rate is None else float(verdict.rate)
    return row | {"estimated rate": rate, "true rate": float(wrong.double().mean())}


def _ranking(wrong: Tensor, score: Tensor) -> dict[str, object]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, _ = precision_recall_curve(wrong, score)
    return {
        "roc": float(roc_auc_score(wrong, score)),
        "ap": float(average_precision_score(wrong, score)),
        "best f1": float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()),
    }


def compare(case: Case, methods: list[str]) -> Iterator[dict[str, object]]:
    """The rows of one case, after each stage of its training."""
    other = OF_NUMBERS if case.classification else OF_CLASSES
    epochs = 0
    for stages, (more, *_) in enumerate(case.recipe.stages, 1):
        epochs += more
        if stages not in case.stages:
            continue
        case.trajectory(stages)  # trained before the clock starts
        for method in methods:
            if method in other or (method == "folds" and stages not in case.folds):
                continue
            started = time.perf_counter()
            for verdict in METHODS[method](case, stages):
                row = {"case": case.name, "epochs": epochs, "method": verdict.method} | judged(case, verdict)
                yield row | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = options_of(__doc__, CASES)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"likewise: {', '.join(METHODS)}")
    options = parse(parser)
    for package in ("sklearn", "cleanlab", "captum", "kronfluence"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed; the benchmarks need: pip install 'fsdtool[bench]'")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for group in options.only.split(","):
            for make in CASES[group]:
                started = time.perf_counter()
                rows += compare(make(options.data, cache), options.methods.split(","))
                print(f"{rows[-1]['case']}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
