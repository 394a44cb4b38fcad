"""Continual learning: how well a penalty on the old tasks keeps what a network knew, at equal bytes per task.

    python tests/benchmarks/continual_learning.py --data DIR [--seeds 3] [--only permuted,split] [--csv FILE]

DIR holds mnist_train.npz and mnist_test.npz (x uint8 (n, 28, 28), y).  One network learns the tasks one after the
other; at task t it minimizes

    cross-entropy on task t  +  strength * sum over past tasks of penalty(weights, what was kept of that task)

permuted  10 tasks of 10 classes: a fixed permutation of the pixels each, one head for all
split     5 tasks of 2 classes: digits 0/1, 2/3, .., 8/9, one head of two outputs for all (domain-incremental)

Methods:
    none    no penalty
    EWC     1/2 sum_i F_i (theta_i - theta*_i)^2, F the exact diagonal of the Fisher matrix at the weights theta*
            after the task, from all its training images
    LAFTR   `fsdtool.load(summary).penalty(model)`: KL from the outputs at theta*, over pseudo-samples of a summary
            without records, one component per class; gates of theta* that move with the weights, or stay, or each
            network with its own
    subset  the same KL over a random subset of the task's images, stored in the bytes of the summary's statistics,
            or of statistics and weights: pixels as uint8, reference outputs as float16
    joint   all tasks at once, the ceiling
The measure is the accuracy on the test images of all tasks after the last one.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from common import print_table
from torch import Tensor, nn

import fsdtool
from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.laftr.metrics import measure
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.summary.reader import Summary

TRAINING, HELD_OUT, TEST = 5000, 1000, 2000  # images per task
HIDDEN = 100
BATCH = 128
RATE = 1e-3
EPOCHS = 5
TASKS_PER_STEP = 4  # past tasks that a LAFTR step draws, if there are as many
FIRST_STRENGTHS = (0, 2, 4)  # in half decades; then those beside the best, until it has no better neighbour
LARGEST_STRENGTH = 8
TUNING_SEED = 1000


@dataclass(frozen=True)
class Part:
    """Images x (n, 784) uint8 and labels y (n,) int64."""

    x: Tensor
    y: Tensor

    def take(self, rows: Tensor) -> Part:
        return Part(self.x[rows], self.y[rows])

    def inputs(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Inputs (b, 784) float32 in [0, 1]."""
        return self.x[rows].float() / 255


@dataclass(frozen=True)
class Task:
    """One task's images: to learn from, to choose a strength on, to be judged on."""

    training: Part
    held_out: Part
    test: Part


# Tasks


def read(path: Path) -> Part:
    """All images of a file."""
    with np.load(path) as arrays:
        x, y = arrays["x"], arrays["y"]
    return Part(torch.from_numpy(x.reshape(len(x), -1)), torch.from_numpy(y).long())


def task(training: Part, test: Part, generator: torch.Generator, change: Callable[[Part], Part]) -> Task:
    """Random images of both files, changed as the task wants them."""
    rows = torch.randperm(len(training.x), generator=generator)
    count = min(TRAINING, len(rows) - HELD_OUT)
    learned, held_out = rows[:count], rows[count : count + HELD_OUT]
    judged = torch.randperm(len(test.x), generator=generator)[:TEST]
    return Task(change(training.take(learned)), change(training.take(held_out)), change(test.take(judged)))


