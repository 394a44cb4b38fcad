"""What the summary keeps of each training example's gradient: its leading projected factors, in float16.

For a weight used at one position G = b [a; 1]^T, and the record holds U_S^T b and U_A^T [a; 1], projected on the
kept directions.  Where G is a sum over positions the record holds the best rank-one approximation of the
projected gradient after preconditioning by (eigenvalue + damping)^(-1/2), averaged over rows and over columns
so that it separates.  Factors are kept with unit length and a float32 scale: float16 alone ends at 6e-8, far
above the gradients of examples that the network is sure of.  With them goes each example's self-influence
(fsdtool.influence.self_scores), of these factors as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.network.per_example_gradients import Block, LayerIO, project, vectors

SCALE_BYTES = 4
FACTOR_BYTES = 2
POWER_STEPS = 6
CHUNK = 16384  # records read at once

Read = Callable[[str, slice], np.ndarray]


@dataclass(frozen=True)
class Factors:
    """Records of one weight: G ~ scale * output input^T in its curvature's bases.

    output (N, ks) and input (N, ka) float16 of unit length, scale (N,) float32.
    """

    output: Tensor
    input: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.scale)

    def part(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Output and input factors (n, ks), (n, ka) of some examples, float32, the scale within the first."""
        return self.output[rows].float() * self.scale[rows, None], self.input[rows].float()

    def quadratic(self, curvature: BlockCurvature) -> Tensor:
        """g^T (G + lambda)^-1 g (N,) float32 of the recorded gradients g, on the CPU."""
        output, inputs = self.output.float().square(), self.input.float().square()
        # the scale last: its square may be too small for float32 where a flat curvature makes up for it
        return (output @ curvature.damped.cpu().reciprocal() * inputs).sum(1) * self.scale * self.scale


def read_factors(read: Read, weight: str, rows: slice) -> Factors:
    """The factors of some examples for one weight, where `read(name, rows)` reads rows of a record dataset."""
    parts = (read(f"gradients/{weight}/{name}", rows) for name in ("output", "input", "scale"))
    return Factors(*(torch.from_numpy(part) for part in parts))


def self_influence(read: Read, curvatures: Sequence[BlockCurvature], examples: int, scale: float = 1.0) -> Tensor:
    """tau(i, i) (N,) float32, in the units of the loss, times `scale`, of the records that `read` reads."""
    values = torch.zeros(examples)
    for start in range(0, examples, CHUNK):
        rows = slice(start, min(start + CHUNK, examples))
        for c in curvatures:
            values[rows] += read_factors(read, c.weight, rows).quadratic(c)
    return (values * (scale / examples)).clamp(max=torch.finfo(values.dtype).max)


def numbers_within(record_bytes: int, weights: int) -> int:
    """How many factor entries `record_bytes` per example leave for a network of so many weights.

    What the scales of vectors take is counted where directions are allotted (fsdtool.curvature.ekfac).
    """
    return max((record_bytes - SCALE_BYTES * weights) // FACTOR_BYTES, 0)


def bytes_per_example(curvatures: Sequence[BlockCurvature]) -> int:
    """Size of one example's gradient records in the directions that `curvatures` keep."""
    return sum(FACTOR_BYTES * sum(c.eigenvalues.shape) + SCALE_BYTES for c in curvatures)


def factors(block: Block, curvature: BlockCurvature, uses: dict[int, LayerIO]) -> Factors:
    """The records of a batch for one weight."""
    pair = vectors(block, uses)
    if pair is not None:
        output, inputs = pair[0] @ curvature.output_basis, pair[1] @ curvature.input_basis
    else:
        output, inputs = _rank_one(project(block, uses, curvature.output_basis, curvature.input_basis), curvature)
    (output, output_length), (inputs, input_length) = _unit(output), _unit(inputs)
    return Factors(output.half(), inputs.half(), output_length * input_length)


def _unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors v (batch, k) at unit length (or zero), and their lengths (batch,)."""
    peak = _peak(v)
    length = (v / peak).norm(dim=1, keepdim=True)
    return v / peak / length.clamp(min=1), (peak * length)[:, 0]


def _peak(v: Tensor) -> Tensor:
    """Largest absolute value of each example (batch, 1, ...).  Divided by it, no square of v underflows."""
    return v.abs().amax(tuple(range(1, v.dim())), keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _rank_one(g: Tensor, curvature: BlockCurvature) -> tuple[Tensor, Tensor]:
    """Factors (batch, ks), (batch, ka) of g (batch, ks, ka): its best preconditioned rank-one matrix."""
    precondition = curvature.damped.rsqrt()
    w_rows, w_columns = precondition.mean(1), precondition.mean(0)
    weighted = g * w_rows[:, None] * w_columns
    peak = _peak(weighted)
    weighted = weighted / peak
    # Start from the column norms, with the signs of the largest row: weighted @ v is then not zero there.
    strongest = weighted.abs().sum(2).argmax(1)[:, None, None].expand(-1, 1, g.shape[2])
    v = weighted.norm(dim=1) * torch.where(weighted.gather(1, strongest)[:, 0] < 0, -1.0, 1.0)  # (batch, ka)
    for _ in range(POWER_STEPS):
        u, _length = _unit((weighted @ v[:, :, None])[:, :, 0])
        v = (u[:, None, :] @ weighted)[:, 0]
    return u / w_rows, peak[:, 0] * v / w_columns
