"""The last linear layer of a model as the whole graph, where the rest of it has no place in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError
from fsdtool.network import activations
from fsdtool.network.graph import Graph, Step
from fsdtool.network.logits import AS_TWO, PLAIN, ZERO_FIRST, link_between
from fsdtool.network.traced import LAST_LAYER, Network
from fsdtool.tasks.task import Task


def trace_last_layer(model: nn.Module, example: Tensor, reasons: tuple[str, ...], task: Task) -> Network:
    """The last nn.Linear as the whole graph.  Raises FsdtoolError when its outputs are not the model's."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    active: list[str] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Linear):
                calls.append((name, inputs[0], output))
            elif isinstance(output, Tensor) and output.dim() > 1 and name not in active:
                active.append(name)

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module) in activations.MODULES
    ]
    try:
        with torch.no_grad():
            outputs = model(example)
    finally:
        for handle in handles:
            handle.remove()
    why = "; ".join(reasons[:3])
    links = (*task.probabilities, *([ZERO_FIRST] if task.has_classes else []))
    linked = [(call, link_between(call[2], outputs, links)) for call in calls]
    state = model.state_dict()
    matching = [(call, link) for call, link in linked if link is not None and call[1].dim() == 2]
    matching = [pair for pair in matching if f"{pair[0][0]}.weight" in state]  # else it is computed
    matching = [pair for pair in matching if pair[1] == PLAIN] or matching
    if not matching:
        raise FsdtoolError(
            f"the model cannot be traced in full ({why}) and its outputs are not those of a last nn.Linear; "
            "let it return the outputs of its last linear layer (the logits), an nn.Linear: a head by hand becomes one "
            "when the factory puts its weight there"
        )
    (name, features, z), link = matching[-1]
    head = model.get_submodule(name)
    roles = {"weight": f"{name}.weight"} | ({"bias": f"{name}.bias"} if head.bias is not None else {})
    steps: tuple[Step, ...] = (
        Step("features", "input", shape=tuple(features.shape[1:])),
        Step(name, "linear", (0,), parameters=roles, shape=tuple(z.shape[1:])),
    )
    if link == ZERO_FIRST or (task.has_classes and z.shape[1] == 1):
        steps += (Step("zero first", "zero_first", (1,), shape=(2,)),)
        link = AS_TWO.get(link, link)
    parameters = {key: state[key].detach() for key in roles.values()}
    return Network(Graph(steps), parameters, LAST_LAYER, reasons, model, name, tuple(active), link)
