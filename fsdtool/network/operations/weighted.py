"""Operations with trained parameters, and the gradient of each example in them.

Weights are matrices: y_p = W a_p + b at positions p (pixels, tokens, or one).  The gradient of one example is
G = sum_p b_p [a_p; 1]^T, with a_p the input at p and b_p the gradient of the loss at the output there (see
fsdtool.network.per_example_gradients).  A new such operation says its `positions`; the rest follows, and is overridden
where something is cheaper.

All other parameters theta (n,) are vectors, such as the scale and shift of a norm, a position embedding or a class
token: the gradient of one example is g (n,), which an operation gives by its `vectors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fsdtool.network.operations.base import AFFINE, Operation, Parameters, Step
from fsdtool.network.operations.calls import Call, Parameter


@dataclass(frozen=True)
class LayerIO:
    """What one step with parameters saw: its input (batch, ...) and the gradient at its output (batch, ...).

    more: its other inputs.  roles: its parameters.
    """

    step: Step
    input: Tensor
    gradient: Tensor
    more: tuple[Tensor, ...] = ()
    roles: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """One weight (with its bias, if all its uses share one) and the steps that use it: a matrix (d_out, d_in)."""

    weight: str
    bias: str | None
    steps: tuple[int, ...]
    d_out: int
    d_in: int  # the bias column included
    kernel: tuple[int, ...] = ()  # spatial size of a convolution's kernel
    others: tuple[str, ...] = ()  # more parameters of a vector

    @property
    def size(self) -> int:
        return self.d_out * self.d_in

    @property
    def names(self) -> tuple[str, ...]:
        """Of its parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def split(self, v: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """Vectors (..., d_out, d_in) as its parameters (..., *shape) by name."""
        weight = v if self.bias is None else v[..., :-1]
        found = {self.weight: weight.reshape(*v.shape[:-2], *parameters[self.weight].shape)}
        return found if self.bias is None else {**found, self.bias: v[..., -1]}

    def join(self, named: Mapping[str, Tensor], leading: int) -> Tensor:
        """The inverse of `split`, for tensors with `leading` dimensions in front."""
        weight = named[self.weight].flatten(leading + 1)
        return weight if self.bias is None else torch.cat([weight, named[self.bias][..., None]], -1)


@dataclass(frozen=True)
class VectorBlock(Block):
    """Parameters that are no matrix and are used by the same steps, one after the other: a vector (n, 1).

    weight: the first of them.  others: the names of the rest.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return (self.weight, *self.others)

    def split(self, v: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        shapes = [parameters[name].shape for name in self.names]
        parts = v[..., 0].split([math.prod(shape) for shape in shapes], -1)
        return {
            name: part.reshape(*v.shape[:-2], *shape)
            for name, part, shape in zip(self.names, parts, shapes, strict=True)
        }

    def join(self, named: Mapping[str, Tensor], leading: int) -> Tensor:
        parts = [named[name] for name in self.names]
        return torch.cat([part.reshape(*part.shape[:leading], -1) for part in parts], -1)[..., None]


class Parametric(Operation):
    """An operation with parameters, of some of which the gradients of the examples can be said as vectors."""

    def vector_roles(self, step: Step) -> tuple[str, ...]:
        """The roles of the parameters that can be part of a vector."""
        raise NotImplementedError

    def vectors(self, use: LayerIO, roles: Sequence[str]) -> dict[str, Tensor]:
        """The gradient (batch, n) of every example in each of these roles, n numbers as the parameter is stored."""
        raise NotImplementedError


class Weighted(Parametric):
    """The weight is the role 'weight', W in its first dimension (d_out) and the rest; 'bias' (d_out,).

    A bias that is no column of its weight's block, as where two layers share a weight, is a vector.
    """

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

    def vector_roles(self, step: Step) -> tuple[str, ...]:
        return ("bias",) if "bias" in step.parameters else ()

    def vectors(self, use: LayerIO, roles: Sequence[str]) -> dict[str, Tensor]:
        b, last = use.gradient, self.channels_last
        return {role: b.flatten(1, -2).sum(1) if last and b.dim() > 2 else of_channels(b) for role in roles}

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


def parametric(step: Step) -> Parametric:
    """The operation of a step with parameters.  Raises TypeError for another."""
    definition = step.definition
    if not isinstance(definition, Parametric):
        raise TypeError(f"step '{step.name}' has no parameters with gradients")
    return definition


def sum_to(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Of each example the sum (batch, n) of values (batch, ...) over what a parameter of this shape is repeated over.

    The shape is aligned with the last dimensions of the values; the first, if it is there, is 1.
    """
    padded = (*[1] * (values.dim() - len(shape)), *shape)
    repeated = [d for d in range(1, values.dim()) if padded[d] == 1 and values.shape[d] > 1]
    return (values.sum(repeated) if repeated else values).reshape(len(values), -1)


def of_channels(values: Tensor) -> Tensor:
    """The sums (batch, channels) of values (batch, channels, *positions)."""
    return values.flatten(2).sum(2) if values.dim() > 2 else values
