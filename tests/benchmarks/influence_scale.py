"""Influence of a million training examples: 100 queries against the records of a synthetic summary.

    python tests/benchmarks/influence_scale.py [--examples 1000000] [--folder FOLDER] [--csv FILE]

The summary is that of an MLP 784-256-128-10 trained on 1,000 synthetic images, whose records the tool's own writer
repeats, in random order, up to `--examples`.  What is measured is the command `fsdtool influence` as a process: seconds
and peak memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from common import print_table, train
from influence_methods import Problem, source, summarized
from influence_nets import digits_mlp
from process import run

from fsdtool.summary.reader import Summary
from fsdtool.summary.writer import Writer

PART = 50_000
QUERIES = 100


def small_problem() -> Problem:
    """A network trained on synthetic images: ten prototypes, and noise in 32 directions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (1000 + QUERIES,), generator=generator)
    prototypes, directions = torch.randn(10, 784, generator=generator), torch.randn(32, 784, generator=generator)
    x = 0.3 * prototypes[y] + 0.5 * torch.randn(len(y), 32, generator=generator) @ directions
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    torch.manual_seed(0)
    state = train(digits_mlp(), x[:1000], y[:1000], epochs=5, rate=0.02)
    return Problem(digits_mlp, state, x[:1000], y[:1000], x[1000:], y[1000:])


def widen(summary: Summary, path: Path, examples: int) -> int:
    """Write the summary again with records of `examples` examples, drawn from those that it has; its bytes."""
    count = summary.statistics.count * (examples // summary.identity.examples)
    count[0] += examples - count.sum()
    with h5py.File(summary.path) as file, Writer(path) as writer:
        writer.write_identity(replace(summary.identity, examples=examples))
        writer.write_parameters(summary.parameters)
        writer.write_statistics(replace(summary.statistics, count=count), summary.identity.graph, 16)
        writer.write_curvature(summary.curvature)
        file["records"].visititems(lambda name, item: _repeat(writer, f"records/{name}", item, examples))
        return writer.commit()


def _repeat(writer: Writer, name: str, item: h5py.Group | h5py.Dataset, examples: int) -> None:
    if isinstance(item, h5py.Group):
        return
    written = writer.reserve(name, (examples, *item.shape[1:]), item.dtype, **item.attrs)
    known, generator = item[...], np.random.default_rng(0)
    for start in range(0, examples, PART):
        rows = np.arange(start, min(start + PART, examples))
        written[rows[0] : rows[-1] + 1] = (
            rows if name == "records/id" else known[generator.permutation(rows % len(known))]
        )


def scale_options(description: str) -> argparse.ArgumentParser:
    """The options of a benchmark on the records of very many examples."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10**6)
    parser.add_argument("--folder", type=Path, help="where the summary is written (default: a temporary folder)")
    parser.add_argument("--threads", type=int, default=2, help="of the processor (default 2)")
    parser.add_argument("--csv", type=Path, help="write the table to this file as well")
    return parser


def main() -> None:
    parser = scale_options(__doc__)
    parser.add_argument("--record-bytes", type=int, default=1024, help="of each example (default 1024)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        problem = small_problem()
        summary = summarized(problem, folder, record_bytes=options.record_bytes)
        size = widen(summary, folder / "wide.h5", options.examples)
        source(problem, folder / "queries.npz", problem.queries, problem.query_targets)
        command = [sys.executable, "-m", "fsdtool", "-q", "influence", "wide.h5", "--queries", "queries.npz"]
        cost = run([*command, "--format", "csv"], folder, options.threads)
        row = {"examples": options.examples, "queries": QUERIES, "seconds": cost.seconds}
        print_table([row | {"peak memory MB": cost.megabytes, "file MB": size / 1e6}], options.csv)


if __name__ == "__main__":
    main()
