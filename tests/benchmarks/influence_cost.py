"""What influence costs: fsdtool against kronfluence, whole processes, on 10,000 examples.

    python tests/benchmarks/influence_cost.py --data FOLDER [--only mnist,cifar] [--repeats 3] [--csv FILE]

Two networks: an MLP 784-256-128-10 on MNIST, and six convolutions with batch norm on CIFAR-10N.  Each tool prepares
(`fsdtool summarize`; kronfluence fits EKFAC factors), scores every example against itself, and scores 100 queries
against all examples.  Every step is a process of its own, from start to end: median of its seconds, greatest peak
memory over the repeats, and the bytes that it leaves behind (fsdtool: the statistics, and the whole file).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import influence_nets
import numpy as np
import torch
from common import State, cached, options_of, parse, print_table, train
from influence_peers import Missing, package
from process import Cost, run
from torch import Tensor

from fsdtool.summary.inspection import part_sizes

HERE = Path(__file__).parent
QUERIES = 100


def digits(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images of digits, flat, and their labels."""
    with np.load(data / "mnist_train.npz") as file:
        x, y = file["x"][: count + QUERIES], file["y"][: count + QUERIES]
    return (torch.from_numpy(x).float().flatten(1) / 255 - 0.1307) / 0.3081, torch.from_numpy(y).long()


def photos(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """Photographs with human labels; test photographs as the queries."""
    with np.load(data / "cifar10n_train.npz") as train_file, np.load(data / "cifar10_test.npz") as test_file:
        x = np.concatenate([train_file["x"][:count], test_file["x"][:QUERIES]])
        y = np.concatenate([train_file["y_aggregate"][:count], test_file["y"][:QUERIES]])
    x = torch.from_numpy(x).float().movedim(3, 1).contiguous()
    return (x / 255 - 0.473) / 0.251, torch.from_numpy(y).long()


CASES: dict[str, tuple[str, str, Callable[[Path, int], tuple[Tensor, Tensor]], int]] = {
    "mnist": ("MNIST MLP", "digits_mlp", digits, 10),
    "cifar": ("CIFAR CNN", "photo_convnet", photos, 5),
}


def prepare(folder: Path, data: Path, cache: Path, case: str, count: int) -> None:
    """Put the trained network and the examples into `folder`."""
    _, factory, read, epochs = CASES[case]
    x, y = read(data, count)

    def make() -> State:
        torch.manual_seed(0)
        return train(getattr(influence_nets, factory)(), x[:count], y[:count], epochs=epochs, rate=0.05)

    recipe = {"case": f"cost-{case}", "count": count, "epochs": epochs, "sum": float(x.double().sum())}
    torch.save(cached(cache, recipe, make), folder / "net.pt")
    np.savez(folder / "train.npz", x=x[:count].numpy(), y=y[:count].numpy())
    np.savez(folder / "queries.npz", x=x[count:].numpy(), y=y[count:].numpy())


def tools(case: str) -> dict[str, dict[str, list[str]]]:
    """The command of every step of either tool."""
    factory = CASES[case][1]
    fsdtool = [sys.executable, "-m", "fsdtool", "-q"]
    kronfluence = [sys.executable, str(HERE / "kronfluence_steps.py"), factory]
    model = ["--model", f"{HERE / 'influence_nets.py'}:{factory}", "--checkpoint", "net.pt", "--data", "train.npz"]
    return {
        "fsdtool": {
            "prepare": [*fsdtool, "summarize", *model, "-o", "summary.h5"],
            "self-scores": [*fsdtool, "influence", "summary.h5", "--self"],
            "100 queries": [*fsdtool, "influence", "summary.h5", "--queries", "queries.npz", "--matrix", "tau.npy"],
        },
        "kronfluence": {
            "prepare": [*kronfluence, "fit", "."],
            "self-scores": [*kronfluence, "self", "."],
            "100 queries": [*kronfluence, "queries", "."],
        },
    }


def bytes_kept(folder: Path, tool: str) -> tuple[int, int]:
    """What `prepare` leaves behind: statistics or factors, and all of it."""
    if tool == "fsdtool":
        path = folder / "summary.h5"
        sizes = part_sizes(path)
        kept = sum(size for name, size in sizes.items() if name.startswith("statistics"))
        return kept, path.stat().st_size
    size = sum(path.stat().st_size for path in folder.glob("kronfluence/**/*.safetensors"))
    return size, size


def compare(case: str, options: argparse.Namespace, cache: Path) -> Iterator[dict[str, object]]:
    """The rows of one network; the tools take turns, so that a busy machine hits both."""
    costs: dict[tuple[str, str], list[Cost]] = {}
    kept: dict[str, tuple[int, int]] = {}
    for _ in range(options.repeats):
        for tool, steps in tools(case).items():
            if tool == "kronfluence" and not options.with_kronfluence:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                prepare(folder, options.data, cache, case, options.examples)
                for step, command in steps.items():
                    costs.setdefault((tool, step), []).append(run(command, folder, options.threads))
                    if step == "prepare":
                        kept[tool] = bytes_kept(folder, tool)
                    print(f"{CASES[case][0]}, {tool}, {step}: {costs[tool, step][-1].seconds:.1f} s", file=sys.stderr)
    for (tool, step), found in costs.items():
        yield {
            "case": CASES[case][0],
            "tool": tool,
            "step": step,
            "seconds": statistics.median(cost.seconds for cost in found),
            "peak memory MB": max(cost.megabytes for cost in found),
            "statistics or factor bytes": kept[tool][0] if step == "prepare" else 0,
            "all bytes": kept[tool][1] if step == "prepare" else 0,
        }
    yield from _ratios(case, costs)


def _ratios(case: str, costs: dict[tuple[str, str], list[Cost]]) -> Iterator[dict[str, object]]:
    """How many times longer kronfluence takes to prepare and score the examples against themselves."""

    def seconds(tool: str) -> float:
        return sum(statistics.median(c.seconds for c in costs[tool, step]) for step in ("prepare", "self-scores"))

    if ("kronfluence", "prepare") in costs:
        ratio = seconds("kronfluence") / seconds("fsdtool")
        row = {"case": CASES[case][0], "tool": "kronfluence / fsdtool", "step": "prepare and self-scores"}
        yield row | {"seconds": ratio, "peak memory MB": "", "statistics or factor bytes": "", "all bytes": ""}


def main() -> None:
    parser = options_of(__doc__, CASES)
    parser.add_argument("--examples", type=int, default=10_000, help="training examples (default 10,000)")
    parser.add_argument("--repeats", type=int, default=3, help="times each step is run (default 3)")
    options = parse(parser)
    options.with_kronfluence = True
    try:
        package("kronfluence")
    except Missing as missing:
        print(missing, file=sys.stderr)
        options.with_kronfluence = False
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in options.only.split(","):
            rows += compare(case, options, options.cache or Path(temporary))
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
