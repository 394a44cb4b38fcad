"""A small vision transformer: 16 patches of 7 x 7 pixels, pre-norm blocks of attention and a GELU layer, their mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens (batch, T, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.n1, self.qkv, self.o = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n2, self.f1, self.f2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.n1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.o(mixed)
        return x + self.f2(F.gelu(self.f1(self.n2(x))))


class VisionTransformer(nn.Module):
    """Images (batch, 784) of digits to logits (batch, 10)."""

    def __init__(self, width: int = 48, heads: int = 4, blocks: int = 3):
        super().__init__()
        self.emb, self.pos = nn.Linear(49, width), nn.Parameter(torch.zeros(1, 16, width))
        self.bl = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.n, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.view(len(x), 4, 7, 4, 7).permute(0, 1, 3, 2, 4).reshape(len(x), 16, 49)
        tokens = self.emb(patches) + self.pos
        for block in self.bl:
            tokens = block(tokens)
        return self.head(self.n(tokens.mean(1)))
