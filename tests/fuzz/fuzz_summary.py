"""Files from strangers: thousands of damaged and hostile summaries and checkpoints, and what the commands make of them.

    python -m tests.fuzz.fuzz_summary --mutants 20000 [--seed 0] [--only INDEX]

Every mutant goes through inspect, find-mislabeled, influence and fsd in a forked child with a limit on memory
and an alarm.  Each command must answer (exit code 0) or refuse in one line (exit code 2).  Anything else is a
crash: exit code 3, an exception, a signal, no memory left, no answer in time.  Mutant i of a seed is always the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from torch import nn

from fsdtool.cli import main
from fsdtool.cli.app import app
from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.model.checkpoint import read_checkpoint
from tests.fuzz.mutants import mutate

EXAMPLES = 40
MEMORY = 2 * 2**30  # bytes that a mutant may add to the address space
SECONDS = 20  # of computing that a mutant may take
WAIT = 600  # seconds by the clock, for one that waits instead: the machine may be busy
LIFE = 500  # mutants for each child


@dataclass(frozen=True)
class Case:
    """A file to be mutated, and the commands that read it ({} stands for the mutant)."""

    source: Path
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant: exit codes of its commands, what broke, processor seconds, bytes of memory added."""

    index: int
    mutation: str
    codes: list[int]
    broken: str
    seconds: float
    memory: int


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU6(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def build_cases(folder: Path) -> list[Case]:
    """Three small summaries (classes and dense, clusters and convolutional, regression) and a safetensors file."""
    from safetensors.torch import save_file

    draw = np.random.default_rng(0)
    labels = np.arange(EXAMPLES) % 3
    inputs = {
        "dense": draw.normal(size=(EXAMPLES, 6)).astype("f4") + labels[:, None],
        "conv": draw.normal(size=(EXAMPLES, 1, 6, 6)).astype("f4") + labels[:, None, None, None],
    }
    inputs["regression"] = inputs["dense"]
    cases = []
    for name, x in inputs.items():
        torch.manual_seed(0)
        network = (convolutional if name == "conv" else dense)().eval()
        task = "regression" if name == "regression" else "classification"
        y = draw.normal(size=(EXAMPLES, 3)) if task == "regression" else labels
        np.savez(folder / f"{name}.npz", x=x, y=y, ids=np.array([f"é{i}" for i in range(EXAMPLES)]))
        np.savez(folder / f"{name}-queries.npz", x=x[:3], y=y[:3])
        weights = folder / f"{name}.safetensors"
        save_file(network.state_dict(), weights)
        summarize(
            model=network,
            checkpoint=read_checkpoint(weights),
            data=load_dataset(str(folder / f"{name}.npz"), task=task),
            output=folder / f"{name}.h5",
            components=4 if name == "conv" else None,
        )
        queries, few = str(folder / f"{name}-queries.npz"), ("--samples", "64")
        cases.append(
            Case(
                folder / f"{name}.h5",
                (
                    ("inspect", "{}"),
                    ("find-mislabeled", "{}", "--all"),
                    ("find-mislabeled", "{}", "--data", queries, "--by-layer"),
                    ("influence", "{}", "--self"),
                    ("influence", "{}", "--queries", queries),
                    ("fsd", "{}", "--checkpoint", str(weights), *few),
                ),
            )
        )
    summary = str(folder / "dense.h5")
    return [*cases, Case(folder / "dense.safetensors", (("fsd", summary, "--checkpoint", "{}", *few),))]


def run_one(case: Case, index: int, seed: int, folder: Path) -> Outcome:
    """Mutant `index` through its commands; after a refusal by the first, the others have nothing to read."""
    draw = random.Random(f"{seed}/{index}")
    target = folder / f"mutant{case.source.suffix}"
    mutation = f"{case.source.stem}{case.source.suffix}: {mutate(case.source, target, draw)}"
    before, started = _reset_peak(), time.process_time()
    codes: list[int] = []
    broken = ""
    for command in case.commands:
        code, talk = _run_command([str(target) if word == "{}" else word for word in command])
        codes.append(code)
        refused = code == 2 and talk.startswith("error: ") and talk.count("\n") == 1
        if code != 0 and not refused:
            broken = f"{command[0]}: exit {code}: {talk[-2000:]}"
        if code != 0 and command is case.commands[0]:
            break
    return Outcome(index, mutation, codes, broken, time.process_time() - started, _peak() - before)


def _run_command(arguments: list[str]) -> tuple[int, str]:
    out, talk = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(talk):
        code = main([*arguments, "--quiet"])
    lines = [line for line in talk.getvalue().splitlines(keepends=True) if not line.startswith("warning: ")]
    return int(code), "".join(lines)


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The most memory this process has held since the last reset, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def fuzz(cases: list[Case], indices: range, seed: int, folder: Path) -> Iterator[Outcome]:
    """The outcomes of the mutants `indices`, in order."""
    left = list(indices)
    while left:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(cases, left[:LIFE], seed, folder, writer)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for line in lines:
                yield Outcome(**json.loads(line))
                left.pop(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            yield Outcome(left.pop(0), "not known: run it alone with --only", [], f"killed by {name}", SECONDS, 0)


def _work(cases: list[Case], indices: list[int], seed: int, folder: Path, pipe: int) -> None:
    """A child's life: its mutants one after the other, each outcome a line in the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    try:
        with os.fdopen(pipe, "w") as lines:
            for index in indices:
                signal.alarm(WAIT)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                outcome = run_one(cases[index % len(cases)], index, seed, folder)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
                print(json.dumps(asdict(outcome)), file=lines, flush=True)
    except BaseException as error:
        print(f"mutant {index}: {error!r}", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGABRT)
    os._exit(0)


def figures(outcomes: list[Outcome]) -> str:
    """The outcomes in one line."""
    refused = sum(2 in o.codes for o in outcomes)
    answered = sum(bool(o.codes) and set(o.codes) == {0} for o in outcomes)
    broken = sum(bool(o.broken) for o in outcomes)
    slowest, largest = max(outcomes, key=lambda o: o.seconds), max(outcomes, key=lambda o: o.memory)
    return (
        f"{len(outcomes)} mutants: {refused} refused, {answered} answered, {broken} crashes; "
        f"slowest {slowest.seconds:.2f} s (mutant {slowest.index}), "
        f"largest memory {largest.memory / 2**20:.0f} MiB (mutant {largest.index})"
    )


def command_line() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="index of the first mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one mutant, in this process, with tracebacks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = typer.main.get_command(app)  # made once: half of the time of a refusal
    typer.main.get_command = lambda app: command
    with tempfile.TemporaryDirectory(prefix="fsdtool-fuzz-") as name:
        folder = Path(name)
        cases = build_cases(folder)
        if options.only is not None:
            print(run_one(cases[options.only % len(cases)], options.only, options.seed, folder))
            return 0
        outcomes: list[Outcome] = []
        kinds: Counter[str] = Counter()
        indices = range(options.first, options.first + options.mutants)
        for outcome in fuzz(cases, indices, options.seed, folder):
            outcomes.append(outcome)
            if outcome.broken:
                kinds[outcome.broken[:120]] += 1
                print(outcome, flush=True)
            if len(outcomes) % 1000 == 0:
                print(figures(outcomes), flush=True)
    print(figures(outcomes))
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(command_line())