def permuted(training: Part, test: Part, seed: int) -> list[Task]:
    """10 tasks, each with its own order of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for _ in range(10):
        order = torch.randperm(784, generator=generator)
        tasks.append(task(training, test, generator, lambda part, order=order: Part(part.x[:, order], part.y)))
    return tasks


def split(training: Part, test: Part, seed: int) -> list[Task]:
    """5 tasks: digits 0/1, 2/3, 4/5, 6/7, 8/9, even against odd."""
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for first in range(0, 10, 2):
        own = [part.take((part.y // 2 == first // 2).nonzero()[:, 0]) for part in (training, test)]
        tasks.append(task(*own, generator, lambda part: Part(part.x, part.y % 2)))
    return tasks


CASES = {"permuted": (permuted, 10), "split": (split, 2)}


def network(outputs: int) -> nn.Sequential:
    """The MLP of every method."""
    return nn.Sequential(
        nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


# Penalties


class NoPenalty:
    """Nothing is kept."""

    bytes_per_task = 0

    def keep(self, model: nn.Sequential, part: Part) -> None:
        """Keep of a task, at the weights after it, what the penalty needs."""

    def __call__(self, model: nn.Sequential) -> Tensor | float:
        """The penalty, summed over the past tasks; where it is estimated, without bias."""
        return 0.0


class EWC(NoPenalty):
    """The quadratic forms of the past tasks, added up: sum F theta^2 - 2 (sum F theta*) theta + constant."""

    def __init__(self) -> None:
        self.fisher: list[Tensor] = []
        self.pull: list[Tensor] = []
        self.constant = 0.0

    def keep(self, model: nn.Sequential, part: Part) -> None:
        own = [p.detach().clone() for p in model.parameters()]
        fisher = diagonal_fisher(model, part.inputs())
        self.bytes_per_task = sum(4 * f.numel() for f in fisher)
        pull = [f * p for f, p in zip(fisher, own, strict=True)]
        self.constant += sum(float((q * p).sum()) for q, p in zip(pull, own, strict=True))
        self.fisher = [a + b for a, b in zip(self.fisher, fisher, strict=True)] if self.fisher else fisher
        self.pull = [a + b for a, b in zip(self.pull, pull, strict=True)] if self.pull else pull

    def __call__(self, model: nn.Sequential) -> Tensor:
        each = (((f * p - 2 * q) * p).sum() for f, q, p in zip(self.fisher, self.pull, model.parameters(), strict=True))
        return 0.5 * (sum(each) + self.constant)


def diagonal_fisher(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """E_x sum_c p_c (d log p_c / d theta)^2 for each parameter; a layer's gradient b a^T squared is b^2 (a^2)^T."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    inputs, outputs, signal = [], [], x
    for layer in model:
        if isinstance(layer, nn.Linear):
            inputs.append(signal.detach())
        signal = layer(signal)
        if isinstance(layer, nn.Linear):
            outputs.append(signal)
    log_p = torch.log_softmax(signal, 1)
    found = [torch.zeros_like(p) for p in model.parameters()]
    for c in range(log_p.shape[1]):
        gradients = torch.autograd.grad(log_p[:, c].sum(), outputs, retain_graph=True)
        p = log_p[:, c].detach().exp()[:, None] / len(x)
        for i in range(len(layers)):
            squared = p * gradients[i].square()
            found[2 * i] += squared.T @ inputs[i].square()
            found[2 * i + 1] += squared.sum(0)
    return found


