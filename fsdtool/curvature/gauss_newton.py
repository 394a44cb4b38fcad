"""Solves with the whole Gauss-Newton matrix of the function space distance, the layers' cross terms included.

G = sum_k pi_k E_k[J^T H_k J] is the Hessian of the FSD at theta0, over coupled pseudo-samples of the summary whose
gates are recorded once, so that J is the Jacobian of a network that is linear in its signal.  A product G v is one
forward derivative J v, one multiplication by H_k and one backward derivative.  (G + lambda) x = g is solved by
conjugate gradients (Hestenes, Stiefel 1952), lambda per weight as in the Kronecker curvature, which preconditions.

A vector v is, per weight, a matrix with the bias as its last column: (queries, d_out, d_in) for many at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.simulated import default_samples
from fsdtool.errors import FsdtoolError
from fsdtool.laftr.sampling import Simulation
from fsdtool.network.graph import Graph, Parameters
from fsdtool.network.per_example_gradients import Block, capture, has_rank_one, vectors
from fsdtool.network.tape import Tape
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.eigen import symmetric_eigen

log = logging.getLogger("fsdtool")

SAMPLES: int | None = None  # pseudo-samples of the Gauss-Newton matrix; None: as many as of the Kronecker curvature
POOL_BYTES = 2**28  # held by their gates and inputs
TANGENTS = 2**26  # numbers of all steps held at once by the derivatives along many vectors
TOLERANCE = 1e-2
ITERATIONS = 100

Vectors = list[Tensor]


@dataclass(frozen=True)
class Draw:
    """Some pseudo-samples of a component: inputs, outputs of the reference (n, O), gates, weight of each sample."""

    component: int
    x: Tensor
    outputs: Tensor
    tape: Tape
    weight: float


class GaussNewton:
    """The Gauss-Newton matrix over one pool of pseudo-samples, as a product with vectors."""

    def __init__(
        self,
        graph: Graph,
        parameters: Parameters,
        statistics: Statistics,
        blocks: Sequence[Block],
        *,
        samples: int | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ):
        self.graph, self.parameters, self.blocks = graph, parameters, list(blocks)
        simulation = Simulation(graph, parameters, statistics, seed=seed, device=device)
        self.hessians, self.task = simulation.statistics.output_hessian, statistics.task
        held = sum(graph.steps[i].units for i in (0, *graph.indices("activation", "maximum")))
        samples = samples or SAMPLES or default_samples(graph, int(statistics.count.sum()))
        most = min(samples, max(POOL_BYTES // (4 * held), 64))
        parts = list(simulation.batches(most, lambda k, n: (k, simulation.forward(k, n))))
        weights = statistics.weight.tolist()
        drawn = [sum(len(part[0]) for k, part in parts if k == component) for component in range(len(weights))]
        self.pool = [Draw(k, *part, weights[k] / drawn[k]) for k, part in parts]
        self._units = sum(step.units for step in graph.steps)
        self._jacobian = self._factors()

    def double(self) -> GaussNewton:
        """The same in float64, for differences of outputs that float32 would drown."""
        other = copy(self)
        other.parameters = {name: value.double() for name, value in self.parameters.items()}
        other.hessians = None if self.hessians is None else self.hessians.double()
        other.pool = [self._doubled(draw, other.parameters) for draw in self.pool]
        if self._jacobian is not None:
            other._jacobian = [(a.double(), b.double()) for a, b in self._jacobian]
        return other

    def _doubled(self, draw: Draw, parameters: Parameters) -> Draw:
        tape, x = draw.tape.double(), draw.x.double()
        with torch.no_grad():
            return Draw(draw.component, x, self.graph.run(parameters, x, gate=tape.replay), tape, draw.weight)

    def named(self, vectors: Vectors) -> dict[str, Tensor]:
        """The vectors (..., d_out, d_in) as weights and biases by name (..., *shape)."""
        found: dict[str, Tensor] = {}
        for block, v in zip(self.blocks, vectors, strict=True):
            found |= block.split(v, self.parameters)
        return found

    def matrices(self, named: dict[str, Tensor], leading: int) -> Vectors:
        """The inverse of `named`, for tensors with `leading` dimensions in front."""
        return [block.join(named, leading) for block in self.blocks]

    def product(self, vectors: Vectors) -> Vectors:
        """G v of each of the vectors (Q, d_out, d_in)."""
        if self._jacobian is not None:
            return self._dense_product(self._jacobian, vectors)
        count = len(vectors[0])
        total = [torch.zeros_like(v) for v in vectors]
        for draw in self.pool:
            size = max(TANGENTS // (self._units * len(draw.x)), 1)
            for start in range(0, count, size):
                part = slice(start, start + size)
                for whole, found in zip(total, self._product(draw, [v[part] for v in vectors]), strict=True):
                    whole[part] += found
        return total

    def _factors(self) -> list[tuple[Tensor, Tensor]] | None:
        """Per weight factors a (N, d_in), B (N, O, d_out) of root(H) J over the pool; None where it has none.

        For a linear layer on vectors the gradient of output o is b_o a^T, and products are a few matrix products.
        """
        rows = sum(block.d_out for block in self.blocks)
        numbers = sum(len(draw.x) for draw in self.pool) * self.graph.outputs * rows
        simple = all(has_rank_one(block, self.graph) for block in self.blocks)
        if self.hessians is None or not simple or numbers > TANGENTS:
            return None
        parts = [self._draw_factors(draw, self.hessians[draw.component]) for draw in self.pool]
        return [
            (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) for pairs in zip(*parts, strict=True)
        ]

    def _draw_factors(self, draw: Draw, hessian: Tensor) -> list[tuple[Tensor, Tensor]]:
        values, basis = symmetric_eigen(hessian)
        root = (basis.double() * (values * draw.weight).sqrt()).to(draw.x.dtype)
        each = []
        for column in root.T:
            gradient_of = partial(_same_for_all, column)
            uses = capture(self.graph, self.parameters, draw.x, gradient_of, gate=draw.tape.replay)[1]
            each.append([vectors(block, uses) for block in self.blocks])
        return [(pairs[0][1], torch.stack([b for b, _ in pairs], 1)) for pairs in zip(*each, strict=True)]

    def _dense_product(self, jacobian: list[tuple[Tensor, Tensor]], vectors: Vectors) -> Vectors:
        count = len(vectors[0])
        along = vectors[0].new_zeros(())  # root(H) J v: (N, O, Q)
        for v, (a, b) in zip(vectors, jacobian, strict=True):
            inner = (v.flatten(0, 1) @ a.T).view(count, -1, len(a))  # (Q, d_out, N)
            along = along + b @ inner.permute(2, 1, 0)
        found = []
        for a, b in jacobian:
            outer = (b.mT @ along).permute(2, 1, 0)  # (Q, d_out, N)
            found.append((outer.flatten(0, 1) @ a).view(count, b.shape[2], -1))
        return found

    def _product(self, draw: Draw, vectors: Vectors) -> Vectors:
        point = {name: self.parameters[name] for name in self.named(vectors)}

        def outputs(changed: dict[str, Tensor]) -> Tensor:
            return self.graph.run({**self.parameters, **changed}, draw.x, gate=draw.tape.replay)

        along = vmap(lambda v: jvp(outputs, (point,), (v,))[1])(self.named(vectors))  # (Q, n, O)
        pull = vjp(outputs, point)[1]
        (found,) = vmap(pull)(draw.weight * self.times_hessian(draw, along))
        return self.matrices(found, 1)

    def times_hessian(self, draw: Draw, u: Tensor) -> Tensor:
        """H u for output vectors u (..., n, O): the component's mean Hessian, or the samples' own where O is large."""
        if self.hessians is not None:
            return u @ self.hessians[draw.component]
        return self.task.hessian_product(draw.outputs, u)


@dataclass
class ConjugateGradients:
    """(G + lambda)^-1 g by preconditioned conjugate gradients; says how they converged.

    iterations and residual: the most and the largest of all solves so far.  The residual r is measured as
    sqrt(r^T K^-1 r / g^T K^-1 g), with K the Kronecker curvature with damping.
    """

    matrix: GaussNewton
    curvature: list[BlockCurvature]
    tolerance: float = TOLERANCE
    most: int = ITERATIONS
    iterations: int = 0
    residual: float = 0.0

    def solve(self, gradients: Vectors) -> Vectors:
        """The solutions (Q, d_out, d_in) for gradients (Q, d_out, d_in)."""
        solution = [torch.zeros_like(g) for g in gradients]
        residual = [g.clone() for g in gradients]
        z = self._precondition(residual)
        direction = z
        first = rho = _inner(residual, z)
        if not torch.isfinite(first).all():
            raise FsdtoolError("the gradients of the queries are too large to solve with; check weights and inputs")
        goal = self.tolerance**2 * first
        for iteration in range(self.most + 1):
            active = rho > goal
            if iteration == self.most or not active.any():
                break
            rows = active.nonzero()[:, 0]
            d = [v[rows] for v in direction]
            product = self._times(d)
            step = rho[rows] / _inner(d, product)
            for x, r, v, p in zip(solution, residual, d, product, strict=True):
                x[rows] += step[:, None, None].to(x.dtype) * v
                r[rows] -= step[:, None, None].to(x.dtype) * p
            z = self._precondition([r[rows] for r in residual])
            renewed = _inner([r[rows] for r in residual], z)
            factor = (renewed / rho[rows])[:, None, None]
            rho = rho.index_copy(0, rows, renewed)
            for whole, v, new in zip(direction, d, z, strict=True):
                whole[rows] = new + factor.to(v.dtype) * v
        self.iterations = max(self.iterations, iteration)
        self.residual = max(self.residual, float((rho / first.clamp(min=1e-300)).max().sqrt()))
        return solution

    def say(self) -> None:
        """Tell how the solves converged: a warning where they did not."""
        found = f"conjugate gradients: {self.iterations} iterations, relative residual {self.residual:.1e}"
        if self.residual <= self.tolerance:
            log.info(found)
        else:
            log.warning(f"{found}, not converged to {self.tolerance:.0e}; trust the ranking less")

    def _times(self, v: Vectors) -> Vectors:
        pairs = zip(self.matrix.product(v), v, self.curvature, strict=True)
        return [g + c.damping_value * x for g, x, c in pairs]

    def _precondition(self, v: Vectors) -> Vectors:
        return [c.solve(x) for c, x in zip(self.curvature, v, strict=True)]


def _same_for_all(column: Tensor, outputs: Tensor) -> Tensor:
    return column.expand_as(outputs)


def length(v: Vectors) -> float:
    """The Euclidean length of a vector."""
    return float(sum(part.detach().square().sum() for part in v)) ** 0.5


def _inner(a: Vectors, b: Vectors) -> Tensor:
    """The inner product (Q,) of each pair, summed in float64."""
    return reduce(torch.add, [(x * y).sum((1, 2), dtype=torch.float64) for x, y in zip(a, b, strict=True)])
