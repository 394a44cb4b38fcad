"""From a PyTorch module to a Graph: all of it where every call has a place in one, else its last linear layer.

The model is run on a few examples and every call of torch recorded (`recording`), three times, so that what counts
examples, what is constant and what the data decide is known (`comparing`); then each call is read (`reading`) and its
step run (`building`).  At the end the steps must give what the model gave, for the examples together and each alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError, some
from fsdtool.network.logits import LINKS, ONE_LOGIT, PLAIN, answering, are_probabilities
from fsdtool.network.operations.calls import EXAMPLES, Signal
from fsdtool.network.traced import FULL, Network
from fsdtool.network.tracing.building import Arranged
from fsdtool.network.tracing.comparing import Untraceable, first_line
from fsdtool.network.tracing.endings import before_link, two_logits
from fsdtool.network.tracing.last_layer import trace_last_layer
from fsdtool.network.tracing.reading import Reader
from fsdtool.network.tracing.recording import forget
from fsdtool.tasks.task import Task, task_of

log = logging.getLogger("fsdtool")
CLOSE = 1e-3  # between what the steps give and what the model does


def trace(model: nn.Module, example: Tensor, *, task: str | Task = "classification", output: str = "") -> Network:
    """The network of `model` (eval mode) for inputs like `example` (batch, *input_shape).

    output: which of the model's outputs is asked for. Raises FsdtoolError when not even the last layer can be used,
    and where a classifier returns probabilities of which the logits are not found.  A classifier of one output becomes
    one of two, see fsdtool.network.tracing.endings.
    """
    if not example.shape[0]:
        raise FsdtoolError("the data set is empty; nothing to trace the model with")
    task = task_of(task)
    few = torch.cat([example] * EXAMPLES)[:EXAMPLES]
    with answering(model, output), torch.no_grad():
        try:
            network = trace_full(model, few, task, output)
        except Untraceable as untraceable:
            network = trace_last_layer(model, few, tuple(untraceable.reasons), task)
        bare = (PLAIN, ONE_LOGIT)
        if task.probabilities and network.link in bare and are_probabilities(outputs := model(example.clone())):
            network = _without_probabilities(model, few, task) or network
            if network.link in bare:
                _say_probabilities(outputs, task)
    return network


def _without_probabilities(model: nn.Module, example: Tensor, task: Task) -> Network | None:
    """The last layer that probabilities are computed from, or None where there is none."""
    reason = "all its outputs lie between 0 and 1, as probabilities do, and the logits are those of the last layer"
    try:
        network = trace_last_layer(model, example, (reason,), task)
    except FsdtoolError:
        return None
    return None if network.link in (PLAIN, ONE_LOGIT) else network


def _say_probabilities(outputs: Tensor, task: Task) -> None:
    """Raise FsdtoolError for outputs (n, O) of classes that add up to one, warn of others between 0 and 1."""
    found = "all outputs of the model lie between 0 and 1"
    if task.has_classes and torch.allclose(outputs.sum(1), torch.ones(len(outputs)).to(outputs), atol=1e-4):
        raise FsdtoolError(
            f"{found} and add up to 1: they are probabilities and no logits; let it return what goes into its softmax"
        )
    log.warning(f"{found}; if they are probabilities, let it return what goes into its sigmoid (the logits)")


def trace_full(model: nn.Module, example: Tensor, task: str | Task = "classification", output: str = "") -> Network:
    """The whole model as steps.

    Raises Untraceable listing every call that has no place in a Graph, unless no output depends on one.
    """
    task = task_of(task)
    with answering(model, output), torch.no_grad():
        reader = Reader(model, example)
        result = reader.read()
        built = reader.built
        if reader.unsupported and not built.is_whole(result):
            raise Untraceable(reader.unsupported)
        result = built.in_front(result) if isinstance(result, Arranged) else result
        if not isinstance(result, Signal):
            raise Untraceable(["outputs that do not depend on the input, or on more than torch's functions"])
        link, last = before_link(built.steps, result.step, task.probabilities)
        if task.has_classes and built.steps[last].shape == (1,):
            link, last = two_logits(built, result.step)
        if len(built.steps[last].shape) != 1:
            raise Untraceable([f"outputs of shape (batch, {built.steps[last].shape}), not (batch, outputs)"])
        graph = built.graph(Signal(last))
        network = Network(
            graph, {name: built.state[name].detach() for name in graph.parameter_names()}, FULL, link=link
        )
        _check(network, reader, built.value(last), example)
        _check_other_weights(network, model, example)
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


def _check_other_weights(network: Network, model: nn.Module, example: Tensor) -> None:
    """Raise Untraceable unless the graph gives what the model does when its weights are others."""
    try:
        with _other_weights(model) as state:
            expected = model(example.clone())
            found = network.graph.run({name: state[name].detach() for name in network.parameters}, example)
    except Exception as error:  # the user's code, or torch's complaint
        raise Untraceable([f"it fails with other weights: {first_line(error)}"]) from error
    if not _same(LINKS[network.link](found), expected):
        raise Untraceable(["a number or tensor that is computed from weights where no call of torch is seen"])


@contextmanager
def _other_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it, the numbers stored in `model` are others by up to 5 %, each in another way; zeros stay zeros.

    Not more, and as many smaller as larger: in deep networks the signal would grow until rounding shows.
    """
    state = model.state_dict()
    parts = {value.data_ptr(): value for value in state.values() if value.is_floating_point() and _is_plain(value)}
    before = [value.clone() for value in parts.values()]
    generator = torch.Generator().manual_seed(0)
    try:
        for value in parts.values():
            value.mul_(1 + (torch.rand(value.shape, generator=generator).to(value) - 0.5) / 10)
        forget(model)
        yield state
    finally:
        for value, old in zip(parts.values(), before, strict=True):
            value.copy_(old)
        forget(model)


def _is_plain(value: Tensor) -> bool:
    """Whether each entry has its own place in memory."""
    return value.layout == torch.strided and 0 not in (value.stride() if value.numel() > 1 else ())


def _same(found: Tensor, expected: Tensor) -> bool:
    finite = expected[torch.isfinite(expected)].abs()
    scale = float(finite.max()) if finite.numel() and finite.any() else 1.0
    alike = found.shape == expected.shape
    return alike and torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE / 10 * scale, equal_nan=True)
