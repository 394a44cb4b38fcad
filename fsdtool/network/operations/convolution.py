"""Convolutions in one to three dimensions, with groups, stride, padding and dilation.

As a matrix the kernel is W (d_out, channels of a group x kernel), and a_p the patch of the input below position p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import Options, Parameters, Step
from fsdtool.network.operations.calls import Call
from fsdtool.network.operations.weighted import Block, LayerIO, Weighted, append_one, choice


class Convolution(Weighted):
    """A kernel (d_out, channels of a group, *kernel) on signals (batch, channels, *positions)."""

    names = ("conv1d", "conv2d", "conv3d")
    spellings = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    function_names = names
    arguments = ("stride", "padding", "dilation", "groups")
    channels_last = False
    over_positions = True

    @classmethod
    def read(cls, call: Call) -> Any:
        module = call.module
        if module is None:
            return super().read(call)
        if call.value.dim() != int(cls.variant(call)[-2]) + 2:
            return call.refuse("a convolution over an input without batch dimension")
        source, options = call.source, call.options(cls.arguments)
        if module.padding_mode != "zeros":
            pad = tuple(int(n) for n in module._reversed_padding_repeated_twice)
            source = call.add("pad", source, options={"pad": pad, "mode": module.padding_mode})
            options["padding"] = 0
        return call.add(cls.variant(call), source, options=options, parameters=call.roles("weight", "bias"))

    @classmethod
    def variant(cls, call: Call) -> str:
        return call.name.lower()

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return getattr(F, self.name)(inputs[0], roles["weight"], roles.get("bias"), **options)

    def is_grouped(self, step: Step) -> bool:
        return step.options.get("groups", 1) > 1

    def positions(self, block: Block, use: LayerIO) -> tuple[Tensor, Tensor]:
        a, b = _wide(block, *_patches(block, use))
        return a.flatten(1, 2), b.flatten(1, 2)

    def choose(self, block: Block, use: LayerIO, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of a grouped convolution so many of each group."""
        a, b = _wide(block, *_patches(block, use, generator, most))
        return a.flatten(0, 2), b.flatten(0, 2)

    def gradient(self, block: Block, use: LayerIO) -> Tensor:
        patches, b = _patches(block, use)
        whole = (b.mT @ patches).flatten(1, 2)  # (batch, d_out, d_in without bias)
        return torch.cat([whole, use.gradient.flatten(2).sum(2)[:, :, None]], 2) if block.bias is not None else whole

    def project(self, block: Block, use: LayerIO, u_s: Tensor, u_a: Tensor) -> Tensor:
        if self.is_grouped(use.step):
            return u_s.T @ (self.gradient(block, use) @ u_a)
        # U_A^T a_p at every position is a convolution whose filters are the columns of U_A.
        ka = u_a.shape[1]
        kernel = u_a[: block.d_in - (block.bias is not None)].T
        filters = kernel.reshape(ka, use.input.shape[1], *block.kernel)
        a = getattr(F, self.name)(use.input, filters, **use.step.options).flatten(2)
        if block.bias is not None:
            a = a + u_a[-1][:, None]
        # (ks, d_out) (batch, d_out, positions) (batch, positions, ka)
        return u_s.T @ (use.gradient.flatten(2) @ a.mT)

    def costs_more(self, block: Block, use: LayerIO, ks: int, ka: int, unfolding: float) -> bool:
        positions = use.gradient[0, 0].numel()
        patches_first = positions * ka * (block.d_in + block.d_out) + block.d_out * ks * ka
        whole_first = positions * block.size + block.size * ka + block.d_out * ks * ka
        return patches_first > unfolding * whole_first


def _wide(block: Block, patches: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Patches [a_p; 1] and gradients b_p (batch, groups, positions, ...), each group's b_p on its own of d_out."""
    patches = append_one(block, patches)
    groups, width = b.shape[1], b.shape[-1]
    if groups == 1:
        return patches, b
    wide = b.new_zeros(*b.shape[:-1], block.d_out)
    for g in range(groups):
        wide[:, g, :, g * width : (g + 1) * width] = b[:, g]
    return patches, wide


def _patches(
    block: Block, use: LayerIO, generator: torch.Generator | None = None, most: int = 0
) -> tuple[Tensor, Tensor]:
    """Input patches (batch, groups, positions, c) and gradients (batch, groups, positions, r).

    c and r are inputs and outputs of one group, without the bias.

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
    b = use.gradient.flatten(2)  # (batch, d_out, positions)
    if most:  # picked from the view: unfolding all positions would copy each input kernel-size times
        chosen = choice(b.shape[2], most, generator).to(x.device)
        at: tuple[slice | Tensor, ...] = (slice(None), slice(None), *_unravel(chosen, x.shape[2 : 2 + dimensions]))
        x, b = x[at], b[:, :, chosen]
    else:
        x = x.flatten(2, 1 + dimensions)  # (batch, C, positions, *kernel)
    x = x.reshape(batch, groups, channels // groups, x.shape[2], -1).transpose(2, 3).flatten(3)
    return x, b.reshape(batch, groups, block.d_out // groups, -1).mT


def _unravel(index: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Positions along each axis of a flat index; torch's own first imports its symbolic shapes, over a second."""
    at = []
    for length in reversed(shape):
        at.append(index % length)
        index = index // length
    return at[::-1]


def _spread(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _padding(
    padding: Literal["same", "valid"] | int | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[int]:
    """Padding before and after each dimension, last dimension first, as F.pad takes it."""
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _spread(0 if padding == "valid" else padding, len(kernel))]
    return [n for side in reversed(sides) for n in side]
