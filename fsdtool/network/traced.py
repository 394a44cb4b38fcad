"""A network that was traced: its graph, its parameters, and how much of the model they are.

In *full* mode the whole network is steps.  Where it cannot be (custom kernels, control flow by the data) the *last
layer* mode applies: features in, head out for function space distance and influence, while hooks on the activation
modules still collect evidence on labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.network import activations
from fsdtool.network.graph import Graph
from fsdtool.network.logits import PLAIN

FULL, LAST_LAYER = "full", "last layer"

Watch = Callable[[str, activations.Activation, Tensor, bool], Callable[[Tensor], None]]


@dataclass(frozen=True)
class Network:
    """A traced network: its graph, the parameters the graph reads, and how much of the model it covers.

    `mode` is 'full' or 'last layer'; `reasons` says why not full.  In last layer mode `model` computes the
    features that the graph takes as input; `hooked` names the activation modules that give evidence.
    """

    graph: Graph
    parameters: dict[str, Tensor]
    mode: str
    reasons: tuple[str, ...] = ()
    model: nn.Module | None = None
    head: str = ""
    hooked: tuple[str, ...] = ()
    link: str = PLAIN  # from the graph's outputs to what the model returns, see fsdtool.network.logits

    def signal(self, x: Tensor, watch: Watch | None = None) -> Tensor:
        """What the graph takes as input for the data x: x itself, or the features before the last layer.

        In last layer mode `watch(name, activation, s, channels_last)` is called before each hooked
        activation module runs, with its input s; what it returns is called with the output (modules may
        work in place).
        """
        if self.mode == FULL:
            return x
        captured: list[Tensor] = []
        affine: list[bool] = [False]  # does the last affine layer that ran put its channels last?
        model = self.model
        assert model is not None  # what the features come from
        head = model.get_submodule(self.head)
        handles = [head.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0].detach()))]
        if watch is not None:
            handles += self._watch(model, watch, affine)
        try:
            with torch.no_grad():
                model(x)
        finally:
            for handle in handles:
                handle.remove()
        return captured[-1]

    def _watch(self, model: nn.Module, watch: Watch, affine: list[bool]) -> list[Any]:
        pending: dict[str, Callable[[Tensor], None]] = {}

        def before(name: str, activation: activations.Activation) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                pending[name] = watch(name, activation, inputs[0].detach(), affine[0])

            return hook

        def after(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: pending.pop(name)(output.detach())

        handles = []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)):
                last = isinstance(module, nn.Linear)
                handles.append(module.register_forward_hook(lambda m, i, o, last=last: affine.__setitem__(0, last)))
            elif name in self.hooked:
                settings = activations.module_options(module)
                function = activations.activation(activations.MODULES[type(module)], settings)
                handles.append(module.register_forward_pre_hook(before(name, function)))
                handles.append(module.register_forward_hook(after(name)))
        return handles

    def evidence_layers(self) -> dict[str, bool]:
        """Layers that can give evidence, in order, and (in full mode) whether their channels come last.

        They are those of activations, and embeddings, whose vectors come last.
        """
        if self.mode != FULL:
            return dict.fromkeys(self.hooked, False)
        found = {i: self.graph.channels_last(i) for i in self.graph.indices("activation")}
        found |= dict.fromkeys(self.graph.embeddings(), True)
        return {self.graph.steps[i].name: found[i] for i in sorted(found)}

    def to(self, device: torch.device) -> Network:
        """The network with its parameters (and model) on `device`."""
        moved = {name: value.to(device) for name, value in self.parameters.items()}
        model = self.model.to(device) if self.model is not None else None
        return replace(self, parameters=moved, model=model)