class Laftr(NoPenalty):
    """A summary per past task; each call draws some of the tasks."""

    def __init__(self, folder: Path, seed: int, gates: str):
        self.folder, self.random, self.gates = folder, random.Random(seed), gates
        self.summaries: list[Summary] = []

    def keep(self, model: nn.Sequential, part: Part) -> None:
        output = write_summary(model, part, self.folder, len(self.summaries))
        self.bytes_per_task = statistics_bytes(output)
        self.summaries.append(fsdtool.load(output))

    def __call__(self, model: nn.Sequential) -> Tensor:
        drawn = self.random.sample(self.summaries, min(TASKS_PER_STEP, len(self.summaries)))
        each = [summary.penalty(model, gates=self.gates, batch=BATCH // len(drawn)) for summary in drawn]
        return len(self.summaries) * sum(each) / len(each)


def write_summary(model: nn.Sequential, part: Part, folder: Path, number: int) -> Path:
    """The summary of a task at the model's weights."""
    data, output = folder / f"{number}.npz", folder / f"{number}.h5"
    np.savez(data, x=part.x.numpy(), y=part.y.numpy())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    summarize(
        model=model,
        checkpoint=Checkpoint(f"{number}.pt", "", state, ()),
        data=load_dataset(str(data)),
        output=output,
        records=False,
    )
    data.unlink()
    model.train()
    return output


def statistics_bytes(path: Path) -> int:
    """Bytes of the statistics in a summary, before compression."""
    sizes = []
    with h5py.File(path) as file:
        file["statistics"].visititems(lambda _, v: sizes.append(v.nbytes if isinstance(v, h5py.Dataset) else 0))
    return sum(sizes)


class Subset(NoPenalty):
    """Stored images of the past tasks with the outputs after them; each call draws from all of them."""

    def __init__(self, budget: int, seed: int):
        self.budget = budget
        self.generator = torch.Generator().manual_seed(seed)
        self.x, self.outputs, self.tasks = torch.empty(0, 784, dtype=torch.uint8), None, 0

    def keep(self, model: nn.Sequential, part: Part) -> None:
        with torch.no_grad():
            each = part.x.shape[1] + 2 * model[-1].out_features
            count = self.budget // each
            rows = torch.randperm(len(part.x), generator=self.generator)[:count]
            outputs = model(part.inputs(rows)).half()
        self.bytes_per_task = count * each
        self.x = torch.cat([self.x, part.x[rows]])
        self.outputs = outputs if self.outputs is None else torch.cat([self.outputs, outputs])
        self.tasks += 1

    def __call__(self, model: nn.Sequential) -> Tensor:
        rows = torch.randint(len(self.x), (BATCH,), generator=self.generator)
        return self.tasks * measure("kl", self.outputs[rows], model(self.x[rows].float() / 255)).mean().float()


# Learning


def fit(model: nn.Sequential, part: Part, generator: torch.Generator, extra: Callable[[], Tensor | float]) -> None:
    """Adam on the cross-entropy plus `extra`, for the benchmark's epochs."""
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(part.x), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(part.inputs(rows)), part.y[rows]) + extra()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(model: nn.Sequential, part: Part) -> float:
    """Per cent right."""
    with torch.no_grad():
        return 100 * float((model(part.inputs()).argmax(1) == part.y).float().mean())


def learn(tasks: list[Task], outputs: int, penalty: NoPenalty, strength: float, seed: int) -> nn.Sequential:
    """The network after all tasks in turn."""
    torch.manual_seed(seed)
    model, generator = network(outputs), torch.Generator().manual_seed(seed)
    for position, now in enumerate(tasks):
        fit(model, now.training, generator, lambda first=position == 0: 0.0 if first else strength * penalty(model))
        if now is not tasks[-1]:
            penalty.keep(model, now.training)
    return model


def joint(tasks: list[Task], outputs: int, seed: int) -> nn.Sequential:
    """The network after all tasks at once."""
    torch.manual_seed(seed)
    model, parts = network(outputs), [t.training for t in tasks]
    together = Part(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    fit(model, together, torch.Generator().manual_seed(seed), lambda: 0.0)
    return model


# The table


@dataclass(frozen=True)
class Method:
    """A row of the table: `make` a penalty for a run with a folder of its own and a seed; `tuned`: has a strength."""

    name: str
    make: Callable[[Path, int], NoPenalty]
    tuned: bool = True


def methods(equal: int, weights: int) -> list[Method]:
    """All but joint training; `equal` the bytes of a summary's statistics, `weights` those of the network's weights."""
    return [
        Method("none", lambda folder, seed: NoPenalty(), tuned=False),
        Method("EWC", lambda folder, seed: EWC()),
        Method("LAFTR per class, moving gates", lambda folder, seed: Laftr(folder, seed, "moving")),
        Method("LAFTR per class, fixed gates", lambda folder, seed: Laftr(folder, seed, "coupled")),
        Method("LAFTR per class, own gates", lambda folder, seed: Laftr(folder, seed, "own")),
        Method("subset of equal bytes", lambda folder, seed: Subset(equal, seed)),
        Method("subset, bytes of the weights too", lambda folder, seed: Subset(equal + weights, seed)),
    ]


class Case:
    """One sequence of tasks, made anew for each seed."""

    def __init__(self, name: str, training: Part, test: Part):
        self.make, self.outputs = CASES[name]
        self.training, self.test = training, test

    def run(self, method: Method, strength: float, seed: int, judge: str) -> tuple[float, int]:
        """Mean accuracy over the tasks' `judge` images after the last task, and the bytes kept per task."""
        tasks = self.make(self.training, self.test, seed)
        with tempfile.TemporaryDirectory() as folder:
            penalty = method.make(Path(folder), seed)
            model = learn(tasks, self.outputs, penalty, strength, seed)
        return statistics.mean(accuracy(model, getattr(t, judge)) for t in tasks), penalty.bytes_per_task

    def joint(self, seed: int) -> float:
        """The ceiling for a seed."""
        tasks = self.make(self.training, self.test, seed)
        model = joint(tasks, self.outputs, seed)
        return statistics.mean(accuracy(model, t.test) for t in tasks)

    def choose(self, method: Method) -> float:
        """The strength with the best accuracy on held-out training images."""
        found: dict[int, float] = {}
        wanted = set(FIRST_STRENGTHS)
        while wanted:
            for step in sorted(wanted):
                found[step] = self.run(method, 10 ** (step / 2), TUNING_SEED, "held_out")[0]
            best = max(found, key=found.get)
            wanted = {step for step in (best - 1, best + 1) if abs(step) <= LARGEST_STRENGTH} - set(found)
        tried = ", ".join(f"{10 ** (step / 2):.3g}: {found[step]:.1f}" for step in sorted(found))
        say(f"{method.name}: strength {10 ** (best / 2):.3g} of {tried}")
        return 10 ** (best / 2)

    def statistics_bytes(self) -> int:
        """Bytes of the statistics of one task's summary."""
        first = self.make(self.training, self.test, 0)[0]
        with tempfile.TemporaryDirectory() as folder:
            return statistics_bytes(write_summary(network(self.outputs), first.training, Path(folder), 0))


def rows_of(name: str, case: Case, seeds: int) -> list[dict[str, object]]:
    """The case's rows of the table."""
    weights = sum(4 * p.numel() for p in network(case.outputs).parameters())
    rows = []
    for method in methods(case.statistics_bytes(), weights):
        strength = case.choose(method) if method.tuned else 0.0
        runs = [case.run(method, strength, seed, "test") for seed in range(seeds)]
        rows.append(row(name, method.name, strength, runs[0][1], [found for found, _ in runs]))
    rows.append(row(name, "joint", 0.0, 0, [case.joint(seed) for seed in range(seeds)]))
    return rows


def row(case: str, method: str, strength: float, kept: int, found: list[float]) -> dict[str, object]:
    """One line: strength and bytes kept per task where there are any."""
    spread = statistics.stdev(found) if len(found) > 1 else math.nan
    say(f"{case}, {method}: {statistics.mean(found):.2f}")
    return {
        "case": case,
        "method": method,
        "strength": f"{strength:.3g}" if strength else "",
        "bytes_per_task": str(kept or ""),
        "accuracy": f"{statistics.mean(found):.2f}",
        "sd": f"{spread:.2f}",
    }


def time_of_steps(training: Part, gates: str, steps: int = 300) -> float:
    """Median time of a step with the penalty of one summary over that of one without, taken in turn."""
    model, part = network(10), training.take(torch.arange(TRAINING))
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    with tempfile.TemporaryDirectory() as folder:
        summary = fsdtool.load(write_summary(model, part, Path(folder), 0))
        times: dict[bool, list[float]] = {False: [], True: []}
        x, y = part.inputs(slice(BATCH)), part.y[:BATCH]
        for step in range(2 * steps):
            started = time.perf_counter()
            loss = nn.functional.cross_entropy(model(x), y)
            if step % 2:
                loss = loss + summary.penalty(model, gates=gates, batch=BATCH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times[bool(step % 2)].append(time.perf_counter() - started)
    return statistics.median(times[True]) / statistics.median(times[False])


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of mnist_train.npz and mnist_test.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--csv", type=Path, help="write the table here as well")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if set(chosen) - set(CASES):
        parser.error(f"--only takes {' and '.join(CASES)}, not {options.only}")
    torch.set_num_threads(1)
    started = time.perf_counter()
    training, test = read(options.data / "mnist_train.npz"), read(options.data / "mnist_test.npz")
    rows = [line for name in chosen for line in rows_of(name, Case(name, training, test), options.seeds)]
    print_table(rows, options.csv)
    print(
        f"\nMLP 784-{HIDDEN}-{HIDDEN}; {TRAINING:,} training and {TEST:,} test images per task; Adam {RATE}, "
        f"batch {BATCH}, {EPOCHS} epochs per task; {options.seeds} seeds.\n"
        f"Strength: 1, 10, 100, then half decades beside the best until no neighbour is better, by the mean accuracy "
        f"after\nthe last task on {HELD_OUT:,} held-out training images per task, seed {TUNING_SEED}.\n"
        "bytes_per_task: EWC's Fisher diagonal, LAFTR's statistics, the subset's images and outputs, before "
        "compression.\nEWC and LAFTR need the weights after each task as well.\n"
        + "".join(
            f"A step with the penalty of one summary ({gates} gates) over one without, median: "
            f"{time_of_steps(training, gates):.2f}\n"
            for gates in ("moving", "own")
        )
        + f"{time.perf_counter() - started:.0f} s in all"
    )


if __name__ == "__main__":
    main()
