"""How far influence from records is from that of exact gradients, measured on pairs of training examples.

Records keep part of each gradient: some directions of a wide layer, one outer product of the many of a convolution.
So influence from records is too small, by about the same factor for all pairs.  For n examples of the first sample all
n (n - 1) ordered pairs are computed both ways, r from the record and e from the whole gradient:
    scale        sqrt(sum e^2 / sum r^2), by which values from records are multiplied
    correlation  of r and e
and the same for an example with itself, where both sides are recorded and the factor differs (3.4 against 2.8 on the
sample convnet, 1.2 against .94 on an MLP for MNIST).

All weights share one scale: a scale for each, fitted jointly, raised the correlation by .005 on two convolutional nets
and missed the slope of a third network by 12 % instead of 6 %.  A few examples make up most of the sums of squares, so
half of the n are those with the largest losses among 4 n: that halves the spread of the scale over random choices.

e is computed with the curvature that influence from data uses.  A simulated curvature counts in every direction:
outside the kept ones products of the Kronecker factors' eigenvalues, scaled to the trace, come within 1 % of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.influence.gradient_records import factors
from fsdtool.network.per_example_gradients import (
    Block,
    LayerIO,
    blocks,
    capture,
    gradient,
    has_rank_one,
    project,
    vectors,
)
from fsdtool.statistics.sample import Sample, even_rows
from fsdtool.summary.catalogue import InfluenceCalibration

EXAMPLES = 64  # n
FEWEST = 12  # n where the gradients of more would not fit
NUMBERS = 2**27  # held by the gradients of all n
CANDIDATES = 4  # times n, among which the largest losses are taken


@dataclass(frozen=True)
class _Sides:
    """Examples as one weight sees them.

    whole (n, ls, la): the gradients in every direction that the curvature knows.  recorded (n, ks, ka): as the record
    has them.  parts: where the curvature does not know every direction, the vectors b (n, d_out) and a (n, d_in), or
    the gradients (n, d_out * d_in).
    """

    whole: Tensor
    recorded: Tensor
    parts: tuple[Tensor, ...]


def calibrate_influence(
    sample: Sample, kept: Sequence[BlockCurvature], exact: Sequence[BlockCurvature]
) -> InfluenceCalibration | None:
    """Records in the directions of `kept` against whole gradients with the curvature `exact`, by weight.

    `kept` has the leading directions of `exact`.  sample: the examples to choose from.  None where there are too few,
    or their gradients are zero.
    """
    graph, parameters, task = sample.graph, sample.parameters, sample.task
    by_weight = {block.weight: block for block in blocks(graph, parameters)}
    found = [by_weight[c.weight] for c in exact]
    each = sum(c.eigenvalues.numel() for c in exact) + sum(b.size for b in found if not has_rank_one(b, graph))
    chosen = _choose(sample, min(max(NUMBERS // each, FEWEST), EXAMPLES))
    if len(chosen) < 3:
        return None

    def seen(part: Sample) -> list[_Sides]:
        uses = capture(graph, parameters, part.inputs, task.loss_gradient(part.targets))[1]
        return [_sides(block, k, e, uses) for block, k, e in zip(found, kept, exact, strict=True)]

    batches = list(chosen.each(seen))
    recorded = true = own = torch.zeros((), dtype=torch.float64)
    for pieces, c, whole in zip(zip(*batches, strict=True), kept, exact, strict=True):
        r, e, s = _values(_joined(pieces), c, whole)
        recorded, true, own = recorded + r, true + e, own + s
    apart = ~torch.eye(len(chosen), dtype=torch.bool, device=true.device)
    scale, correlation = _compare(recorded[apart], true[apart])
    self_scale, self_correlation = _compare(own, true.diagonal())
    result = InfluenceCalibration(scale, correlation, self_scale, self_correlation, len(chosen), int(apart.sum()))
    return result if result.sound else None


def _choose(sample: Sample, most: int) -> Sample:
    """At most so many examples: half evenly spaced, half those with the largest losses among more such."""
    candidates = sample.evenly(CANDIDATES * most)
    losses = candidates.losses()
    even = even_rows(len(candidates), most - most // 2).to(sample.device)
    largest = losses.argsort(descending=True, stable=True)
    largest = largest[~torch.isin(largest, even)]
    return candidates[torch.cat([even, largest[: most // 2]])]


def _sides(block: Block, kept: BlockCurvature, exact: BlockCurvature, uses: dict[int, LayerIO]) -> _Sides:
    whole = project(block, uses, exact.output_basis, exact.input_basis)
    if kept.recorded:
        output, inputs = factors(block, kept, uses).part(slice(None))
    else:
        output, inputs = whole[:, :0, 0], whole[:, 0, :1]
    parts: tuple[Tensor, ...] = ()
    if exact.damped_rest is not None:
        parts = vectors(block, uses) or (gradient(block, uses).flatten(1),)
    return _Sides(whole, output[:, :, None] * inputs[:, None, :], parts)


def _joined(pieces: Sequence[_Sides]) -> _Sides:
    if len(pieces) == 1:
        return pieces[0]
    parts = tuple(torch.cat(part) for part in zip(*(piece.parts for piece in pieces), strict=True))
    return _Sides(torch.cat([p.whole for p in pieces]), torch.cat([p.recorded for p in pieces]), parts)


def _values(sides: _Sides, kept: BlockCurvature, exact: BlockCurvature) -> tuple[Tensor, Tensor, Tensor]:
    """From records and from whole gradients (n, n), query first, and of the records on themselves (n,); float64."""
    ks, ka = kept.eigenvalues.shape
    whole, recorded = sides.whole, sides.recorded
    peak = whole.abs().amax().clamp(min=torch.finfo(whole.dtype).tiny)  # squares of what is sure underflow
    whole /= peak
    recorded /= peak
    rest, inverse = exact.damped_rest, 1 / exact.damped
    from_records = (whole[:, :ks, :ka] / kept.damped).flatten(1) @ recorded.flatten(1).T
    own = (recorded.square() / kept.damped).sum((1, 2))
    true = (whole * (inverse if rest is None else inverse - 1 / rest)).flatten(1) @ whole.flatten(1).T
    if rest is not None:
        true = true + _inner(sides.parts, peak) / rest
    square = peak.double().square()
    return from_records.double() * square, true.double() * square, own.double() * square


def _inner(parts: tuple[Tensor, ...], peak: Tensor) -> Tensor:
    """The inner products (n, n) of gradients over peak^2."""
    first = parts[0] / peak
    product = first @ first.T
    return product if len(parts) == 1 else product * (parts[1] @ parts[1].T)


def _compare(recorded: Tensor, true: Tensor) -> tuple[float, float]:
    """The factor from recorded values to true ones, and their correlation; nan where there is none."""
    scale = (true.square().sum() / recorded.square().sum()).sqrt()
    return float(scale), float(torch.corrcoef(torch.stack([recorded, true]))[0, 1])
