"""A dense layer y = W a + b on the last dimension of the signal."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import Options, Parameters, Step, VectorMap
from fsdtool.network.operations.weighted import Block, LayerIO, Weighted, append_one


class Linear(Weighted):
    """W (d_out, n) on signals (batch, ..., n); on vectors (batch, n) a gradient is one outer product."""

    names = ("linear",)
    spellings = (nn.Linear,)
    function_names = ("linear",)
    channels_last = True
    entrywise = True

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return F.linear(inputs[0], roles["weight"], roles.get("bias"))

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        return VectorMap(roles["weight"], roles.get("bias"))

    def has_rank_one(self, step: Step) -> bool:
        return len(step.shape) == 1

    def positions(self, block: Block, use: LayerIO) -> tuple[Tensor, Tensor]:
        a, b = append_one(block, use.input), use.gradient
        return a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(b.shape[0], -1, b.shape[-1])

    def gradient(self, block: Block, use: LayerIO) -> Tensor:
        if use.input.dim() > 2:
            return super().gradient(block, use)
        return use.gradient[:, :, None] * append_one(block, use.input)[:, None, :]

    def project(self, block: Block, use: LayerIO, u_s: Tensor, u_a: Tensor) -> Tensor:
        if use.input.dim() > 2:
            return super().project(block, use, u_s, u_a)
        return (use.gradient @ u_s)[:, :, None] * (append_one(block, use.input) @ u_a)[:, None, :]
