"""`fsdtool demo`: the real commands on the sample data, shown to be copied, then compared with the truth."""

from __future__ import annotations

import csv
import shlex
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import fsdtool
from fsdtool.cli import exits
from fsdtool.cli.answers import TalkOptions
from fsdtool.cli.command import Command
from fsdtool.errors import ExitStatus, FsdtoolError

FILES = ("model.py", "train.npz", "test.npz", "truth.csv", "mlp.pt", "convnet.safetensors")
NETWORKS = {"mlp": "mlp.pt", "convnet": "convnet.safetensors"}


def demo_command(
    context: typer.Context,
    *,
    folder: Annotated[
        Path,
        typer.Argument(metavar="[FOLDER]", help="Where to put the files. [default: fsdtool-demo]"),
    ] = Path("fsdtool-demo"),
    talking: TalkOptions,
) -> None:
    """Run the commands on the sample data, handwritten digits with wrong labels, and compare with the truth.

    \b
    Example:
      fsdtool demo
    """
    talk = talking.talk(context)
    whole = context.find_root().command
    assert isinstance(whole, typer.core.TyperGroup)
    run(folder, partial(exits.run, whole), quiet=talk.quiet)


COMMAND = Command("demo", demo_command, "Try it all on the sample data.", place=70)


def run(folder: Path, command: Callable[[Sequence[str]], int], quiet: bool = False) -> None:
    """Copy the sample data to `folder`, run every command there and say what was found against the known truth.

    command: runs the words of one command line and returns its exit code.  quiet: the commands say no notes.
    """
    _copy(folder)
    say = _Teller(command, quiet)
    wrong = _wrong_labels(folder / "truth.csv")
    say(f"1,437 handwritten digits, {len(wrong)} of them with a wrong label, and two networks trained on them,")
    say(f"copied to {folder}. The networks have memorised most of the wrong labels.")
    for network, checkpoint in NETWORKS.items():
        say(f"\n# One pass over the training data: {network}")
        model = f"{folder / 'model.py'}:{network}"
        files = ("--checkpoint", folder / checkpoint, "--data", folder / "train.npz", "-o", folder / f"{network}.h5")
        say.command("summarize", "--model", model, *files)
    say("\n# From here on the training data is not needed. Which labels are probably wrong?")
    summary, table = folder / "mlp.h5", ("--format", "table")
    say.command("find-mislabeled", summary, "--top", 8, *table)
    say("\n# Which training examples made the network misread these test digits?")
    queries = ("--queries", folder / "test.npz", "--misclassified", "--mean", "--top", 4)
    say.command("influence", summary, *queries, *table)
    rounded = _round_weights(folder)
    say(f"\n# How far does rounding the weights to 6 bits ({rounded.name}) move the network?")
    say.command("fsd", summary, "--checkpoint", rounded, *table)
    say("\n# What does the summary hold?")
    say.command("inspect", summary, *table)
    say(f"\n# Against the truth, among the {len(wrong)} most suspicious labels of each network")
    for network in NETWORKS:
        found, by_loss = _found(folder / f"{network}.h5", wrong)
        say(f"{network}: {found} of {len(wrong)} wrong labels found; ranking by the loss would find {by_loss}")


class _Teller:
    """Prints what the demo says, and runs the commands it shows."""

    def __init__(self, run: Callable[[Sequence[str]], int], quiet: bool) -> None:
        self._run = run
        self._quiet = ["--quiet"] if quiet else []

    def __call__(self, text: str) -> None:
        print(text, flush=True)

    def command(self, *words: object) -> None:
        """Run one fsdtool command in this process, after showing it as a shell takes it."""
        arguments = [str(word) for word in words]
        line = shlex.join(arguments)
        self(f"$ fsdtool {line}")
        status = self._run([*arguments, *self._quiet])
        if status != ExitStatus.OK:
            raise FsdtoolError(f"the demo stopped: 'fsdtool {line}' ended with exit code {int(status)}")


def _copy(folder: Path) -> None:
    here = Path(fsdtool.__file__).parent
    source = next((p for p in (here / "sample_data", here.parent / "sample_data") if p.is_dir()), None)
    if source is None:
        raise FsdtoolError(f"the sample data is missing beside {here}; install fsdtool again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(source / name, folder / name)
    except OSError as error:
        raise FsdtoolError(
            f"cannot write the sample data to {folder}: {error.strerror}; give another folder"
        ) from error


def _wrong_labels(truth: Path) -> set[int]:
    with open(truth, newline="") as file:
        return {int(row["id"]) for row in csv.DictReader(file) if row["given_label"] != row["true_label"]}


def _round_weights(folder: Path) -> Path:
    """A copy of the MLP's checkpoint with every weight rounded to one of 64 levels."""
    import torch

    state = torch.load(folder / "mlp.pt", weights_only=True)
    rounded = {}
    for name, value in state.items():
        step = 2 * value.abs().max() / 63
        rounded[name] = (value / step).round() * step
    path = folder / "mlp-6bit.pt"
    torch.save(rounded, path)
    return path


def _found(path: Path, wrong: set[int]) -> tuple[int, int]:
    """How many of the wrong labels are among as many flags, by the evidence and by the loss."""
    from fsdtool.mislabel.find import find_mislabeled
    from fsdtool.summary.reader import load

    with load(path) as summary:
        assert summary.records is not None
        flagged = find_mislabeled(summary, top=len(wrong)).order.tolist()
        by_loss = (-summary.records.read("loss")).argsort(kind="stable")[: len(wrong)].tolist()
    return len(wrong.intersection(flagged)), len(wrong.intersection(by_loss))
