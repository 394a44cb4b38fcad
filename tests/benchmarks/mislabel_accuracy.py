"""How well wrong labels are found from a checkpoint that was trained on them.

    python tests/benchmarks/mislabel_accuracy.py --data FOLDER [--cache FOLDER] [--only mnist,random1]
                                                 [--methods fsdtool,aum] [--seeds 1,2,3] [--csv FILE]

For each case a network is trained on labels of which some are known to be wrong.  The table compares the rankings of
fsdtool with default settings and of other methods by the area under the ROC curve and average precision, and by what
is found among the tenth and the fifth of the labels that are most suspicious; what each flags by its own cut-off by
precision, recall and F1, beside the best F1 of any cut-off on the same ranking; and its estimate of how many labels
are wrong.  Cases with several noise seeds stand with the mean over them.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mislabel_baselines as baselines
import numpy as np
import torch
from common import State, options_of, parse, print_table
from mislabel_baselines import Verdict
from mislabel_cases import (
    ASYMMETRIC,
    CONFUSABLE,
    NEXT,
    Case,
    cifar,
    dropping,
    mnist,
    mnist_images,
    nearest,
    renamed,
    uci,
    unequal,
    uniform,
)
from torch import Tensor

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.mislabel.find import THRESHOLD, find_mislabeled
from fsdtool.mislabel.noise.verdict import verdict as verdict_on
from fsdtool.mislabel.regression.target_errors import find_target_errors
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.summary.catalogue import Catalogue, open_catalogue

NONE = "-"
BINS = 10  # of the score, by which calibration is judged


def fsdtool(case: Case, stages: int) -> Iterator[Verdict]:
    """summarize and find-mislabeled, as a user gets them."""
    yield _fsdtool(case, "fsdtool", case.trajectory(stages)[-1:])


def trajectory(case: Case, stages: int) -> Iterator[Verdict]:
    """The same with the states after earlier stages, or midway, as earlier checkpoints."""
    states = case.along(stages)
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
        found = find_mislabeled(opened) if case.classification else find_target_errors(opened, threshold=THRESHOLD)
        flagged = torch.zeros(len(found.score), dtype=torch.bool)
        flagged[torch.from_numpy(found.order)] = True
        said = Verdict(name, torch.from_numpy(found.score), flagged, rate=found.noise_rate, probable=True)
        if not case.classification:
            return said
        evidence = _without_prior(opened)
        return replace(said, suggested=torch.from_numpy(found.suggested), between=found.between, evidence=evidence)


def _without_prior(summary: Catalogue) -> Callable[[], Tensor]:
    """Gives the combined evidence (n,) for the strongest other class."""
    records, classes = summary.records, summary.outputs
    evidence, candidates, parameters = records.read("evidence"), records.read("candidates"), records.parameters()

    def margin() -> Tensor:
        weighing = verdict_on(evidence, candidates, classes, parameters).weighing
        return torch.from_numpy(weighing.combined(evidence, candidates)[:, 1:].max(1))

    return margin


METHODS: dict[str, Callable[[Case, int], Iterator[Verdict]]] = {
    "fsdtool": fsdtool,
    "trajectory": trajectory,
    "loss": baselines.loss,
    "margin": baselines.margin,
    "aum": baselines.aum,
    "residual": baselines.residual,
    "cleanlab": baselines.cleanlab_in_sample,
    "neighbours": baselines.neighbours,
    "tracin": baselines.tracin,
    "kronfluence": baselines.kronfluence,
    "folds": baselines.cleanlab_folds,
}
OF_CLASSES = ("loss", "margin", "aum", "neighbours", "tracin")
OF_NUMBERS = ("residual",)
PACKAGES = {"cleanlab": "cleanlab", "folds": "cleanlab", "tracin": "captum", "kronfluence": "kronfluence"}


def _digits(name: str, noise: Callable[[Tensor], Tensor], *stages: int) -> Callable[[Path, Path, int], Case]:
    return lambda data, cache, seed: mnist(data, cache, name, noise, stages)


def _seeded(name: str, noise: Callable[[Tensor, int], Tensor]) -> Callable[[Path, Path, int], Case]:
    """10,000 digits with labels from true ones and the seed, judged after 15 and 60 epochs."""
    return lambda data, cache, seed: mnist(data, cache, f"MNIST {name}", lambda y: noise(y, seed), (2, 3))


def _at_boundary(data: Path, cache: Path, seed: int) -> Case:
    x, _ = mnist_images(data, 10000)
    return mnist(data, cache, "MNIST 15 % nearest the boundary", lambda y: nearest(x, y, 0.15, seed), (2, 3))


CASES: dict[str, tuple[Callable[[Path, Path, int], Case], ...]] = {
    "mnist": (_digits("MNIST 10 % uniform", lambda y: uniform(y, 0.1), 1, 2, 3),),
    "pair": (_digits("MNIST pairs", lambda y: renamed(y, 0.4, CONFUSABLE), 2, 3),),
    "uniform40": (_digits("MNIST 40 % uniform", lambda y: uniform(y, 0.4), 2, 3),),
    "unequal": (lambda data, cache, seed: unequal(data, cache),),
    "clean": (_digits("MNIST clean", lambda y: y, 1, 2, 3),),
    "nearest": (_at_boundary,),
    "pairs45": (_seeded("pairs 45 %", lambda y, seed: renamed(y, 0.45, NEXT, seed)),),
    "asymmetric": (_seeded("asymmetric 30 %", lambda y, seed: renamed(y, 0.3, ASYMMETRIC, seed)),),
    "renamed": (_seeded("one class 70 % renamed", lambda y, seed: renamed(y, 0.7, {3: 8}, seed)),),
    "dattri": (dropping,),
    "random1": (lambda data, cache, seed: cifar(data, cache, "random1", folds=(1,)),),
    "aggregate": (lambda data, cache, seed: cifar(data, cache, "aggregate"),),
    "worst": (lambda data, cache, seed: cifar(data, cache, "worst"),),
    "uci": (
        lambda data, cache, seed: uci(data, cache, "concrete", "uci_concrete.csv"),
        lambda data, cache, seed: uci(data, cache, "energy", "uci_energy.csv"),
        lambda data, cache, seed: uci(data, cache, "wine", "uci_wine_quality_red.csv"),
    ),
}
SEVERAL_SEEDS = ("nearest", "pairs45", "asymmetric", "renamed", "dattri")


def judged(case: Case, verdict: Verdict) -> dict[str, object]:
    """The columns that say how good a verdict is."""
    wrong = case.wrong
    row: dict[str, object] = dict.fromkeys(("roc", "ap", "no prior", "recall at 10 %", "recall at 20 %", "lift"), NONE)
    row |= dict.fromkeys(("precision", "recall", "f1", "best f1", "flagged", "right suggestions", "calibration"), NONE)
    if wrong.any():
        row |= _ranking(wrong, verdict.score)
        if verdict.evidence is not None:
            row["no prior"] = _average_precision(wrong, verdict.evidence())
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
    if verdict.probable:
        row["calibration"] = calibration_error(wrong, verdict.score)
    row["estimated rate"] = NONE if verdict.rate is None else float(verdict.rate)
    row["lowest"], row["highest"] = (NONE, NONE) if verdict.between is None else verdict.between
    return row | {"true rate": float(wrong.double().mean())}


def _ranking(wrong: Tensor, score: Tensor) -> dict[str, object]:
    from sklearn.metrics import precision_recall_curve, roc_auc_score

    precision, recall, _ = precision_recall_curve(wrong, score)
    first = wrong[torch.argsort(score, descending=True, stable=True)].double()
    tenth, fifth = (first[: round(share * len(first))] for share in (0.1, 0.2))
    return {
        "roc": float(roc_auc_score(wrong, score)),
        "ap": _average_precision(wrong, score),
        "recall at 10 %": float(tenth.sum() / first.sum()),
        "recall at 20 %": float(fifth.sum() / first.sum()),
        "lift": float(tenth.mean() / first.mean()),
        "best f1": float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()),
    }


def _average_precision(wrong: Tensor, score: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(wrong, score))


def calibration_error(wrong: Tensor, score: Tensor) -> float:
    """How far the mean score is from the share of wrong labels, in the mean over examples, by tenths of the score.

    wrong (n,) bool, score (n,) in [0, 1].
    """
    place = (score * BINS).long().clamp(max=BINS - 1)
    off = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, score.double() - wrong.double())
    return float(off.abs().sum() / len(score))


def compare(case: Case, methods: list[str], most: int) -> Iterator[dict[str, object]]:
    """The rows of one case, after each stage of its training until there are more than so many epochs."""
    other = OF_NUMBERS if case.classification else OF_CLASSES
    epochs = 0
    for stages, (more, *_) in enumerate(case.recipe.stages, 1):
        epochs += more
        if stages not in case.stages or epochs > most:
            continue
        case.trajectory(stages)  # trained before the clock starts
        for method in methods:
            if method in other or (method == "folds" and stages not in case.folds):
                continue
            started = time.perf_counter()
            for verdict in METHODS[method](case, stages):
                seconds = time.perf_counter() - started
                row = {"case": case.name, "epochs": epochs, "method": verdict.method} | judged(case, verdict)
                yield row | {"seconds": seconds}


def over_seeds(tables: list[list[dict[str, object]]]) -> list[dict[str, object]]:
    """Rows whose numbers are the means of those of the same rows in each table; one that lacks a number has none."""
    return [{name: _mean([row[name] for row in same]) for name in same[0]} for same in zip(*tables, strict=True)]


def _mean(values: list[object]) -> object:
    if all(isinstance(value, float) for value in values):
        return float(np.mean(values))
    return values[0] if len(set(values)) == 1 else NONE


def main() -> None:
    parser = options_of(__doc__, CASES)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"likewise: {', '.join(METHODS)}")
    parser.add_argument("--seeds", default="1,2,3", help=f"of the noise of {', '.join(SEVERAL_SEEDS)}")
    parser.add_argument(
        "--epochs", type=int, default=1000, help="leave out what is trained for more (default: nothing)"
    )
    options = parse(parser)
    methods = options.methods.split(",")
    for package in ("sklearn", *(PACKAGES[method] for method in methods if method in PACKAGES)):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed; these methods need: pip install 'fsdtool[bench]'")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for group in options.only.split(","):
            for make in CASES[group]:
                started = time.perf_counter()
                several = seeds if group in SEVERAL_SEEDS else seeds[:1]
                rows += over_seeds(
                    [list(compare(make(options.data, cache, seed), methods, options.epochs)) for seed in several]
                )
                print(f"{group}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if not rows:
        parser.error(f"no case is judged after {options.epochs} epochs or fewer")
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
