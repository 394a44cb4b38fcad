"""What moves the entries of a signal or leaves some out, and what leaves it as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fsdtool.operations.base import INPUT, Operation, Options, Parameters, Step, VectorMap


class Input(Operation):
    """The network's input, the first step and no other."""

    names = ("input",)
    kind = INPUT

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0]


class Identity(Operation):
    """The signal as it is."""

    names = ("identity",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0]

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        return VectorMap()


class Reshape(Operation):
    """The entries of each example in another shape."""

    names = ("reshape",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *options["shape"])

    def vector_map(self, step: Step, roles: Parameters, like: Tensor) -> VectorMap:
        return VectorMap()


class Permute(Operation):
    """The dimensions in the order `dims`, the batch first."""

    names = ("permute",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return inputs[0].permute(options["dims"])


class Pad(Operation):
    """Zeros around the signal, or what the `mode` of F.pad says."""

    names = ("pad",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        return F.pad(inputs[0], options["pad"], options["mode"])


class Slice(Operation):
    """`length` entries along `dim` from `start` on, every `stride`-th; the one left is squeezed away by `squeeze`."""

    names = ("slice",)

    def run(self, inputs: Sequence[Tensor], roles: Parameters, options: Options) -> Tensor:
        dim, stride = options["dim"], options.get("stride", 1)
        stop = options["start"] + options["length"] * stride
        x = inputs[0][(slice(None),) * dim + (slice(options["start"], stop, stride),)]
        return x.squeeze(dim) if options["squeeze"] else x
