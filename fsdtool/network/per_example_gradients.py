"""Per-example gradients of the weights, as sums of outer products, formed only where that is cheapest.

An affine layer y = W a + b used at positions p (pixels, tokens, or one) has the gradient G = sum_p b_p
[a_p; 1]^T, with a_p its input patch and b_p the gradient of the loss at its output: a matrix (d_out, d_in),
d_out outputs and d_in inputs per output, plus one for the bias.  A weight used at several places of the network sums
over its uses.  Projected on bases U_S (d_out, ks) and U_A (d_in, ka): U_S^T G U_A = sum_p (U_S^T b_p) (U_A^T [a_p;
1])^T.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fsdtool.network.graph import GateRule, Graph, Observer, Parameters, Step
from fsdtool.network.operations.weighted import Block, LayerIO, Weighted, weighted

GRADIENT_NUMBERS = 2**24  # of gradients formed whole at once
PAIRING = 1.0  # cost of a multiplication between pairs of positions, in those that form a gradient
UNFOLDING = 3.0  # cost of a multiplication on unfolded patches, in those of a convolution (measured, CPU)


def blocks(graph: Graph, parameters: Parameters) -> list[Block]:
    """The trained weights of the graph, in order of first use."""
    found = []
    for weight, (steps, bias) in graph.weight_uses().items():
        shape = parameters[weight].shape
        d_in = math.prod(shape[1:]) + (bias is not None)
        found.append(Block(weight, bias, tuple(steps), shape[0], d_in, tuple(shape[2:])))
    return found


def parameters_without_block(graph: Graph, parameters: Parameters) -> list[str]:
    """Trained parameters that no block covers: those of batch norm, scales by hand, several biases of one weight."""
    covered = {name for b in blocks(graph, parameters) for name in (b.weight, b.bias)} | graph.frozen
    trained = [
        name for step in graph.steps for role, name in step.parameters.items() if role not in step.definition.buffers
    ]
    return list(dict.fromkeys(name for name in trained if name not in covered))


def capture(
    graph: Graph,
    parameters: Parameters,
    x: Tensor,
    output_gradient: Callable[[Tensor], Tensor],
    *,
    gate: GateRule | None = None,
    observe: Observer | None = None,
) -> tuple[Tensor, dict[int, LayerIO]]:
    """Run the graph on x and back: logits (batch, O), and what each step that uses a weight saw.

    `output_gradient(logits)` gives the gradient at the outputs (batch, O).  `observe(step, inputs, output)`
    sees every step, outside the gradient's graph.  Weight gradients are never formed.
    """
    seen: dict[int, tuple[Step, Tensor, Tensor]] = {}
    index = {step.name: i for i, step in enumerate(graph.steps)}

    def watch(step: Step, inputs: list[Tensor], output: Tensor) -> Tensor | None:
        if observe is not None:
            with torch.no_grad():
                observe(step, [a.detach() for a in inputs], output.detach())
        if not isinstance(step.definition, Weighted):
            return None
        output = output if output.requires_grad else output.requires_grad_()
        seen[index[step.name]] = (step, inputs[0].detach(), output)
        return output

    with torch.enable_grad():
        logits = graph.run(parameters, x, gate=gate, observe=watch)
        outputs = [output for _, _, output in seen.values()]
        # of a scalar: for a vector torch first imports its symbolic shapes, which takes half a second
        inner = (logits * output_gradient(logits.detach())).sum()
        gradients = torch.autograd.grad(inner, outputs)
    uses = {i: LayerIO(step, a, gradient) for (i, (step, a, _)), gradient in zip(seen.items(), gradients, strict=True)}
    return logits.detach(), uses


def project(block: Block, uses: dict[int, LayerIO], u_s: Tensor, u_a: Tensor) -> Tensor:
    """U_S^T G U_A (batch, ks, ka) of every example for bases `u_s` (d_out, ks) and `u_a` (d_in, ka)."""
    return functools.reduce(torch.add, (_project(block, uses[i], u_s, u_a) for i in block.steps))


def gradient(block: Block, uses: dict[int, LayerIO]) -> Tensor:
    """G (batch, d_out, d_in) of every example."""
    return functools.reduce(torch.add, (weighted(uses[i].step).gradient(block, uses[i]) for i in block.steps))


def squared_norms(block: Block, uses: dict[int, LayerIO]) -> Tensor:
    """||G||_F^2 (batch,) of every example, G formed only where its positions' inner products would cost more."""
    pair = vectors(block, uses)
    if pair is not None:
        return pair[0].square().sum(1) * pair[1].square().sum(1)
    use = uses[block.steps[0]]
    positions, operation = use.gradient[0].numel() // block.d_out, weighted(use.step)
    grouped = operation.is_grouped(use.step)
    if len(block.steps) > 1 or grouped or PAIRING * positions * (block.d_out + block.d_in) > block.size:
        return torch.cat([part.square().sum((1, 2)) for part in _gradients(block, uses)])
    a, b = operation.positions(block, use)
    return ((a @ a.mT) * (b @ b.mT)).sum((1, 2))  # sum over p, q of (a_p . a_q) (b_p . b_q)


def vectors(block: Block, uses: dict[int, LayerIO]) -> tuple[Tensor, Tensor] | None:
    """b (batch, d_out) and [a; 1] (batch, d_in) of G = b [a; 1]^T; None where G is a sum of them."""
    use = uses[block.steps[0]]
    if len(block.steps) > 1 or not weighted(use.step).has_rank_one(use.step):
        return None
    a, b = weighted(use.step).positions(block, use)
    return b[:, 0], a[:, 0]


def has_rank_one(block: Block, graph: Graph) -> bool:
    """Whether every example's G is one outer product: a linear layer used once, on vectors."""
    step = graph.steps[block.steps[0]]
    return len(block.steps) == 1 and weighted(step).has_rank_one(step)


def sampled_layer_io(
    block: Block, uses: dict[int, LayerIO], most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Up to `most` positions per example and use: gradients (n, d_out) and inputs [a; 1] (n, d_in), paired.

    For a grouped convolution an input belongs to one group, so its gradients are zero outside the
    group's outputs.
    """
    pairs = [weighted(uses[i].step).choose(block, uses[i], most, generator) for i in block.steps]
    return torch.cat([b for _, b in pairs]), torch.cat([a for a, _ in pairs])


def _gradients(block: Block, uses: dict[int, LayerIO]) -> Iterator[Tensor]:
    """G of the examples in parts that hold few numbers."""
    count = len(uses[block.steps[0]].input)
    most = max(GRADIENT_NUMBERS // block.size, 1)
    for start in range(0, count, most):
        part = slice(start, start + most)
        yield gradient(
            block, {i: LayerIO(uses[i].step, uses[i].input[part], uses[i].gradient[part]) for i in block.steps}
        )


def _project(block: Block, use: LayerIO, u_s: Tensor, u_a: Tensor) -> Tensor:
    operation = weighted(use.step)
    if operation.costs_more(block, use, u_s.shape[1], u_a.shape[1], UNFOLDING):
        return u_s.T @ (operation.gradient(block, use) @ u_a)
    return operation.project(block, use, u_s, u_a)
