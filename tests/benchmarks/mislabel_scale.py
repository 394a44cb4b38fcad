"""Wrong labels among a million training examples: find-mislabeled on a synthetic summary of 100 classes.

    python tests/benchmarks/mislabel_scale.py [--examples 1000000] [--folder FOLDER] [--csv FILE]

The summary is that of an MLP trained on 5,000 synthetic examples of which one label in ten is wrong; the tool's own
writer repeats its records, in random order, up to `--examples`.  What is measured is the command `fsdtool
find-mislabeled` as a process, with its results written as csv: seconds and peak memory.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import torch
from common import print_table, train
from influence_methods import Problem, summarized
from influence_scale import scale_options, widen
from process import run
from torch import nn

CLASSES, DIMENSIONS, SMALL = 100, 64, 5000


def network() -> nn.Module:
    """Three activation layers, so that with input and outputs five layers give evidence."""
    widths = (DIMENSIONS, 128, 128, 128)
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def small_problem() -> Problem:
    """A network trained on noisy prototypes, a tenth of whose labels are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (SMALL,), generator=generator)
    x = torch.randn(CLASSES, DIMENSIONS, generator=generator)[y] + 0.7 * torch.randn(
        SMALL, DIMENSIONS, generator=generator
    )
    wrong = torch.rand(SMALL, generator=generator) < 0.1
    given = torch.where(wrong, torch.randint(CLASSES, (SMALL,), generator=generator), y)
    torch.manual_seed(0)
    state = train(network(), x, given, epochs=10, rate=0.05)
    return Problem(network, state, x, given, x[:1], given[:1])


def main() -> None:
    options = scale_options(__doc__).parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        summary = summarized(small_problem(), folder, record_bytes=64)
        size = widen(summary, folder / "wide.h5", options.examples)
        command = [sys.executable, "-m", "fsdtool", "-q", "find-mislabeled", "wide.h5", "--format", "csv"]
        cost = run(command, folder, options.threads)
        row = {"examples": options.examples, "classes": CLASSES, "seconds": cost.seconds}
        print_table([row | {"peak memory MB": cost.megabytes, "file MB": size / 1e6}], options.csv)


if __name__ == "__main__":
    main()
