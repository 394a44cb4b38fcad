"""A dense layer y = W a + b on the last dimension of the signal."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fsdtool.operations.base import AFFINE, Operation, Options, Parameters


class Linear(Operation):
    """W (rows, n) on signals (batch, ..., n); the bias is the role 'bias', where there is one."""

    names = ("linear",)
    kind = AFFINE
    channels_last = True

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return F.linear(inputs[0], roles["weight"], roles.get("bias"))
