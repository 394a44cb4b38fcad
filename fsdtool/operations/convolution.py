"""Convolutions in one to three dimensions, with groups, stride, padding and dilation."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fsdtool.operations.base import AFFINE, Operation, Options, Parameters


class Convolution(Operation):
    """A kernel (rows, channels of a group, *kernel) on signals (batch, channels, *positions)."""

    names = ("conv1d", "conv2d", "conv3d")
    kind = AFFINE
    channels_last = False
    over_positions = True

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], roles["weight"], roles.get("bias"), **options)
