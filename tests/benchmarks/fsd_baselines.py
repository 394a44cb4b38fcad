"""Estimates of the function space distance that fsdtool is compared with.

Every one is of the form D(theta1) ~ E_x rho(f(x; theta0), f(x; theta1)), made at theta0 and then kept in `size` bytes:
    published     LAFTR's closed form as its authors wrote it: the covariances of the signal a0 and of its change da
                  are carried apart.  Their covariance with each other and the variance of the gates are left out
    EWC           1/2 delta^T diag(G) delta, G the Gauss-Newton matrix E J^T H J (for kl the Fisher matrix)
    KFAC          1/2 sum over layers of tr(dW^T S dW A), G's blocks as Kronecker products A (x) S
    Gauss-Newton  1/2 delta^T G delta itself
H is the identity for squared_error and diag(p) - p p^T for kl.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import State
from torch import Tensor, nn
from torch.func import jvp

from fsdtool.laftr.closed_form import chain
from fsdtool.network.graph import Graph, Step
from fsdtool.statistics.component_laws import Statistics

CHUNK = 100  # examples in a batch


@dataclass(frozen=True)
class Baseline:
    """An estimate: its distance from the reference to a state, and the bytes it keeps."""

    name: str
    distance: Callable[[State], float]
    size: int


def published(graph: Graph, reference: State, statistics: Statistics, hessian: Tensor, size: int) -> Baseline:
    """LAFTR as published, on the components of `statistics` (float64); `hessian` (K, O, O)."""
    reference = {name: value.double() for name, value in reference.items() if value.is_floating_point()}

    def distance(state: State) -> float:
        other = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        parts = [_published(graph, reference, other, statistics, hessian[k], k) for k in range(len(hessian))]
        return float(statistics.weight @ torch.stack(parts))

    return Baseline(f"published recursion, {_mixture(statistics)}", distance, size)


def _mixture(statistics: Statistics) -> str:
    return "per class" if statistics.kind == "class" else f"K = {len(statistics.names)}"


def _published(graph: Graph, reference: State, other: State, statistics: Statistics, hessian: Tensor, k: int) -> Tensor:
    maps0, activations = chain(graph, reference)
    maps1, _ = chain(graph, other)
    a, cov_a = statistics.input.mean[k], statistics.input.covariance(k)
    da, cov_da = torch.zeros_like(a), torch.zeros_like(cov_a)
    for position, (map0, map1) in enumerate(zip(maps0, maps1, strict=True)):
        dw, db = map1.weight - map0.weight, map1.bias - map0.bias
        da, a = dw @ a + db + map1.weight @ da, map0.weight @ a + map0.bias
        cov_da = dw @ cov_a @ dw.T + map1.weight @ cov_da @ map1.weight.T
        cov_a = map0.weight @ cov_a @ map0.weight.T
        if position < len(activations):
            mu = statistics.gates[activations[position]].expectations(k)[0]
            a, da, pair = mu * a, mu * da, torch.outer(mu, mu)
            cov_a, cov_da = pair * cov_a, pair * cov_da
    return 0.5 * (hessian * (cov_da + torch.outer(da, da))).sum()


class Quadratics:
    """The quadratic estimates of one network at `reference` over the inputs x (n, ...).

    Their parameters are all that the network reads, running means and variances included, so that they see
    whatever an event changed.
    """

    def __init__(self, graph: Graph, reference: State, x: Tensor, metric: str, seed: int = 0):
        self.graph, self.x, self.metric = graph, x, metric
        self.theta = {name: reference[name] for name in graph.parameter_names()}
        self.entries = sum(value.numel() for value in self.theta.values())
        self.generator = torch.Generator().manual_seed(seed)
        self.fisher = self._diagonal()

    def _difference(self, state: State) -> State:
        return {name: state[name] - value for name, value in self.theta.items()}

    def _draw(self, f: Tensor) -> Tensor:
        """Vectors v (batch, O) with E v v^T = H for outputs f (batch, O)."""
        v = torch.randn(f.shape, generator=self.generator)
        if self.metric == "squared_error":
            return v
        root = torch.softmax(f, 1).sqrt()
        return root * v - root.square() * (root * v).sum(1, keepdim=True)

    def _diagonal(self) -> State:
        """diag(G) from one draw v ~ N(0, H) for each example."""
        theta = {name: value.clone().requires_grad_() for name, value in self.theta.items()}
        sums = {name: torch.zeros_like(value) for name, value in theta.items()}
        for x in self.x.split(1):
            f = self.graph.run(theta, x)
            gradients = torch.autograd.grad((f * self._draw(f.detach())).sum(), list(theta.values()))
            for name, g in zip(theta, gradients, strict=True):
                sums[name].addcmul_(g, g, value=1 / len(self.x))
        return sums

    def diagonal(self) -> Baseline:
        """EWC."""

        def distance(state: State) -> float:
            return float(sum(0.5 * (self.fisher[name] * d * d).sum() for name, d in self._difference(state).items()))

        return Baseline("EWC (diagonal Fisher)", distance, 4 * self.entries)

    def kronecker(self) -> Baseline:
        """KFAC on linear and convolutional layers (Martens, Grosse 2015; Grosse, Martens 2016), EWC elsewhere."""
        steps = [step for step in self.graph.steps if step.operation in ("linear", "conv2d")]
        forward: dict[str, Tensor] = {}
        backward: dict[str, Tensor] = {}
        theta = {name: value.clone().requires_grad_() for name, value in self.theta.items()}
        for x in self.x.split(CHUNK):
            met: dict[str, tuple[Tensor, Tensor]] = {}

            def observe(step: Step, inputs: list[Tensor], output: Tensor, met=met) -> None:
                if step in steps:
                    met[step.name] = _rows(step, inputs[0].detach(), self.theta), output

            f = self.graph.run(theta, x, observe=observe)
            outputs = [met[step.name][1] for step in steps]
            gradients = torch.autograd.grad((f * self._draw(f.detach())).sum(), outputs)
            for step, b in zip(steps, gradients, strict=True):
                a = met[step.name][0]
                b = b if b.dim() == 2 else b.movedim(1, 3).reshape(-1, b.shape[1])  # (batch x positions, rows)
                positions = len(b) / len(x)
                forward[step.name] = forward.get(step.name, 0) + a.T @ a / len(self.x)
                backward[step.name] = backward.get(step.name, 0) + b.T @ b / (len(self.x) * positions)
        inside = {name for step in steps for name in step.parameters.values()}
        rest = [name for name in self.theta if name not in inside]

        def distance(state: State) -> float:
            d = self._difference(state)
            total = sum((self.fisher[name] * d[name].square()).sum() for name in rest)
            for step in steps:
                dw = d[step.parameters["weight"]].flatten(1)
                if "bias" in step.parameters:
                    dw = torch.cat([dw, d[step.parameters["bias"]][:, None]], 1)
                total += (backward[step.name] @ dw @ forward[step.name] * dw).sum()
            return 0.5 * float(total)

        size = sum(factor.numel() for factor in (*forward.values(), *backward.values()))
        return Baseline("KFAC", distance, 4 * (size + sum(self.theta[name].numel() for name in rest)))

    def full(self) -> Baseline:
        """The Gauss-Newton quadratic by J delta on the data; the size is that of the symmetric matrix."""

        def distance(state: State) -> float:
            d, total = self._difference(state), 0.0
            for x in self.x.split(1000):
                f, df = jvp(lambda theta, x=x: self.graph.run(theta, x), (self.theta,), (d,))
                square = df.square()
                if self.metric != "squared_error":
                    p = torch.softmax(f, 1)
                    square = p * (df - (p * df).sum(1, keepdim=True)).square()
                total += 0.5 * float(square.sum(dtype=torch.float64))
            return total / len(self.x)

        return Baseline("Gauss-Newton, exact", distance, 2 * self.entries * (self.entries + 1))


def _rows(step: Step, x: Tensor, theta: State) -> Tensor:
    """The rows [a; 1] (batch x positions, columns) that a layer's weight meets; without the 1 if it has no bias."""
    if step.operation == "conv2d":
        kernel = tuple(theta[step.parameters["weight"]].shape[2:])
        x = nn.functional.unfold(x, kernel, padding=step.options["padding"], stride=step.options["stride"])
        x = x.mT.reshape(-1, x.shape[1])
    return torch.cat([x, torch.ones(len(x), 1)], 1) if "bias" in step.parameters else x
