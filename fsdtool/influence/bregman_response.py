"""The proximal Bregman response with LAFTR as the function space term: what removing an example does, measured.

For a training example i, with weights theta0 before (Bae, Ng, Lo, Ghassemi, Grosse 2022; Dhawan et al. 2023):

    theta_i = argmin_theta  FSD(theta0, theta) + 1/2 sum_l lambda_l |theta_l - theta0_l|^2 - (1/N) loss_i(theta)

FSD is the second-order distance 1/2 E[df^T H_k df] over coupled pseudo-samples with the reference's gates, which is not
quadratic in theta beyond one layer; lambda_l is the damping of the quadratic form, with which this agrees in the
limit of small steps.  The influence on a query is the true change of its loss, loss_q(theta_i) - loss_q(theta0).

L-BFGS minimizes over v, theta = theta0 + r K^(-1/2) v with K the Kronecker curvature with damping, in which the Hessian
is near the identity; it starts at the Kronecker solution, whose length r makes |v| = 1.  All in float64: one example of
N moves the outputs by less than float32 resolves.

The loss of the removed example has no bound and grows faster than linearly with the weights of several layers.  Where
the examples beside it do not resist, as where all are classified with certainty, the minimum lies far from theta0, and
what it does to a query says little; |v| tells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.gauss_newton import GaussNewton, Vectors, length
from fsdtool.influence.data_gradients import Examples
from fsdtool.network.graph import Parameters
from fsdtool.tasks.task import Task
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

STEPS = 100
FAR = 3.0  # times the length of the Kronecker solution: a step that is not small
GRADIENT, CHANGE = 1e-4, 1e-9  # where it stops: the gradient's largest entry (at theta0 its length is 1), and progress

Weights = dict[str, Tensor]


class Response:
    """Solves the problem for one example at a time.

    lengths: of the steps so far, in lengths of their Kronecker solutions.  unsolved: how many have not converged.
    """

    def __init__(self, matrix: GaussNewton, curvature: list[BlockCurvature], task: Task, examples: int):
        self.matrix, self.task, self.examples = matrix.double(), task, examples
        self.curvature = [c.to(torch.float64) for c in curvature]
        self.lengths: list[float] = []
        self.unsolved = 0

    def weights_without(self, signal: Tensor, y: Tensor) -> Weights:
        """All parameters after one example is removed: its input to the graph (1, ...) and target (1, ...)."""

        def objective(step: Vectors) -> Tensor:
            moved = self._moved(step)
            return self._distance(moved, step) - self._losses(moved, signal, y)[0] / self.examples

        zero = [signal.new_zeros(1, b.d_out, b.d_in, dtype=torch.float64) for b in self.matrix.blocks]
        zero = [v.requires_grad_() for v in zero]
        with torch.enable_grad():
            pull = torch.autograd.grad(objective(zero), zero)
        start = self._root([-g for g in pull])
        unit = length(start)
        if not unit:  # a loss that no weight changes
            self.lengths.append(1.0)
            return self._moved([v.detach() for v in zero])
        found = self._minimize(lambda v: objective([unit * s for s in self._root(v)]) / unit**2, start, unit)
        return self._moved([unit * s for s in self._root(found)])

    def losses(self, weights: Parameters, signal: Tensor, y: Tensor) -> Tensor:
        """Losses (n,) float64 of examples under these parameters, each network with its own gates."""
        with torch.no_grad():
            return self._losses(weights, signal, y)

    def say(self) -> None:
        """Tell how the problems were solved: a warning where they were not."""
        found = f"proximal Bregman response: {len(self.lengths)} examples"
        far = sum(not moved <= FAR for moved in self.lengths)  # also what is not a number
        if self.unsolved:
            log.warning(f"{found}, {self.unsolved} not converged; trust their values less")
        if far:
            log.warning(
                f"{found}, of which {far} moved the weights over {FAR:.0f} times as far as the quadratic form has it "
                f"(the farthest {max(self.lengths):,.0f} times): these steps are not small, their values mean little"
            )
        if not self.unsolved and not far:
            log.info(f"{found}, all converged")

    def _minimize(self, objective: Callable[[Vectors], Tensor], start: Vectors, unit: float) -> Vectors:
        v = [(part / unit).detach().requires_grad_() for part in start]
        optimizer = torch.optim.LBFGS(
            v, max_iter=STEPS, tolerance_grad=GRADIENT, tolerance_change=CHANGE, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                value = objective(v)
                value.backward()
            return value

        optimizer.step(closure)
        # Not by its gradient: the minimum may lie on a kink, where a gate of the removed example itself flips.
        self.unsolved += optimizer.state[v[0]]["n_iter"] >= STEPS
        step = [part.detach() for part in v]
        self.lengths.append(length(step))
        return step

    def _root(self, v: Vectors) -> Vectors:
        return [c.solve(part, 0.5) for c, part in zip(self.curvature, v, strict=True)]

    def _moved(self, step: Vectors) -> Weights:
        parameters = self.matrix.parameters
        return {**parameters, **{name: parameters[name] + v[0] for name, v in self.matrix.named(step).items()}}

    def _distance(self, moved: Weights, step: Vectors) -> Tensor:
        """FSD and damping of the parameters theta0 + step."""
        squares = (c.damping_value * v.square().sum() for c, v in zip(self.curvature, step, strict=True))
        total = sum(squares, torch.zeros(())) / 2
        for draw in self.matrix.pool:
            change = self.matrix.graph.run(moved, draw.x, gate=draw.tape.replay) - draw.outputs
            total = total + draw.weight / 2 * (change * self.matrix.times_hessian(draw, change)).sum()
        return total

    def _losses(self, weights: Parameters, signal: Tensor, y: Tensor) -> Tensor:
        outputs = self.matrix.graph.run(weights, signal.double())
        return self.task.loss(outputs, y)


def respond(
    response: Response,
    queries: Examples,
    asked: Tensor,
    training: Examples,
    shortlist: Tensor,
    *,
    mean: bool = False,
    batch_size: int = 256,
    track: Track = silent,
) -> Tensor:
    """Loss changes (Q, m) of the queries if each example of their `shortlist` (Q, m) is removed.

    asked: rows of the queries in their data; with `mean` all of them are one query, of which the mean loss counts.
    """
    values = torch.zeros(shortlist.shape)
    before = _query_losses(response, response.matrix.parameters, queries, asked, batch_size)
    chosen = shortlist.unique()
    with track("proximal Bregman response", len(chosen)) as advance:
        for i in chosen.tolist():
            batch = next(training.source.batches(1, indices=[i]))
            signal = training.network.signal(batch.x.to(training.device))
            weights = response.weights_without(signal, batch.y.to(training.device))
            listing = (shortlist == i).nonzero()
            of = torch.arange(len(asked)) if mean else listing[:, 0].unique()
            change = _query_losses(response, weights, queries, asked[of], batch_size) - before[of]
            each = change.mean().expand(len(shortlist)) if mean else torch.zeros(len(shortlist)).double()
            if not mean:
                each[of] = change
            values[listing[:, 0], listing[:, 1]] = each[listing[:, 0]].float()
            advance(1)
    return values


def _query_losses(response: Response, weights: Parameters, queries: Examples, rows: Tensor, batch_size: int) -> Tensor:
    parts = []
    for batch in queries.source.batches(batch_size, indices=rows.numpy()):
        signal = queries.network.signal(batch.x.to(queries.device))
        parts.append(response.losses(weights, signal, batch.y.to(queries.device)).cpu())
    return torch.cat(parts)
