"""What the benchmarks share: options, training, states kept by their recipe, other checkpoints, ranks, one table.

A state is a state_dict.  Other checkpoints come from events that happen to networks: training goes on, on other
data or labels, or the weights are pruned, disturbed or rounded.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def options_of(description: str, cases: Iterable[str]) -> argparse.ArgumentParser:
    """The options that a benchmark of these `cases` has; `parse` reads them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, see the README")
    parser.add_argument("--cache", type=Path, help="folder that keeps trained checkpoints (default: none kept)")
    parser.add_argument("--only", default=",".join(cases), help=f"cases, separated by commas: {', '.join(cases)}")
    parser.add_argument("--csv", type=Path, help="write the table to this file as well")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the processor (default 1: small networks are fastest so)"
    )
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What is asked for, with torch set to that many threads and fsdtool's remarks left out."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("fsdtool").setLevel(logging.ERROR)
    return options


def cached(folder: Path, recipe: dict[str, object], make: Callable[[], State]) -> State:
    """The state that `make` trains, kept in `folder` under a hash of its recipe (JSON values)."""
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{recipe['case']}-{key}.pt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        state = make()
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return torch.load(path, weights_only=True)


def mlp(*widths: int) -> nn.Module:
    """Fully connected layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def standardized(path: Path) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and target (n, 1), the last column, of a csv table, each in mean 0 and deviation 1."""
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    table = torch.from_numpy((table - table.mean(0)) / table.std(0)).float()
    return table[:, :-1], table[:, -1:]


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    rate: float,
    decay: float = 1e-4,
    batch: int = 64,
    warmup: float = 0.0,
    adam: bool = False,
    seed: int = 0,
    watch: Callable[[int, nn.Module, Tensor, Tensor], None] | None = None,
) -> State:
    """The state of `model` after SGD with momentum 0.9; the rate rises for a fraction `warmup`, then falls to zero.

    x (n, ...), y (n,) int64 for cross-entropy or (n, O) for half the squared error.  The rate rises along a line
    and falls along a cosine.  With `adam` it is Adam without decay at a constant rate.  watch: called after each batch
    with the epoch, the model, the rows and what it made of them before the step (n, O).
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(x) // batch)
    rising = int(warmup * steps)

    def factor(step: int) -> float:
        falling = (step - rising) / (steps - rising)
        return (step + 1) / (rising + 1) if step < rising else 0.5 + 0.5 * math.cos(math.pi * falling)

    if adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            f = model(_fast(x[rows]))
            target = y[rows]
            half_square = 0.5 * (f - target).square().sum(1).mean() if y.is_floating_point() else None
            loss = half_square if half_square is not None else nn.functional.cross_entropy(f, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if watch is not None:
                watch(epoch, model, rows, f.detach())
    model.eval()
    return state_of(model)


def state_of(model: nn.Module) -> State:
    """A copy of its state_dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _fast(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


# Other checkpoints without training


def _weights(state: State) -> list[str]:
    return [name for name, value in state.items() if value.dim() > 1]


def pruned(state: State, fraction: float) -> State:
    """Each weight matrix without the `fraction` of its entries that are smallest."""
    out = dict(state)
    for name in _weights(state):
        w = state[name]
        out[name] = torch.where(w.abs() > w.abs().flatten().quantile(fraction), w, torch.zeros_like(w))
    return out


def noisy(state: State, size: float, seed: int) -> State:
    """Gaussian noise on each weight matrix, `size` times its standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    out = dict(state)
    for name in _weights(state):
        out[name] = state[name] + size * state[name].std() * torch.randn(state[name].shape, generator=generator)
    return out


def quantized(state: State, bits: int) -> State:
    """Each weight matrix rounded to 2^bits - 1 levels, symmetric about zero."""
    out = dict(state)
    for name in _weights(state):
        step = state[name].abs().max() / (2 ** (bits - 1) - 1)
        out[name] = (state[name] / step).round() * step
    return out


# Agreement and output


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (n,) of values (n,), ties sharing their mean."""
    below = (values[:, None] > values[None]).sum(1)
    return below + ((values[:, None] == values[None]).sum(1) - 1) / 2


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of ranks."""
    return float(np.corrcoef(ranks(np.asarray(a)), ranks(np.asarray(b)))[0, 1])


def print_table(rows: list[dict[str, object]], path: Path | None) -> None:
    """Rows with the same keys as aligned text on stdout, and as csv in `path` where given."""
    shown = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    for line in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if path is not None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
