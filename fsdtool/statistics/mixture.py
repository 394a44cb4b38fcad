"""The mixture: which component an example belongs to (all data, its class, or a cluster of gate patterns).

Clusters are found by k-means on the first sample of the data; in the pass every example goes to the nearest centre.  A
gate pattern is the slopes of some units of every activation step, which are drawn once, by the seed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters, Step

log = logging.getLogger("fsdtool")

UNITS_PER_STEP = 512  # of a gate pattern
ITERATIONS = 25  # of k-means at most


@dataclass(frozen=True)
class Assignment:
    """How examples map to K components.  `kind` is 'class', 'cluster' or 'all'; `names` (K,).

    Of clusters alone: `pattern`, and the `centres` (K, F) of gate patterns.
    """

    kind: str
    names: tuple[str, ...]
    pattern: GatePattern | None = None
    centres: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def assign(self, labels: Tensor, patterns: Tensor | None = None) -> Tensor:
        """Component (batch,) int64 by `labels` (batch,) or, for clusters, gate `patterns` (batch, F)."""
        if self.kind == "class":
            return labels.long()
        if self.kind == "cluster":
            assert patterns is not None
            assert self.centres is not None
            return _nearest(patterns, self.centres)
        return torch.zeros(len(labels), dtype=torch.int64, device=labels.device)

    def of(self, graph: Graph, parameters: Parameters, x: Tensor, labels: Tensor) -> Tensor:
        """Component (batch,) int64 of inputs x (batch, ...) of the graph with these labels."""
        return self.assign(labels, None if self.pattern is None else self.pattern.of(graph, parameters, x))


class GatePattern:
    """The slopes of a fixed choice of units, over all activation steps of a graph."""

    def __init__(self, graph: Graph, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.units: dict[str, Tensor] = {}
        for i in graph.indices("activation"):
            step = graph.steps[i]
            self.units[step.name] = torch.randperm(step.units, generator=generator)[:UNITS_PER_STEP].sort().values

    def slopes(self, step: Step, s: Tensor) -> Tensor:
        """Slopes (batch, up to 512) of the chosen units of `step` with pre-activations s."""
        chosen = s.flatten(1)[:, self.units[step.name].to(s.device)]
        return step.activation().gate(chosen)[0]

    def of(self, graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
        """Patterns (batch, F) of inputs x."""
        parts: list[Tensor] = []

        def observe(step: Step, inputs: list[Tensor], output: Tensor) -> None:
            if step.kind == "activation":
                parts.append(self.slopes(step, inputs[0]))

        with torch.no_grad():
            graph.run(parameters, x, observe=observe)
        return torch.cat(parts, 1)


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Centres (at most `clusters`, F) of points (n, F): Lloyd's steps from k-means++ centres, ITERATIONS at most.

    Arthur, Vassilvitskii, k-means++: the advantages of careful seeding, 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    points = points.float()
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = _squared_distance(points, points[chosen]).squeeze(1)
    while len(chosen) < min(clusters, len(points)) and float(nearest.max()) > 0:
        chosen.append(int(torch.multinomial(nearest.cpu().double(), 1, generator=generator)))
        nearest = torch.minimum(nearest, _squared_distance(points, points[chosen[-1:]]).squeeze(1))
    centres = points[chosen]
    for _ in range(ITERATIONS):
        owner = _nearest(points, centres)
        one_hot = torch.nn.functional.one_hot(owner, len(centres)).float()
        count = one_hot.sum(0)
        moved = torch.where(count[:, None] > 0, one_hot.T @ points / count.clamp(min=1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    else:
        moving = float((_nearest(points, centres) != owner).float().mean())
        log.info(
            f"k-means ended after {ITERATIONS} steps, when {moving:.1%} of the examples still changed their cluster"
        )
    return centres


def _squared_distance(points: Tensor, centres: Tensor) -> Tensor:
    squares = (points * points).sum(1, keepdim=True) + (centres * centres).sum(1)
    return (squares - 2 * points @ centres.T).clamp(min=0)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return _squared_distance(points.float(), centres).argmin(1)
