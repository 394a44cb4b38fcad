"""Average pooling in one to three dimensions, and the options that all pools share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fsdtool.operations.base import Operation, Options, Parameters


class AveragePool(Operation):
    """Means over windows of a signal (batch, channels, *positions)."""

    names = (
        *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    )

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], **options)
