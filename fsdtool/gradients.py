"""Per-example gradients of the weights, as sums of outer products, formed only where that is cheapest.

An affine layer y = W a + b used at positions p (pixels, tokens, or one) has the gradient G = sum_p b_p
[a_p; 1]^T, with a_p its input patch and b_p the gradient of the loss at its output: a matrix (rows =
outputs, columns = inputs per output, plus one for the bias).  A weight used at several places of the
network sums over its uses.  Projected on bases S (rows, ks) and A (columns, ka): S^T G A = sum_p (S^T b_p)
(A^T [a_p; 1])^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdtool.graph import WEIGHTED, GateRule, Graph, Observer, Parameters, Step

GRADIENT_NUMBERS = 2**24  # of gradients formed whole at once
PAIRING = 1.0  # cost of a multiplication between pairs of positions, in those that form a gradient
UNFOLDING = 3.0  # cost of a multiplication on unfolded patches, in those of a convolution (measured, CPU)


@dataclass(frozen=True)
class Block:
    """One weight (with its bias, if all its uses share one) and the steps that use it."""

    weight: str
    bias: str | None
    steps: tuple[int, ...]
    rows: int
    columns: int  # the bias column included
    kernel: tuple[int, ...] = ()  # spatial size of a convolution's kernel

    @property
    def size(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Use:
    """What one use of a weight saw: its input (batch, ...) and the gradient at its output (batch, ...)."""

    step: Step
    input: Tensor
    gradient: Tensor


def blocks(graph: Graph, parameters: Parameters) -> list[Block]:
    """The weights of linear and convolution steps, in order of first use."""
    found = []
    for weight, (steps, bias) in graph.weight_uses().items():
        shape = parameters[weight].shape
        columns = math.prod(shape[1:]) + (bias is not None)
        found.append(Block(weight, bias, tuple(steps), shape[0], columns, tuple(shape[2:])))
    return found


def left_out(graph: Graph, parameters: Parameters) -> list[str]:
    """Trained parameters that no block covers: those of batch norm, scales by hand, several biases of one weight."""
    covered = {name for b in blocks(graph, parameters) for name in (b.weight, b.bias)} | graph.frozen
    roles = [(role, name) for i in graph.indices("affine") for role, name in graph.steps[i].parameters.items()]
    return list(dict.fromkeys(name for role, name in roles if name not in covered and not role.startswith("running")))


def capture(
    graph: Graph,
    parameters: Parameters,
    x: Tensor,
    output_gradient: Callable[[Tensor], Tensor],
    *,
    gate: GateRule | None = None,
    observe: Observer | None = None,
) -> tuple[Tensor, dict[int, Use]]:
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
        if step.operation not in WEIGHTED:
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
    uses = {i: Use(step, a, gradient) for (i, (step, a, _)), gradient in zip(seen.items(), gradients, strict=True)}
    return logits.detach(), uses


def project(block: Block, uses: dict[int, Use], rows: Tensor, columns: Tensor) -> Tensor:
    """S^T G A (batch, ks, ka) of every example for `rows` S (block.rows, ks), `columns` A (.columns, ka)."""
    return sum(_project(block, uses[i], rows, columns) for i in block.steps)


def gradient(block: Block, uses: dict[int, Use]) -> Tensor:
    """G (batch, rows, columns) of every example."""
    return sum(_gradient(block, uses[i]) for i in block.steps)


def squared_norms(block: Block, uses: dict[int, Use]) -> Tensor:
    """||G||_F^2 (batch,) of every example, G formed only where its positions' inner products would cost more."""
    pair = vectors(block, uses)
    if pair is not None:
        return pair[0].square().sum(1) * pair[1].square().sum(1)
    use = uses[block.steps[0]]
    positions = use.gradient[0].numel() // block.rows
    grouped = use.step.options.get("groups", 1) > 1
    if len(block.steps) > 1 or grouped or PAIRING * positions * (block.rows + block.columns) > block.size:
        return torch.cat([part.square().sum((1, 2)) for part in _gradients(block, uses)])
    if use.step.operation == "linear":
        a, b = _append_one(block, use.input).flatten(1, -2), use.gradient.flatten(1, -2)
    else:
        a, b = (part[:, 0] for part in _patches(block, use))
        a = _append_one(block, a)
    return ((a @ a.mT) * (b @ b.mT)).sum((1, 2))  # sum over p, q of (a_p . a_q) (b_p . b_q)


def vectors(block: Block, uses: dict[int, Use]) -> tuple[Tensor, Tensor] | None:
    """b (batch, rows) and [a; 1] (batch, columns) of G = b [a; 1]^T; None where G is a sum of them."""
    use = uses[block.steps[0]]
    if len(block.steps) > 1 or use.step.operation != "linear" or use.input.dim() != 2:
        return None
    return use.gradient, _append_one(block, use.input)


def has_rank_one(block: Block, graph: Graph) -> bool:
    """Whether every example's G is one outer product: a linear layer used once, on vectors."""
    step = graph.steps[block.steps[0]]
    return len(block.steps) == 1 and step.operation == "linear" and len(step.shape) == 1


