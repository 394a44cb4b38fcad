"""How well each method foretells what retraining on half of the data does: the linear datamodeling score.

    python tests/benchmarks/influence_lds.py --data FOLDER [--cache FOLDER] [--only mnist,vit,cifar] [--csv FILE]

On given ground truths (MNIST, an MLP and a vision transformer) and on one that this script trains and keeps in the
cache (CIFAR-10N, three convolutions and a linear layer).  Every method sees the same network, data and queries in one
run.  `bytes` is what is stored per training example for later queries, `seconds` the whole method with all queries.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lds_truth
import numpy as np
from common import options_of, parse, print_table
from influence_methods import Problem, attribution, by_tool, flat, measured_ekfac, summarized
from influence_peers import PEERS, Missing
from lds_truth import Truth

TRUTHS: dict[str, Callable[[Path, Path], Truth]] = {
    "mnist": lds_truth.mnist,
    "vit": lds_truth.vit,
    "cifar": lds_truth.cifar,
}
RECORD_BYTES = (512, 1024, 2048)
COMPONENTS = {"one component": 1, "per class": None, "64 components": 64}

Method = Callable[[Problem], np.ndarray]


def laftr(problem: Problem, *, components: int | None, record_bytes: int = 0) -> np.ndarray:
    """fsdtool from a summary with records, or without them and the training data streamed once more."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options = {"record_bytes": record_bytes} if record_bytes else {"records": False}
        summary = summarized(problem, folder, components=components, **options)
        return by_tool(summary, problem, folder, streamed=not record_bytes)


def measured(problem: Problem, record_bytes: int) -> np.ndarray:
    """fsdtool with the curvature measured on the data, and records."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        summary = summarized(problem, folder, curvature="measured", record_bytes=record_bytes)
        return by_tool(summary, problem, folder)


def methods() -> Iterator[tuple[str, int, Method]]:
    """Name, bytes per training example and attribution of every method."""
    yield "gradient dot product", 0, lambda problem: attribution(problem, flat(problem))
    yield "measured EKFAC", 0, lambda problem: attribution(problem, measured_ekfac(problem))
    for name, peer in PEERS.items():
        yield name, 0, peer
    for mixture, components in COMPONENTS.items():
        yield f"LAFTR, {mixture}, streamed", 0, partial(laftr, components=components)
        for size in RECORD_BYTES:
            yield f"LAFTR, {mixture}, records", size, partial(laftr, components=components, record_bytes=size)
    for size in RECORD_BYTES:
        yield "fsdtool, measured curvature, records", size, partial(measured, record_bytes=size)


def compare(truth: Truth) -> Iterator[dict[str, object]]:
    """The rows of one ground truth."""
    for name, size, method in methods():
        started = time.perf_counter()
        try:
            tau = method(truth.problem)
        except Missing as missing:
            print(missing, file=sys.stderr)
            continue
        seconds = time.perf_counter() - started
        print(f"{truth.name}, {name}: {seconds:.0f} s", file=sys.stderr)
        yield {"case": truth.name, "method": name, "bytes": size, "score": truth.score(tau), "seconds": seconds}
    yield {"case": truth.name, "method": "one retraining", "bytes": 0, "score": truth.ceiling(), "seconds": 0.0}


def main() -> None:
    options = parse(options_of(__doc__, TRUTHS))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        for name in options.only.split(","):
            rows += compare(TRUTHS[name](options.data, cache))
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
