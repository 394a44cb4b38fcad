"""How well wrong labels are found among new examples, by the summary of a network that never saw them.

    python tests/benchmarks/mislabel_new.py --data FOLDER [--cache FOLDER] [--only clean,noisy,photographs]
                                            [--seeds 1,2,3] [--csv FILE]

A network is trained and summarized once, and `find-mislabeled --data` judges test examples of whose labels a few were
made wrong, anew with each seed.  The table has the mean over seeds of the average precision of fsdtool, of the loss
and of the normalized margin (probability of the strongest other class less that of the label); by how much fsdtool
is ahead of the better of the two in its worst seed; how many labels it says are wrong; and the range that it gives, by
its least and its largest end over the seeds, with the number of seeds in which it holds the true share.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import options_of, parse, print_table
from mislabel_cases import (
    CONFUSABLE,
    PHOTOGRAPHS,
    Case,
    cifar,
    mnist,
    mnist_images,
    nearest,
    photographs,
    renamed,
    uniform,
)
from torch import Tensor, nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.mislabel.new_labels import score_new_labels
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.summary.reader import Summary, load

Noise = Callable[[Tensor, Tensor, int], Tensor]  # labels from inputs (n, ...), true labels (n,) and a seed
Shares = tuple[float, float, float]  # that fsdtool says are wrong, at least and at most
Scores = tuple[dict[str, Tensor], Shares]  # (n,) by each method
New = tuple[Tensor, Tensor, dict[str, Noise]]  # inputs, true labels, and what is made of them


def evenly(rate: float) -> Noise:
    """A share of labels is any other class."""
    return lambda x, truth, seed: uniform(truth, rate, seed)


def confused(rate: float, names: dict[int, int]) -> Noise:
    """A share of all labels, of some classes alone, is the class that each is taken for."""

    def noise(x: Tensor, truth: Tensor, seed: int) -> Tensor:
        among = float(torch.isin(truth, torch.tensor(list(names))).double().mean())
        return renamed(truth, rate / among, names, seed)

    return noise


def at_boundary(rate: float) -> Noise:
    """The share of labels nearest the boundary is the class beyond."""
    return lambda x, truth, seed: nearest(x, truth, rate, seed)


def digits(data: Path) -> New:
    x, y = mnist_images(data, 10000, part="test")
    kinds = {"1 % uniform": evenly(0.01), "1 % confusable pairs": confused(0.01, CONFUSABLE)}
    return x, y, kinds | {"1 % nearest the boundary": at_boundary(0.01)}


def pictures(data: Path) -> New:
    with np.load(data / "cifar10_test.npz") as file:
        x, y = photographs(file["x"]), torch.from_numpy(file["y"]).long()
    return x, y, {"5 % uniform": evenly(0.05), "5 % confusable pairs": confused(0.05, PHOTOGRAPHS)}


CASES: dict[str, tuple[Callable[[Path, Path], Case], int, Callable[[Path], New]]] = {
    "noisy": (lambda data, cache: mnist(data, cache, "MNIST 10 % uniform", lambda y: uniform(y, 0.1), (2,)), 2, digits),
    "clean": (lambda data, cache: mnist(data, cache, "MNIST clean", lambda y: y, (2,)), 2, digits),
    "photographs": (lambda data, cache: cifar(data, cache, "aggregate"), 1, pictures),
}


def summary_of(case: Case, stages: int, folder: Path) -> Summary:
    """The summary of a network and the data it was trained on."""
    source, output = folder / "data.npz", folder / "summary.h5"
    np.savez(source, x=case.inputs.numpy(), y=case.given.numpy())
    checkpoint = Checkpoint("trained.pt", "0", case.trajectory(stages)[-1], ())
    data = load_dataset(str(source), task="classification")
    summarize(model=case.build(), checkpoint=checkpoint, data=data, output=output)
    return load(output)


def rankings(summary: Summary, x: Tensor, given: Tensor, outputs: Tensor, folder: Path) -> Scores:
    """What each method says of labels `given` (n,) of new inputs x; outputs: the network's (n, classes)."""
    source = folder / "new.npz"
    np.savez(source, x=x.numpy(), y=given.numpy())
    found = score_new_labels(summary, load_dataset(str(source), task="classification"))
    p, own = torch.softmax(outputs.double(), 1), given[:, None]
    margin = p.scatter(1, own, -torch.inf).amax(1) - p.gather(1, own)[:, 0]
    loss = nn.functional.cross_entropy(outputs.double(), given, reduction="none")
    return {"fsdtool": torch.from_numpy(found.score), "loss": loss, "normalized margin": margin}, (
        found.noise_rate,
        *found.between,
    )


def compare(case: Case, stages: int, new: New, seeds: list[int]) -> Iterator[dict]:
    """A row for each kind of noise."""
    from sklearn.metrics import average_precision_score

    x, truth, kinds = new
    model = case.model(case.trajectory(stages)[-1])
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in x.split(500)])
    with tempfile.TemporaryDirectory() as folder:
        summary = summary_of(case, stages, Path(folder))
        for kind, noise in kinds.items():
            found, shares, true = [], [], []
            for seed in seeds:
                given = noise(x, truth, seed)
                scores, said = rankings(summary, x, given, outputs, Path(folder))
                wrong = (given != truth).numpy()
                found.append({name: float(average_precision_score(wrong, s)) for name, s in scores.items()})
                shares.append(said)
                true.append(float(wrong.mean()))
            ahead = min(one["fsdtool"] - max(one["loss"], one["normalized margin"]) for one in found)
            row = {"trained on": case.name, "new labels": kind}
            row |= {name: float(np.mean([one[name] for one in found])) for name in found[0]}
            share, low, high = np.array(shares).T
            yield row | {
                "least lead": ahead,
                "estimated share": float(share.mean()),
                "lowest": float(share.min()),
                "highest": float(share.max()),
                "at least": float(low.min()),
                "at most": float(high.max()),
                "range holds": int(((low <= true) & (true <= high)).sum()),
                "true share": float(np.mean(true)),
            }


def main() -> None:
    parser = options_of(__doc__, CASES)
    parser.add_argument("--seeds", default="1,2,3", help="of the noise, separated by commas")
    options = parse(parser)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for group in options.only.split(","):
            make, stages, new = CASES[group]
            started = time.perf_counter()
            rows += compare(make(options.data, cache), stages, new(options.data), seeds)
            print(f"{group}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