def rows_of_factors(block: Block, uses: dict[int, Use], most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to `most` positions per example and use: gradients (n, rows) and inputs [a; 1] (n, columns), paired.

    For a grouped convolution an input row belongs to one group, so its gradients are zero outside the
    group's rows.
    """
    pairs = [_positions(block, uses[i], most, generator) for i in block.steps]
    return torch.cat([b for b, _ in pairs]), torch.cat([a for _, a in pairs])


def _gradients(block: Block, uses: dict[int, Use]) -> Iterator[Tensor]:
    """G of the examples in parts that hold few numbers."""
    count = len(uses[block.steps[0]].input)
    most = max(GRADIENT_NUMBERS // block.size, 1)
    for start in range(0, count, most):
        part = slice(start, start + most)
        yield gradient(block, {i: Use(uses[i].step, uses[i].input[part], uses[i].gradient[part]) for i in block.steps})


def _project(block: Block, use: Use, rows: Tensor, columns: Tensor) -> Tensor:
    if use.step.operation == "linear":
        a, b = _append_one(block, use.input) @ columns, use.gradient @ rows
        if a.dim() == 2:
            return b[:, :, None] * a[:, None, :]
        return b.flatten(1, -2).mT @ a.flatten(1, -2)  # (batch, ks, positions) (batch, positions, ka)
    positions, groups = use.gradient[0, 0].numel(), use.step.options.get("groups", 1)
    ka, ks = columns.shape[1], rows.shape[1]
    patches_first = positions * ka * (block.columns + block.rows) + block.rows * ks * ka
    whole_first = positions * block.size + block.size * ka + block.rows * ks * ka
    if groups > 1 or patches_first > UNFOLDING * whole_first:
        return rows.T @ (_gradient(block, use) @ columns)
    # A^T a_p at every position is a convolution whose filters are the columns of A.
    kernel = columns[: block.columns - (block.bias is not None)].T
    filters = kernel.reshape(ka, use.input.shape[1], *block.kernel)
    a = getattr(F, use.step.operation)(use.input, filters, **use.step.options).flatten(2)
    if block.bias is not None:
        a = a + columns[-1][:, None]
    # (ks, rows) (batch, rows, positions) (batch, positions, ka)
    return rows.T @ (use.gradient.flatten(2) @ a.mT)


def _gradient(block: Block, use: Use) -> Tensor:
    if use.step.operation == "linear":
        a, b = _append_one(block, use.input), use.gradient
        return b[:, :, None] * a[:, None, :] if a.dim() == 2 else b.flatten(1, -2).mT @ a.flatten(1, -2)
    patches, b = _patches(block, use)
    whole = (b.mT @ patches).flatten(1, 2)  # (batch, rows, columns without bias)
    return torch.cat([whole, use.gradient.flatten(2).sum(2)[:, :, None]], 2) if block.bias is not None else whole


def _positions(block: Block, use: Use, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if use.step.operation == "linear":
        a, b = _append_one(block, use.input), use.gradient
        a, b = a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(b.shape[0], -1, b.shape[-1])
        chosen = _choose(a.shape[1], most, generator).to(a.device)
        return b[:, chosen].flatten(0, 1), a[:, chosen].flatten(0, 1)
    patches, b = _patches(block, use, generator, most)
    if block.bias is not None:
        patches = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)
    groups, width = b.shape[1], b.shape[-1]
    if groups > 1:  # put each group's gradients on its own rows
        wide = b.new_zeros(*b.shape[:-1], block.rows)
        for g in range(groups):
            wide[:, g, :, g * width : (g + 1) * width] = b[:, g]
        b = wide
    return b.flatten(0, 2), patches.flatten(0, 2)


def _choose(count: int, most: int, generator: torch.Generator) -> Tensor:
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most].sort().values


def _append_one(block: Block, a: Tensor) -> Tensor:
    return torch.cat([a, torch.ones_like(a[..., :1])], -1) if block.bias is not None else a


def _patches(block: Block, use: Use, generator: torch.Generator | None = None, most: int = 0) -> tuple[Tensor, Tensor]:
    """Input patches (batch, groups, positions, columns) and gradients (batch, groups, positions, rows).

    Rows and columns are those of one group, without the bias.

    With `most`, only that many positions, the same for all examples of the batch.
    """
    x, options = use.input, use.step.options
    dimensions = x.dim() - 2
    stride, dilation = (_spread(options.get(key, 1), dimensions) for key in ("stride", "dilation"))
    x = F.pad(x, _padding(options.get("padding", 0), block.kernel, dilation))
    for axis in range(dimensions):  # adds one trailing window dimension per axis
        span = (block.kernel[axis] - 1) * dilation[axis] + 1
        x = x.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
    batch, channels, groups = x.shape[0], x.shape[1], options.get("groups", 1)
    b = use.gradient.flatten(2)  # (batch, rows, positions)
    if most:  # picked from the view: unfolding all positions would copy each input kernel-size times
        chosen = _choose(b.shape[2], most, generator).to(x.device)
        at = _unravel(chosen, x.shape[2 : 2 + dimensions])
        x, b = x[(slice(None), slice(None), *at)], b[:, :, chosen]
    else:
        x = x.flatten(2, 1 + dimensions)  # (batch, C, positions, *kernel)
    x = x.reshape(batch, groups, channels // groups, x.shape[2], -1).transpose(2, 3).flatten(3)
    return x, b.reshape(batch, groups, block.rows // groups, -1).mT


def _unravel(index: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Positions along each axis of a flat index; torch's own first imports its symbolic shapes, over a second."""
    at = []
    for length in reversed(shape):
        at.append(index % length)
        index = index // length
    return at[::-1]


def _spread(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _padding(padding: str | int | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Padding before and after each dimension, last dimension first, as F.pad takes it."""
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _spread(0 if padding == "valid" else padding, len(kernel))]
    return [n for side in reversed(sides) for n in side]
