"""What the influence benchmarks compare, besides the tools of others (influence_peers.py).

Every method gives tau (Q, N), larger where training example i helps query q more; most are of the form
tau = g_q^T (G + lambda)^-1 g_i / N with exact gradients g and a curvature G per weight:
    gradient dot product   no curvature at all
    measured EKFAC         Kronecker eigenbasis and corrected eigenvalues (George et al. 2018) of the Gauss-Newton
                           matrix on the training data itself, in exact expectation over the labels
    LAFTR                  fsdtool's, from the summary's statistics alone: streamed, with exact gradients of the
                           training data, or from the summary's records, without them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import State
from torch import Tensor, nn

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.data.formats.load import DataSource, load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.influence.scores import influence
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.network.per_example_gradients import Block, LayerIO, blocks, capture, gradient, project, vectors
from fsdtool.network.traced import Network
from fsdtool.network.tracing.trace import trace
from fsdtool.summary.reader import Summary, load
from fsdtool.tasks.task import Task, task_of

BATCH = 250


@dataclass(frozen=True)
class Problem:
    """A trained network, its training data, and queries.

    inputs (N, ...), queries (Q, ...) float32; targets (N,) int64 or (N, O) float32, and those of the queries.
    """

    build: Callable[[], nn.Module]
    reference: State
    inputs: Tensor
    targets: Tensor
    queries: Tensor
    query_targets: Tensor

    @property
    def task(self) -> Task:
        return task_of("regression" if self.targets.is_floating_point() else "classification")

    def model(self) -> nn.Module:
        """The network at the reference, in eval mode."""
        model = self.build()
        model.load_state_dict(self.reference)
        return model.eval()

    def network(self) -> Network:
        """The network as fsdtool traces it."""
        return trace(self.model(), self.inputs[:2])


def attribution(problem: Problem, curvatures: list[BlockCurvature]) -> np.ndarray:
    """tau (Q, N) from exact gradients in the directions of `curvatures`."""
    network = problem.network()
    found = blocks(network.graph, network.parameters)
    pairs = list(zip(found, curvatures, strict=True))
    solved = [[] for _ in pairs]
    for _, uses in gradients(network, problem.queries, loss_of(problem, problem.query_targets)):
        for (block, c), part in zip(pairs, solved, strict=True):
            part.append(project(block, uses, c.output_basis, c.input_basis) / c.damped)
    queries = [torch.cat(part) for part in solved]  # (Q, ks, ka)
    parts = []
    for _, uses in gradients(network, problem.inputs, loss_of(problem, problem.targets)):
        total = 0
        for (block, c), q in zip(pairs, queries, strict=True):
            pair = vectors(block, uses)
            if pair is None:
                g = project(block, uses, c.output_basis, c.input_basis)
                total = total + q.flatten(1) @ g.flatten(1).T
            else:  # (Q, ks, ka) (ka, n) against (ks, n)
                b, a = pair[0] @ c.output_basis, pair[1] @ c.input_basis
                total = total + ((q.flatten(0, 1) @ a.T).view(*q.shape[:2], -1) * b.T).sum(1)
        parts.append(total)
    return (torch.cat(parts, 1) / len(problem.inputs)).numpy()


def loss_of(problem: Problem, targets: Tensor) -> Callable[[slice], Callable[[Tensor], Tensor]]:
    """For rows of the data, the gradient of the loss at the outputs."""
    return lambda rows: problem.task.loss_gradient(targets[rows])


def gradients(
    network: Network, x: Tensor, output_gradient: Callable[[slice], Callable[[Tensor], Tensor]]
) -> Iterator[tuple[slice, dict[int, LayerIO]]]:
    """Batches of x: their rows, and what each weight sees for the gradient at the outputs given for the rows."""
    for start in range(0, len(x), BATCH):
        rows = slice(start, start + BATCH)
        yield rows, capture(network.graph, network.parameters, x[rows], output_gradient(rows))[1]


# The curvatures


def flat(problem: Problem) -> list[BlockCurvature]:
    """No curvature: all eigenvalues alike, so that tau is the dot product of gradients."""
    network = problem.network()
    return [
        BlockCurvature(b.weight, b.bias, torch.eye(b.d_in), torch.eye(b.d_out), torch.zeros(b.d_out, b.d_in), 0.0)
        for b in blocks(network.graph, network.parameters)
    ]


def measured_ekfac(problem: Problem) -> list[BlockCurvature]:
    """EKFAC on the training data: every output, every position."""
    network = problem.network()
    found = blocks(network.graph, network.parameters)
    moments = [(torch.zeros(b.d_in, b.d_in), torch.zeros(b.d_out, b.d_out)) for b in found]
    for _, _, uses in gauss_newton_gradients(problem, network):
        for block, (inputs, outputs) in zip(found, moments, strict=True):
            pair = vectors(block, uses)
            if pair is not None:
                inputs += pair[1].T @ pair[1]
                outputs += pair[0].T @ pair[0]
            else:
                a, b = _positions(block, uses)
                inputs += a.T @ a
                outputs += b.T @ b
    bases = [[torch.linalg.eigh(moment.double())[1].float() for moment in pair] for pair in moments]
    squares = [torch.zeros(b.d_out, b.d_in) for b in found]
    for _, _, uses in gauss_newton_gradients(problem, network):
        for block, (u_a, u_s), total in zip(found, bases, squares, strict=True):
            pair = vectors(block, uses)
            if pair is not None:
                total += (pair[0] @ u_s).square().T @ (pair[1] @ u_a).square()
            else:
                total += (u_s.T @ gradient(block, uses) @ u_a).square().sum(0)
    return [
        BlockCurvature(
            b.weight, b.bias, u_a, u_s, total / len(problem.inputs), float(total.mean()) / len(problem.inputs)
        )
        for b, (u_a, u_s), total in zip(found, bases, squares, strict=True)
    ]


def gauss_newton_gradients(problem: Problem, network: Network) -> Iterator[tuple[int, slice, dict[int, LayerIO]]]:
    """Batches of gradients whose second moments, summed, are N times the Gauss-Newton matrix: for every output one.

    For cross-entropy sqrt(p_c) (p - e_c), c each class, for squared error e_o, o each output.
    """
    for output in range(network.graph.outputs):

        def draw(logits: Tensor, output: int = output) -> Tensor:
            unit = nn.functional.one_hot(torch.tensor(output), logits.shape[1]).to(logits.dtype)
            if problem.task.quadratic:
                return unit.expand_as(logits)
            p = logits.softmax(1)
            return (p - unit) * p[:, output : output + 1].sqrt()

        for rows, uses in gradients(network, problem.inputs, lambda rows, draw=draw: draw):
            yield output, rows, uses


def _positions(block: Block, uses: dict[int, LayerIO]) -> tuple[Tensor, Tensor]:
    """Input patches [a; 1] (n, columns) and gradients (n, rows) at all positions of a two-dimensional convolution."""
    (use,) = (uses[i] for i in block.steps)
    options = {key: value for key, value in use.step.options.items() if key != "groups"}
    a = nn.functional.unfold(use.input, block.kernel, **options).mT.flatten(0, 1)
    if block.bias is not None:
        a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
    return a, use.gradient.flatten(2).mT.flatten(0, 1)


# fsdtool


def summarized(problem: Problem, folder: Path, **options: object) -> Summary:
    """The summary of the training data, as `fsdtool summarize` writes it."""
    data = source(problem, folder / "train.npz", problem.inputs, problem.targets)
    path = folder / "summary.h5"
    checkpoint = Checkpoint("reference", "", problem.reference, ())
    summarize(model=problem.build(), checkpoint=checkpoint, data=data, output=path, **options)
    return load(path)


def source(problem: Problem, path: Path, x: Tensor, y: Tensor) -> DataSource:
    """Examples as a data set of the tool, in the file `path`."""
    if not path.is_file():
        np.savez(path, x=x.numpy(), y=y.numpy())
    return load_dataset(str(path), task=problem.task)


def by_tool(
    summary: Summary, problem: Problem, folder: Path, *, streamed: bool = False, solver: str = "kronecker"
) -> np.ndarray:
    """tau (Q, N) as `fsdtool influence --matrix` computes it, from the records or with `--data`."""
    matrix = folder / "matrix.npy"
    queries = source(problem, folder / "queries.npz", problem.queries, problem.query_targets)
    data = source(problem, folder / "train.npz", problem.inputs, problem.targets) if streamed else None
    influence(summary, queries, top=1, matrix=matrix, data=data, solver=solver)
    return np.load(matrix)
