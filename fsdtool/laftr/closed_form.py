"""LAFTR in closed form, for fully connected nets: a linear network with stochastic gates, pushed forward exactly.

At each activation phi(s1) is replaced by phi(s0) + m (s1 - s0), with m = phi'(s0) the gate of the reference
theta0 (Dhawan et al., ICML 2023, section 3).  phi(s0) = m s0 + c.  Under the stochastic model the inputs of
a component are Gaussian and its gates independent of them and of each other.

Per component, carry M = E[z z^T] of z = [a0; da; 1], da = a1 - a0:
    affine      z' = T z, T = [[W0, 0, b0], [W1 - W0, W1, b1 - b0], [0, 0, 1]], so M' = T M T^T
    gates       z' = G z with G = [[diag m, 0, c], [0, diag m, 0], [0, 0, 1]]: E[G] M E[G]^T, and between a
                unit and itself the variances and the covariance of m and c on top
This is the exact expectation for any theta1, cross terms and Bernoulli diagonal included, and
differentiable in theta1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters, Step
from fsdtool.network.operations.base import ACTIVATION, INPUT
from fsdtool.statistics.component_laws import Statistics


@dataclass(frozen=True)
class _Affine:
    """s = W a + b between two activations; weight None is the identity."""

    weight: Tensor | None
    bias: Tensor | None

    def then(self, step: Step, parameters: Parameters) -> _Affine:
        """This map followed by one affine or linear step of a chain."""
        after = step.definition.vector_map(step, step.roles(parameters), _like(parameters))
        if after.weight is None:
            return self
        if after.weight.dim() == 2:
            weight = after.weight if self.weight is None else after.weight @ self.weight
            return _Affine(weight, _plus(None if self.bias is None else after.weight @ self.bias, after.bias))
        weight = torch.diag(after.weight) if self.weight is None else after.weight[:, None] * self.weight
        return _Affine(weight, _plus(None if self.bias is None else after.weight * self.bias, after.bias))


def _like(parameters: Parameters) -> Tensor:
    return next(iter(parameters.values()))


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def chain(graph: Graph, parameters: Parameters) -> tuple[list[_Affine], list[int]]:
    """The affine maps of a fully connected net and the activation steps between them (one fewer)."""
    maps, activations, current = [], [], _Affine(None, None)
    for i, step in enumerate(graph.steps):
        if step.kind == ACTIVATION:
            maps.append(current)
            activations.append(i)
            current = _Affine(None, None)
        elif step.kind != INPUT:
            current = current.then(step, parameters)
    return [*maps, current], activations


def closed_form(
    graph: Graph, reference: Parameters, other: Parameters, statistics: Statistics, hessian: Tensor
) -> Tensor:
    """Expected 1/2 df^T H df per component (K,), df the difference of the outputs of `other` and `reference`.

    `hessian` (K, O, O): the identity for squared error, E[diag(p) - p p^T] for the second-order
    Kullback-Leibler divergence.  All tensors in one floating dtype (float64 for tests); differentiable in
    `other`.
    """
    maps0, activations = chain(graph, reference)
    maps1, _ = chain(graph, other)
    values = []
    for k in range(len(statistics.names)):
        joint = _enter(maps0[0], maps1[0], statistics, k)
        for activation, map0, map1 in zip(activations, maps0[1:], maps1[1:], strict=True):
            joint = _affine(_gate(joint, statistics.gates[activation].expectations(k)), map0, map1)
        size = graph.outputs
        values.append(0.5 * (hessian[k] * joint[size : 2 * size, size : 2 * size]).sum())
    return torch.stack(values)


def _enter(map0: _Affine, map1: _Affine, statistics: Statistics, k: int) -> Tensor:
    """M (2h + 1, 2h + 1) after the first affine map, from the input moments without forming them densely."""
    inputs = statistics.gaussian
    mean = inputs.mean[k]
    identity = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    w0 = identity if map0.weight is None else map0.weight
    w1 = identity if map1.weight is None else map1.weight
    weight = torch.cat([w0, w1 - w0])  # (2h, n)
    inside = weight if inputs.basis is None else weight @ inputs.basis
    covariance = inside @ inputs.core[k] @ inside.T + (weight * inputs.diagonal[k]) @ weight.T
    first = weight @ mean + torch.cat([_bias(map0, w0), _bias(map1, w1) - _bias(map0, w0)])
    return _bordered(covariance + torch.outer(first, first), first)


def _bias(affine: _Affine, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0]) if affine.bias is None else affine.bias


def _bordered(second: Tensor, first: Tensor) -> Tensor:
    one = torch.ones(1, 1, dtype=first.dtype, device=first.device)
    return torch.cat([torch.cat([second, first[:, None]], 1), torch.cat([first[None], one], 1)])


def _affine(joint: Tensor, map0: _Affine, map1: _Affine) -> Tensor:
    w0, w1 = map0.weight, map1.weight
    if w0 is None or w1 is None:  # of both or of none, as they are of one graph; without a weight there is no bias
        return joint
    b0, b1 = _bias(map0, w0), _bias(map1, w1)
    zero, row = (
        torch.zeros_like(w0),
        torch.zeros(1, joint.shape[0] - 1, dtype=joint.dtype, device=joint.device),
    )
    one = torch.ones(1, 1, dtype=joint.dtype, device=joint.device)
    top = torch.cat([w0, zero, b0[:, None]], 1)
    middle = torch.cat([w1 - w0, w1, (b1 - b0)[:, None]], 1)
    transform = torch.cat([top, middle, torch.cat([row, one], 1)])
    return transform @ joint @ transform.T


def _gate(joint: Tensor, expectations: Tensor) -> Tensor:
    """M after independent gates with E[m], E[m^2], E[c], E[m c], E[c^2] (5, n)."""
    m, m2, c, mc, c2 = expectations
    n = m.shape[0]
    scale = torch.cat([m, m, torch.ones_like(m[:1])])
    shift = torch.cat([c, torch.zeros_like(c), torch.zeros_like(c[:1])])
    last = joint[:, -1]
    passed = joint * torch.outer(scale, scale)
    passed = passed + torch.outer(scale * last, shift) + torch.outer(shift, scale * last) + torch.outer(shift, shift)
    var_m, cov, var_c = m2 - m * m, mc - m * c, c2 - c * c
    s0, ds = last[:n], last[n : 2 * n]
    own = torch.diagonal(joint)
    cross = torch.diagonal(joint[:n, n : 2 * n])
    extra = torch.diag(
        torch.cat([var_m * own[:n] + 2 * cov * s0 + var_c, var_m * own[n : 2 * n], torch.zeros_like(m[:1])])
    )
    both = torch.diag(var_m * cross + cov * ds)
    corner = torch.nn.functional.pad(both, (n, 1, 0, n + 1)) + torch.nn.functional.pad(both.T, (0, n + 1, n, 1))
    return passed + extra + corner


def kronecker_factors(
    graph: Graph, reference: Parameters, statistics: Statistics, hessian: Tensor, k: int
) -> list[tuple[Tensor, Tensor]]:
    """Diagonal blocks A (x) S of the Hessian of component k's closed form at theta1 = theta0, per affine map.

    A (n + 1, n + 1) is the forward second moment of [a; 1], S (h, h) the output Hessian pulled back through
    the gates: S_L = H, S_{l-1} = gate(W_l^T S_l W_l), off-diagonal entries times mu_i mu_j, diagonal ones
    times E[m_i^2].
    """
    maps, activations = chain(graph, reference)
    forward, joint = [], None
    for position, affine in enumerate(maps):
        if joint is None:
            mean = statistics.gaussian.mean[k]
            forward.append(_bordered(statistics.gaussian.covariance(k) + torch.outer(mean, mean), mean))
            joint = _enter(affine, affine, statistics, k)
        else:
            n = (joint.shape[0] - 1) // 2
            kept = [*range(n), 2 * n]
            forward.append(joint[kept][:, kept])
            joint = _affine(joint, affine, affine)
        if position < len(activations):
            joint = _gate(joint, statistics.gates[activations[position]].expectations(k))
    backward = [hessian[k]]
    for affine, activation in zip(reversed(maps[1:]), reversed(activations), strict=True):
        pulled = backward[0] if affine.weight is None else affine.weight.T @ backward[0] @ affine.weight
        m, m2 = statistics.gates[activation].expectations(k)[:2]
        backward.insert(0, pulled * torch.outer(m, m) + torch.diag(torch.diagonal(pulled) * (m2 - m * m)))
    return list(zip(forward, backward, strict=True))
