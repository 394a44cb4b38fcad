"""Influence over the real data: the exact proximal Bregman response, and the solves that approximate it.

For a training example i (Bae, Ng, Lo, Ghassemi, Grosse, If influence functions are the answer, then what is the
question? 2022), with f0 the outputs at the reference theta0:

    theta_i = argmin_theta (1/N) sum_j D(f_j, f0_j) + 1/2 sum_l lambda_l |theta_l - theta0_l|^2 - (1/N) loss_i(theta)

D is the Bregman divergence of the loss: half the squared distance for squared error, KL(p0 || p) for cross-entropy.
The response on a query is loss_q(theta_i) - loss_q(theta0).  To first order it is g_q^T (G + lambda)^-1 g_i / N, with G
the Gauss-Newton matrix over the data, which conjugate gradients and LiSSA (Agarwal et al. 2017) solve with.

A vector is, per weight, a matrix with the bias as its last column.  Fully connected networks only.
"""

from __future__ import annotations

import numpy as np
import torch
from influence_methods import Problem, gauss_newton_gradients
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.gauss_newton import Vectors, length
from fsdtool.network.per_example_gradients import Block, blocks, vectors


class DataGaussNewton:
    """G over the training data, as factors a (N, columns), b (N, O, rows) of root(H) J per weight."""

    def __init__(self, problem: Problem):
        network = problem.network()
        self.blocks = blocks(network.graph, network.parameters)
        count = len(problem.inputs)
        a = [torch.zeros(count, b.d_in) for b in self.blocks]
        b = [torch.zeros(count, network.graph.outputs, block.d_out) for block in self.blocks]
        for output, rows, uses in gauss_newton_gradients(problem, network):
            for i, block in enumerate(self.blocks):
                b[i][rows, output], a[i][rows] = vectors(block, uses)
        self.factors = list(zip(a, b, strict=True))

    def product(self, v: Vectors, rows: Tensor | slice = slice(None)) -> Vectors:
        """G v of vectors (Q, rows, columns), over some examples."""
        factors = [(a[rows], b[rows]) for a, b in self.factors]
        along = sum(torch.einsum("qrc,nc,nor->qno", x, a, b) for x, (a, b) in zip(v, factors, strict=True))
        return [torch.einsum("qno,nor,nc->qrc", along, b, a) / len(a) for a, b in factors]

    def largest_eigenvalue(self, steps: int = 30) -> float:
        """By the power method."""
        generator = torch.Generator().manual_seed(0)
        v = [torch.randn(1, block.d_out, block.d_in, generator=generator) for block in self.blocks]
        for _ in range(steps):
            v = self.product(v)
            largest = length(v)
            v = [part / largest for part in v]
        return largest


def lissa(matrix: DataGaussNewton, g: Vectors, damping: list[float], *, depth: int, batch: int = 64) -> Vectors:
    """(G + lambda)^-1 g by the Neumann series over random batches, scaled for the largest eigenvalue of a batch."""
    generator = torch.Generator().manual_seed(0)
    count = len(matrix.factors[0][0])
    scale = 4 * matrix.largest_eigenvalue() + max(damping)
    x = [part / scale for part in g]
    for _ in range(depth):
        product = matrix.product(x, torch.randperm(count, generator=generator)[:batch])
        terms = zip(x, g, product, damping, strict=True)
        x = [v + (part - moved - strength * v) / scale for v, part, moved, strength in terms]
    return x


class ExactResponse:
    """The proximal Bregman response itself, by L-BFGS in float64, for one training example at a time.

    Minimized over v, theta = theta0 + K^(-1/2) v / N, with K the measured EKFAC, which makes the Hessian near the
    identity.
    """

    def __init__(self, problem: Problem, curvature: list[BlockCurvature], damping: list[float]):
        network = problem.network()
        self.problem, self.graph, self.damping = problem, network.graph, damping
        self.parameters = {name: value.double() for name, value in network.parameters.items()}
        self.blocks: list[Block] = blocks(network.graph, network.parameters)
        self.curvature = [c.to(torch.float64) for c in curvature]
        self.x, self.queries = problem.inputs.double(), problem.queries.double()
        with torch.no_grad():
            self.before = self.graph.run(self.parameters, self.x)
        self.unsolved = 0
        self.lengths: list[float] = []  # of the steps so far, in lengths of their Kronecker solutions

    def changes(self, i: int) -> np.ndarray:
        """What removing example i does to the loss of each query (Q,)."""
        n = len(self.x)
        v = [torch.zeros(1, b.d_out, b.d_in, dtype=torch.float64, requires_grad=True) for b in self.blocks]
        optimizer = torch.optim.LBFGS(
            v,
            max_iter=1000,
            history_size=50,
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            step = [c.solve(part, 0.5) / n for c, part in zip(self.curvature, v, strict=True)]
            value = (self._bregman(self._moved(step), step) - self._loss(self._moved(step), i) / n) * n**2
            value.backward()
            return value

        closure()
        kronecker = length([part.grad for part in v])
        optimizer.step(closure)
        self.lengths.append(length(v) / kronecker)
        self.unsolved += optimizer.state[v[0]]["n_iter"] >= 1000
        with torch.no_grad():
            step = [c.solve(part, 0.5) / n for c, part in zip(self.curvature, v, strict=True)]
            return (self._query_losses(self._moved(step)) - self._query_losses(self.parameters)).numpy()

    def _moved(self, step: Vectors) -> dict[str, Tensor]:
        found = dict(self.parameters)
        for block, (v,) in zip(self.blocks, step, strict=True):
            found[block.weight] = found[block.weight] + v[:, :-1]
            found[block.bias] = found[block.bias] + v[:, -1]
        return found

    def _bregman(self, moved: dict[str, Tensor], step: Vectors) -> Tensor:
        f = self.graph.run(moved, self.x)
        near = sum(strength * v.square().sum() for strength, v in zip(self.damping, step, strict=True)) / 2
        if self.problem.task.quadratic:
            return (f - self.before).square().sum(1).mean() / 2 + near
        log_p0, log_p = self.before.log_softmax(1), f.log_softmax(1)
        return (log_p0.exp() * (log_p0 - log_p)).sum(1).mean() + near

    def _loss(self, weights: dict[str, Tensor], i: int) -> Tensor:
        return self._losses(weights, self.x[i : i + 1], self.problem.targets[i : i + 1])[0]

    def _query_losses(self, weights: dict[str, Tensor]) -> Tensor:
        return self._losses(weights, self.queries, self.problem.query_targets)

    def _losses(self, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.problem.task.loss(self.graph.run(weights, x), y)
