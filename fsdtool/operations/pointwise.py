"""The pointwise functions of fsdtool.activations: one operation, with the name of the function among its options."""

from __future__ import annotations

from fsdtool import activations
from fsdtool.operations.base import Activation, Options


class Pointwise(Activation):
    """`function` by name, with its `settings`."""

    names = ("activation",)

    def function(self, options: Options) -> activations.Activation:
        return activations.activation(options["function"], options["settings"])

    def accepts(self, options: Options) -> bool:
        return options["function"] in activations.names()
