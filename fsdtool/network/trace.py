"""From a PyTorch module to a Graph: by torch.fx where every operation is known, else its last linear layer.

In *full* mode the whole network becomes steps.  Where it cannot (products of signals, layer norm,
attention, data dependent control flow) the *last layer* mode applies: features in, head out for function
space distance and influence, while hooks on the activation modules still collect evidence on labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError, some
from fsdtool.network import activations
from fsdtool.network.building import Arranged
from fsdtool.network.comparing import Untraceable, first_line
from fsdtool.network.endings import before_link
from fsdtool.network.graph import Graph, Step
from fsdtool.network.logits import LINKS, PLAIN, ZERO_FIRST, answering, are_probabilities, link_between
from fsdtool.network.operations.calls import EXAMPLES, Signal
from fsdtool.network.reading import Reader
from fsdtool.tasks.task import Task, task_of

FULL, LAST_LAYER = "full", "last layer"

log = logging.getLogger("fsdtool")

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
        """Activation layers that can give evidence, in order, and (in full mode) whether their channels come last."""
        if self.mode != FULL:
            return dict.fromkeys(self.hooked, False)
        return {self.graph.steps[i].name: self.graph.channels_last(i) for i in self.graph.indices("activation")}

    def to(self, device: torch.device) -> Network:
        """The network with its parameters (and model) on `device`."""
        moved = {name: value.to(device) for name, value in self.parameters.items()}
        model = self.model.to(device) if self.model is not None else None
        return replace(self, parameters=moved, model=model)


def trace(model: nn.Module, example: Tensor, *, task: str | Task = "classification", output: str = "") -> Network:
    """The network of `model` (eval mode) for inputs like `example` (batch, *input_shape).

    output: which of the model's outputs is asked for. Raises FsdtoolError when not even the last layer can be used,
    and where a classifier returns one number, or probabilities of which the logits are not found.
    """
    if not example.shape[0]:
        raise FsdtoolError("the data set is empty; nothing to trace the model with")
    classification = task_of(task).has_classes
    few = torch.cat([example] * EXAMPLES)[:EXAMPLES]
    with answering(model, output), torch.no_grad():
        try:
            network = trace_full(model, few, classification, output)
        except Untraceable as untraceable:
            network = trace_last_layer(model, few, tuple(untraceable.reasons), classification)
        if classification and network.graph.outputs == 1:
            raise FsdtoolError(
                "the model has one output, and --task classification needs one of each class; let it return two "
                "logits, torch.cat([torch.zeros_like(z), z], 1) of its output z before any sigmoid, or give "
                "--task regression"
            )
        if classification and network.link == PLAIN and are_probabilities(outputs := model(example.clone())):
            network = _without_probabilities(model, few) or network
            if network.link == PLAIN:
                _say_probabilities(outputs)
    return network


def _without_probabilities(model: nn.Module, example: Tensor) -> Network | None:
    """The last layer that probabilities are computed from, or None where there is none."""
    reason = "all its outputs lie between 0 and 1, as probabilities do, and the logits are those of the last layer"
    try:
        network = trace_last_layer(model, example, (reason,), True)
    except FsdtoolError:
        return None
    return None if network.link == PLAIN else network


def _say_probabilities(outputs: Tensor) -> None:
    """Raise FsdtoolError for outputs (n, O) that add up to one, warn of others between 0 and 1."""
    found = "all outputs of the model lie between 0 and 1"
    if torch.allclose(outputs.sum(1), torch.ones(len(outputs)).to(outputs), atol=1e-4):
        raise FsdtoolError(
            f"{found} and add up to 1: they are probabilities and no logits; let it return what goes into its softmax"
        )
    log.warning(f"{found}; if they are probabilities, let it return what goes into its sigmoid (the logits)")


def trace_full(model: nn.Module, example: Tensor, classification: bool = True, output: str = "") -> Network:
    """The whole model as steps.  Raises Untraceable listing every call that has no place in a Graph."""
    with answering(model, output), torch.no_grad():
        reader = Reader(model, example)
        result = reader.read()
        if reader.unsupported:
            raise Untraceable(reader.unsupported)
        built = reader.built
        result = built.in_front(result) if isinstance(result, Arranged) else result
        if not isinstance(result, Signal):
            raise Untraceable(["outputs that do not depend on the input, or on more than torch's functions"])
        link, last = before_link(built.steps, result.step) if classification else (PLAIN, result.step)
        if len(built.steps[last].shape) != 1:
            raise Untraceable([f"outputs of shape (batch, {built.steps[last].shape}), not (batch, outputs)"])
        graph = built.graph(Signal(last))
        network = Network(
            graph, {name: built.state[name].detach() for name in graph.parameter_names()}, FULL, link=link
        )
        _check(network, reader, built.value(last), example)
    if reader.decisions:
        log.warning(
            f"the model looks at values of its data ({some(reader.decisions)}); if it decides by them what to do, it "
            "is summarized as what it does with the first examples"
        )
    return network


def _check(network: Network, reader: Reader, together: Tensor, example: Tensor) -> None:
    """Raise Untraceable unless the graph gives what the model did for the examples, together and each alone."""
    expected, through = reader.runs.first.value, LINKS[network.link]
    if not _same(through(together), expected):
        raise Untraceable(["its steps do not reproduce its outputs"])
    try:
        alone = torch.cat([through(network.graph.run(network.parameters, row[None])) for row in example])
    except Exception as error:  # torch's complaint
        raise Untraceable([f"it fails on one example: {first_line(error)}", *reader.doubts]) from error
    if not _same(alone, expected):
        raise Untraceable(["the outputs of an example depend on the others in its batch", *reader.doubts])


def trace_last_layer(
    model: nn.Module, example: Tensor, reasons: tuple[str, ...], classification: bool = True
) -> Network:
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
    linked = [(call, link_between(call[2], outputs, classification)) for call in calls]
    matching = [(call, link) for call, link in linked if link is not None and call[1].dim() == 2]
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
    if link == ZERO_FIRST:
        steps += (Step("zero first", "pad", (1,), {"pad": (1, 0), "mode": "constant"}, shape=(2,)),)
    state = model.state_dict()
    parameters = {key: state[key].detach() for key in roles.values()}
    return Network(Graph(steps), parameters, LAST_LAYER, reasons, model, name, tuple(active), link)


def _same(found: Tensor, expected: Tensor) -> bool:
    finite = expected[torch.isfinite(expected)].abs()
    scale = float(finite.max()) if finite.numel() and finite.any() else 1.0
    alike = found.shape == expected.shape
    return alike and torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
