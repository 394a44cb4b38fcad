"""Max pooling in one to three dimensions: a gate that keeps, of each window, the position of the maximum."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fsdtool.operations.base import MAXIMUM, Operation, Options, Parameters


class MaximumPool(Operation):
    """Maxima over windows of a signal (batch, channels, *positions)."""

    names = (
        *("max_pool1d", "max_pool2d", "max_pool3d"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    )
    kind = MAXIMUM

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], **options)
