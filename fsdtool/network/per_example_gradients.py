"""Per-example gradients of the weights, as sums of outer products, formed only where that is cheapest.

An affine layer y = W a + b used at positions p (pixels, tokens, or one) has the gradient G = sum_p b_p
[a_p; 1]^T, with a_p its input patch and b_p the gradient of the loss at its output: a matrix (d_out, d_in),
d_out outputs and d_in inputs per output, plus one for the bias.  A weight used at several places of the network sums
over its uses.  Projected on bases U_S (d_out, ks) and U_A (d_in, ka): U_S^T G U_A = sum_p (U_S^T b_p) (U_A^T [a_p;
1])^T.

Parameters that are no matrix (norms, position embeddings, class tokens) are vectors: their G = g 1 (n, 1) has b = g,
the gradient of one example itself, and a = 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fsdtool.network.graph import GateRule, Graph, Observer, Parameters, Step
from fsdtool.network.operations.weighted import Block, LayerIO, VectorBlock, Weighted, parametric, weighted

GRADIENT_NUMBERS = 2**24  # of gradients formed whole at once
PAIRING = 1.0  # cost of a multiplication between pairs of positions, in those that form a gradient
FEW_NUMBERS = 2**14  # of a vector that is longer than the outputs of its steps
MOST_NUMBERS = 2**18  # of any vector: that of the position embedding of a ViT-L has 2^17.6
UNFOLDING = 3.0  # cost of a multiplication on unfolded patches, in those of a convolution (measured, CPU)


def blocks(graph: Graph, parameters: Parameters) -> list[Block]:
    """The trained parameters of the graph: weights in order of first use, then vectors in theirs.

    parameters: of which the shapes count.
    """
    found: list[Block] = []
    for weight, (steps, bias) in graph.weight_uses().items():
        shape = parameters[weight].shape
        d_in = math.prod(shape[1:]) + (bias is not None)
        found.append(Block(weight, bias, tuple(steps), shape[0], d_in, tuple(shape[2:])))
    return found + _vector_blocks(graph, parameters)


def _vector_blocks(graph: Graph, parameters: Parameters) -> list[Block]:
    """Parameters that the same steps use are one block, as scale and shift of a norm."""
    together: dict[tuple[int, ...], list[str]] = {}
    for name, steps in graph.vector_uses().items():
        units = max(graph.steps[i].units for i in steps)
        if 0 < parameters[name].numel() <= min(max(units, FEW_NUMBERS), MOST_NUMBERS):
            together.setdefault(steps, []).append(name)
    return [
        VectorBlock(names[0], None, steps, sum(parameters[name].numel() for name in names), 1, others=tuple(names[1:]))
        for steps, names in together.items()
    ]


def parameters_without_block(graph: Graph, found: Iterable[Block]) -> list[str]:
    """Trained parameters that none of these blocks covers.

    No block covers very long vectors, and parameters of functions that have the examples elsewhere than in front, as
    some recurrent nets do.
    """
    covered = {name for b in found for name in b.names} | graph.frozen
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
    seen: dict[int, tuple[Step, list[Tensor], Tensor]] = {}
    vectors_of = {graph.steps[i].name for steps in graph.vector_uses().values() for i in steps}
    index = {step.name: i for i, step in enumerate(graph.steps)}

    def watch(step: Step, inputs: list[Tensor], output: Tensor) -> Tensor | None:
        if observe is not None:
            with torch.no_grad():
                observe(step, [a.detach() for a in inputs], output.detach())
        if not isinstance(step.definition, Weighted) and step.name not in vectors_of:
            return None
        output = output if output.requires_grad else output.requires_grad_()
        seen[index[step.name]] = (step, [a.detach() for a in inputs], output)
        return output

    with torch.enable_grad():
        logits = graph.run(parameters, x, gate=gate, observe=watch)
        outputs = [output for _, _, output in seen.values()]
        # of a scalar: for a vector torch first imports its symbolic shapes, which takes half a second
        inner = (logits * output_gradient(logits.detach())).sum()
        gradients = torch.autograd.grad(inner, outputs)
    uses = {
        i: LayerIO(step, inputs[0], gradient, tuple(inputs[1:]), step.roles(parameters))
        for (i, (step, inputs, _)), gradient in zip(seen.items(), gradients, strict=True)
    }
    return logits.detach(), uses


def project(block: Block, uses: dict[int, LayerIO], u_s: Tensor, u_a: Tensor) -> Tensor:
    """U_S^T G U_A (batch, ks, ka) of every example for bases `u_s` (d_out, ks) and `u_a` (d_in, ka)."""
    if isinstance(block, VectorBlock):
        return (_vector(block, uses) @ u_s)[:, :, None] * u_a[0]
    return functools.reduce(torch.add, (_project(block, uses[i], u_s, u_a) for i in block.steps))


def gradient(block: Block, uses: dict[int, LayerIO]) -> Tensor:
    """G (batch, d_out, d_in) of every example."""
    if isinstance(block, VectorBlock):
        return _vector(block, uses)[:, :, None]
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
    if isinstance(block, VectorBlock):
        g = _vector(block, uses)
        return g, g.new_ones(len(g), 1)
    use = uses[block.steps[0]]
    if len(block.steps) > 1 or not weighted(use.step).has_rank_one(use.step):
        return None
    a, b = weighted(use.step).positions(block, use)
    return b[:, 0], a[:, 0]


def has_rank_one(block: Block, graph: Graph) -> bool:
    """Whether every example's G is one outer product: a vector, or a linear layer used once, on vectors."""
    if isinstance(block, VectorBlock):
        return True
    step = graph.steps[block.steps[0]]
    return len(block.steps) == 1 and weighted(step).has_rank_one(step)


def sampled_layer_io(
    block: Block, uses: dict[int, LayerIO], most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Up to `most` positions per example and use: gradients (n, d_out) and inputs [a; 1] (n, d_in), paired.

    For a grouped convolution an input belongs to one group, so its gradients are zero outside the
    group's outputs.
    """
    if isinstance(block, VectorBlock):
        g = _vector(block, uses)
        return g, g.new_ones(len(g), 1)
    pairs = [weighted(uses[i].step).choose(block, uses[i], most, generator) for i in block.steps]
    return torch.cat([b for _, b in pairs]), torch.cat([a for a, _ in pairs])


def _vector(block: VectorBlock, uses: dict[int, LayerIO]) -> Tensor:
    """g (batch, n) of every example."""
    parts: dict[str, Tensor] = {}
    for i in block.steps:
        roles = {role: name for role, name in uses[i].step.parameters.items() if name in block.names}
        for role, g in parametric(uses[i].step).vectors(uses[i], tuple(roles)).items():
            parts[roles[role]] = parts[roles[role]] + g if roles[role] in parts else g
    return torch.cat([parts[name] for name in block.names], 1)


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
