"""Norms: layer, RMS, group and instance norm, of each example's own signal, and batch norm in eval mode.

y = scale * z + shift with z the signal without its mean and of unit size, so that with b the gradient at y an example's
gradients are the sums of b z and of b over the positions that share an entry of the scale.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdtool.network.operations.base import AFFINE, FUNCTION, Options, Parameters, Step, VectorMap
from fsdtool.network.operations.calls import Call, Parameter
from fsdtool.network.operations.weighted import LayerIO, Parametric, of_channels


class Norm(Parametric):
    """Roles `weight`, the scale, and `bias`, the shift; either may be missing."""

    kind = FUNCTION

    @abstractmethod
    def sums(self, values: Tensor, options: Options) -> Tensor:
        """Of each example the sums (batch, n) of values like the output over what shares an entry of the scale."""

    def vector_roles(self, step: Step) -> tuple[str, ...]:
        return tuple(role for role in ("weight", "bias") if role in step.parameters)

    def vectors(self, use: LayerIO, roles: Sequence[str]) -> dict[str, Tensor]:
        b, options = use.gradient, use.step.options
        found = {"bias": self.sums(b, options)} if "bias" in roles else {}
        if "weight" in roles:
            others = {role: value for role, value in use.roles.items() if role not in ("weight", "bias")}
            found["weight"] = self.sums(b * self.run([use.input], others, options), options)
        return found


class PerExampleNorm(Norm):
    """A norm that is read from its function, which modules call too."""

    weights: ClassVar[tuple[str, ...]] = ("weight", "bias")

    @classmethod
    def read(cls, call: Call) -> Any:
        options = call.given(cls.arguments)
        given = {role: options.pop(role, None) for role in cls.weights}
        roles = {role: value for role, value in given.items() if value is not None}
        if not all(isinstance(w, Parameter) and w.shape == call.stored_shape(w) for w in roles.values()):
            return call.refuse("weights that are computed, not stored")
        names = {role: parameter.name for role, parameter in roles.items()}
        return call.add(cls.names[0], call.source, options=cls.kept(options), parameters=names)

    @classmethod
    def kept(cls, options: Options) -> Options:
        """The options of the step, of those that were given."""
        return options


class LayerNorm(PerExampleNorm):
    """Over the last dimensions, of the sizes `normalized_shape`, each entry with a scale and a shift."""

    names = ("layer_norm",)
    function_names = names
    arguments: ClassVar[tuple[str, ...]] = ("normalized_shape", "weight", "bias", "eps")
    entrywise = True

    @classmethod
    def kept(cls, options: Options) -> Options:
        return {**options, "normalized_shape": tuple(options["normalized_shape"])}

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        shape, eps = options["normalized_shape"], options.get("eps", 1e-5)
        return F.layer_norm(inputs[0], shape, roles.get("weight"), roles.get("bias"), eps)

    def sums(self, values: Tensor, options: Options) -> Tensor:
        first = values.dim() - len(options["normalized_shape"])
        values = values.flatten(first)
        return values.flatten(1, -2).sum(1) if first > 1 else values


class RMSNorm(LayerNorm):
    """As layer norm without means and shifts."""

    names = ("rms_norm",)
    function_names = names
    arguments = ("normalized_shape", "weight", "eps")
    weights = ("weight",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return F.rms_norm(inputs[0], options["normalized_shape"], roles.get("weight"), options.get("eps"))


class GroupNorm(PerExampleNorm):
    """Over positions and the channels of one of `num_groups` groups; channels in dimension 1."""

    names = ("group_norm",)
    function_names = names
    arguments = ("num_groups", "weight", "bias", "eps")
    channels_last = False

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        scale, shift = roles.get("weight"), roles.get("bias")
        return F.group_norm(inputs[0], options["num_groups"], scale, shift, options.get("eps", 1e-5))

    def sums(self, values: Tensor, options: Options) -> Tensor:
        return of_channels(values)


class InstanceNorm(PerExampleNorm):
    """Over the positions of each channel; channels in dimension 1."""

    names = ("instance_norm",)
    function_names = names
    arguments = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    channels_last = False

    @classmethod
    def read(cls, call: Call) -> Any:
        if not call.given(cls.arguments).get("use_input_stats", True):
            return call.refuse("instance norm by running statistics")
        return super().read(call)

    @classmethod
    def kept(cls, options: Options) -> Options:
        return {key: value for key, value in options.items() if key == "eps"}

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        eps = options.get("eps", 1e-5)
        return F.instance_norm(inputs[0], weight=roles.get("weight"), bias=roles.get("bias"), eps=eps)

    def sums(self, values: Tensor, options: Options) -> Tensor:
        return of_channels(values)


class BatchNorm(Norm):
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

    def sums(self, values: Tensor, options: Options) -> Tensor:
        return of_channels(values)

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        scale = torch.rsqrt(roles["running_var"] + step.options["eps"]) * roles.get("weight", 1.0)
        return VectorMap(scale, roles.get("bias", 0.0) - roles["running_mean"] * scale)
