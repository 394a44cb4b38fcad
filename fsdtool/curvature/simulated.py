"""Curvature from the summary alone: gradients of pseudo-samples in place of those of the data.

Pseudo-samples of the summary (coupled gates, fsdtool.laftr.sampling) are pushed forward; v ~ N(0, H_k) at the output is
pushed back through the same gates, which gives pseudo-gradients G with E[vec G vec G^T] the Gauss-Newton block of a
weight.  Half of the samples give the eigenbases, the other half the eigenvalues (fsdtool.curvature.ekfac).

Rare components get more draws than their share, so a pseudo-sample of component k counts pi_k / n_k, n_k the number
drawn of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature, EigenvalueSums, eigenbases
from fsdtool.curvature.sources import SIMULATED
from fsdtool.laftr.sampling import Simulation
from fsdtool.network.graph import Graph, Parameters, is_convolutional
from fsdtool.network.operations import named
from fsdtool.network.operations.weighted import Weighted
from fsdtool.network.per_example_gradients import LayerIO, blocks, capture
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.eigen import symmetric_eigen

DENSE_PRODUCTS = 2**34  # multiplications of all pseudo-samples pushed forward


def default_samples(graph: Graph, examples: int) -> int:
    """Pseudo-samples for each half.

    min(1024, max(256, N)) for convolutional nets, each sample of which passes over many positions; for others
    2^34 / multiplications per sample, clipped to [1024, 8192].
    """
    if is_convolutional(graph):
        return min(1024, max(256, examples))
    dense = [step for step in graph.steps if isinstance(named(step.operation), Weighted)]
    products = sum(graph.steps[step.inputs[0]].units * step.units for step in dense)
    return min(8192, max(1024, DENSE_PRODUCTS // max(products, 1)))


def simulated_curvature(
    graph: Graph,
    parameters: Parameters,
    statistics: Statistics,
    *,
    seed: int,
    numbers: int | None = None,
    samples: int | None = None,
    device: torch.device | None = None,
) -> list[BlockCurvature]:
    """Curvature of every linear and convolution weight, in the `numbers` best directions (None: all).

    `samples` pseudo-samples give the eigenbases and as many others the eigenvalues.
    """
    found = simulated_sums(graph, parameters, statistics, seed=seed, numbers=numbers, samples=samples, device=device)
    return [sums.finalize(SIMULATED) for sums in found]


def simulated_sums(
    graph: Graph,
    parameters: Parameters,
    statistics: Statistics,
    *,
    seed: int,
    numbers: int | None = None,
    samples: int | None = None,
    device: torch.device | None = None,
) -> list[EigenvalueSums]:
    """The sums that `simulated_curvature` finalizes."""
    samples = samples or default_samples(graph, int(statistics.count.sum()))
    found = blocks(graph, parameters)
    simulation = Simulation(graph, parameters, statistics, seed=seed, device=device)
    sums = eigenbases(found, _pseudo_gradients(simulation, samples), numbers=numbers, seed=seed, device=device)
    for uses, weight in _pseudo_gradients(simulation, samples):
        for block_sums in sums:
            block_sums.update(uses, weight)
    return sums


def _pseudo_gradients(simulation: Simulation, samples: int) -> Iterator[tuple[dict[int, LayerIO], float]]:
    """Batches of pseudo-gradients, and what each of a batch counts: pi_k / n_k, in units of its mean over all drawn."""
    share = simulation.statistics.weight.tolist()
    drawn = [0] * len(share)
    for k, count in simulation.batches(samples, lambda k, count: (k, count)):
        drawn[k] += count

    def gradients(k: int, count: int) -> tuple[dict[int, LayerIO], float]:
        x, gate, _ = simulation.inputs_and_gates(k, count)
        uses = capture(simulation.graph, simulation.reference, x, _draw_output(simulation, k), gate=gate)[1]
        return uses, share[k] / drawn[k] * sum(drawn)

    return simulation.batches(samples, gradients)


def _draw_output(simulation: Simulation, k: int) -> Callable[[Tensor], Tensor]:
    """The function that draws v ~ N(0, H_k), or a drawn gradient where H_k was too large to keep."""
    hessians, generator = simulation.statistics.output_hessian, simulation.generator
    drawn = simulation.statistics.task.gradient_draw(generator)

    def draw(logits: Tensor) -> Tensor:
        if hessians is None:
            return drawn(logits)
        values, vectors_ = symmetric_eigen(hessians[k])
        root = vectors_ * values.sqrt().to(logits.dtype)
        return torch.randn(logits.shape, generator=generator, device=logits.device) @ root.T

    return draw
