"""Operations with a weight matrix W and perhaps a bias: y_p = W a_p + b at positions p (pixels, tokens, or one).

The gradient of one example is G = sum_p b_p [a_p; 1]^T, with a_p the input at p and b_p the gradient of the loss at the
output there (see fsdtool.network.per_example_gradients).  A new such operation says its `positions`; the rest follows,
and is overridden where something is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsdtool.network.operations.base import AFFINE, Operation, Step
from fsdtool.network.operations.calls import Call, Parameter


@dataclass(frozen=True)
class Block:
    """One weight (with its bias, if all its uses share one) and the steps that use it: a matrix (d_out, d_in)."""

    weight: str
    bias: str | None
    steps: tuple[int, ...]
    d_out: int
    d_in: int  # the bias column included
    kernel: tuple[int, ...] = ()  # spatial size of a convolution's kernel

    @property
    def size(self) -> int:
        return self.d_out * self.d_in


@dataclass(frozen=True)
class LayerIO:
    """What one use of a weight saw: its input (batch, ...) and the gradient at its output (batch, ...)."""

    step: Step
    input: Tensor
    gradient: Tensor


class Weighted(Operation):
    """The weight is the role 'weight', W in its first dimension (d_out) and the rest; 'bias' (d_out,)."""

    kind = AFFINE

    @classmethod
    def read(cls, call: Call) -> Any:
        if call.module is not None:
            roles, options = call.roles("weight", "bias"), call.options(cls.arguments)
            return call.add(cls.variant(call), call.source, options=options, parameters=roles)
        options = call.given(("weight", "bias", *cls.arguments))
        weights = {role: options.pop(role, None) for role in ("weight", "bias")}
        weights = {role: value for role, value in weights.items() if value is not None}
        if not all(isinstance(w, Parameter) and w.shape == call.stored_shape(w) for w in weights.values()):
            return call.refuse("weights that are computed, not stored")
        roles = {role: parameter.name for role, parameter in weights.items()}
        return call.add(cls.variant(call), call.source, options=options, parameters=roles)

    def positions(self, block: Block, use: LayerIO) -> tuple[Tensor, Tensor]:
        """Inputs [a_p; 1] (batch, P, d_in), 1 where the block has a bias, and gradients b_p (batch, P, d_out)."""
        raise NotImplementedError

    def has_rank_one(self, step: Step) -> bool:
        """Whether P = 1, so that every example's G is one outer product."""
        return False

    def is_grouped(self, step: Step) -> bool:
        """Whether an input belongs to some of the outputs only, and the others of b_p are zero."""
        return False

    def gradient(self, block: Block, use: LayerIO) -> Tensor:
        """G (batch, d_out, d_in) of every example."""
        a, b = self.positions(block, use)
        return b.mT @ a

    def project(self, block: Block, use: LayerIO, u_s: Tensor, u_a: Tensor) -> Tensor:
        """U_S^T G U_A (batch, ks, ka) of every example for bases `u_s` (d_out, ks) and `u_a` (d_in, ka)."""
        a, b = self.positions(block, use)
        return (b @ u_s).mT @ (a @ u_a)

    def costs_more(self, block: Block, use: LayerIO, ks: int, ka: int, unfolding: float) -> bool:
        """Whether `project` on ks and ka directions costs more than to form G and project that.

        unfolding: cost of a multiplication on unfolded patches, in those of a convolution.
        """
        return False

    def choose(self, block: Block, use: LayerIO, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs [a_p; 1] (n, d_in) and gradients b_p (n, d_out) at up to `most` positions, the same of each
        example."""
        a, b = self.positions(block, use)
        chosen = choice(a.shape[1], most, generator).to(a.device)
        return a[:, chosen].flatten(0, 1), b[:, chosen].flatten(0, 1)


def weighted(step: Step) -> Weighted:
    """The operation of a step that has a weight.  Raises TypeError for another."""
    definition = step.definition
    if not isinstance(definition, Weighted):
        raise TypeError(f"step '{step.name}' has no weight")
    return definition


def choice(count: int, most: int, generator: torch.Generator | None) -> Tensor:
    """Up to `most` of so many positions, in order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most].sort().values


def append_one(block: Block, a: Tensor) -> Tensor:
    """[a; 1] in the last dimension where the block has a bias, else a."""
    return torch.cat([a, torch.ones_like(a[..., :1])], -1) if block.bias is not None else a
