"""Batch norm in eval mode: one scale and one shift per channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import AFFINE, Operation, Options, Parameters, Step, VectorMap
from fsdtool.network.operations.calls import Call, Parameter


class BatchNorm(Operation):
    """(s - running_mean) / sqrt(running_var + eps) * weight + bias, channels in dimension 1."""

    names = ("batch_norm",)
    kind = AFFINE
    channels_last = False
    buffers = ("running_mean", "running_var")
    arguments = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

    @classmethod
    def reads(cls, target: Any) -> bool:
        """Every class of torch that is one; those of others may do more."""
        norm = isinstance(target, type) and issubclass(target, nn.modules.batchnorm._BatchNorm)
        return target is F.batch_norm or (norm and target.__module__.startswith("torch."))

    @classmethod
    def read(cls, call: Call) -> Any:
        if call.module is None:
            return cls._read_function(call)
        if call.module.running_mean is None:
            return call.refuse("batch norm without running statistics")
        roles = call.roles("running_mean", "running_var", "weight", "bias")
        return call.add("batch_norm", call.source, options={"eps": call.module.eps}, parameters=roles)

    @classmethod
    def _read_function(cls, call: Call) -> Any:
        given = call.given(cls.arguments)
        roles = {role: given[role] for role in cls.arguments[:4] if given.get(role) is not None}
        whole = all(isinstance(w, Parameter) and w.shape == call.stored_shape(w) for w in roles.values())
        if given.get("training") or not whole or "running_mean" not in roles:
            return call.refuse("batch norm without running statistics")
        names = {role: parameter.name for role, parameter in roles.items()}
        return call.add("batch_norm", call.source, options={"eps": given.get("eps", 1e-5)}, parameters=names)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        """As one scale and shift: its gradient is a multiplication, cheaper than F.batch_norm's."""
        scale = torch.rsqrt(roles["running_var"] + options["eps"])
        scale = scale * roles["weight"] if "weight" in roles else scale
        shift = -roles["running_mean"] * scale
        shift = shift + roles["bias"] if "bias" in roles else shift
        shape = (-1, *[1] * (inputs[0].dim() - 2))
        return torch.addcmul(shift.view(shape), inputs[0], scale.view(shape))

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        scale = torch.rsqrt(roles["running_var"] + step.options["eps"]) * roles.get("weight", 1.0)
        return VectorMap(scale, roles.get("bias", 0.0) - roles["running_mean"] * scale)
