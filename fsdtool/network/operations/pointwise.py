"""The pointwise functions of fsdtool.network.activations: one operation, with the name of the function among its
options.
"""

from __future__ import annotations

from typing import Any

from fsdtool.network import activations
from fsdtool.network.operations.base import Options, Pointwise
from fsdtool.network.operations.calls import Call, target_name


class PointwiseByName(Pointwise):
    """`function` by name, with its `settings`."""

    names = ("activation",)

    @classmethod
    def reads(cls, target: Any) -> bool:
        if isinstance(target, type):
            return target in activations.MODULES
        return activations.spelt(target_name(target)) in activations.names()

    @classmethod
    def read(cls, call: Call) -> Any:
        if call.module is not None:
            name, settings = activations.MODULES[call.target], activations.module_options(call.module)
        else:
            name = activations.spelt(call.name)
            settings = call.given(tuple(activations.option_defaults(name)))
        return call.add("activation", call.source, options={"function": name, "settings": settings})

    def function(self, options: Options) -> activations.Activation:
        return activations.activation(options["function"], options["settings"])

    def accepts(self, options: Options) -> bool:
        return options["function"] in activations.names()
