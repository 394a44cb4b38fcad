"""Max pooling in one to three dimensions: a gate that keeps, of each window, the position of the maximum."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fsdtool.operations.base import MAXIMUM, Gated, Options, Parameters, Step


class MaximumPool(Gated):
    """Maxima over windows of a signal (batch, channels, *positions).

    Held are their places (batch, channels, P) in the signal's flattened positions.
    """

    names = (
        *("max_pool1d", "max_pool2d", "max_pool3d"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    )
    kind = MAXIMUM

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], **options)

    def hold(self, step: Step, s: Tensor) -> tuple[Tensor | None, ...]:
        _, positions = getattr(F, self.name)(s, return_indices=True, **step.options)
        return (positions.flatten(2),)

    def replay(self, step: Step, s: Tensor, held: tuple[Tensor | None, ...]) -> Tensor:
        (positions,) = held
        return s.flatten(2).gather(2, positions).unflatten(2, step.shape[1:])
