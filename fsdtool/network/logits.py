"""What a network returns, as one row of logits (or values) for each example.

Of several outputs one is taken: that asked for, or `logits`, or the first tensor. Outputs (N,) become (N, 1). A
classifier that ends in probabilities is taken by what goes into them, the *link*:

    softmax, log_softmax   z = log p, up to a constant of the example, on which no loss or distance of classes depends
    sigmoid                z = log p / (1 - p) of each class
    zero first             [0, z]: two logits made of one
    one logit              z_1 - z_0 of two logits: the network got the zero that z is against
    one probability        the sigmoid of that
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError, perhaps, some

log = logging.getLogger("fsdtool")

PLAIN, SOFTMAX, LOG_SOFTMAX, SIGMOID, ZERO_FIRST = "", "softmax", "log_softmax", "sigmoid", "zero first"
ONE_LOGIT, ONE_PROBABILITY = "one logit", "one probability"
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    PLAIN: lambda z: z,
    LOG_SOFTMAX: lambda z: torch.log_softmax(z, 1),
    SOFTMAX: lambda z: torch.softmax(z, 1),
    SIGMOID: torch.sigmoid,
    ZERO_FIRST: lambda z: zero_first(z),
    ONE_LOGIT: lambda z: z[:, 1:] - z[:, :-1],
    ONE_PROBABILITY: lambda z: torch.sigmoid(z[:, 1:] - z[:, :-1]),
}
AS_TWO = {PLAIN: ONE_LOGIT, SIGMOID: ONE_PROBABILITY}  # what a link is called when the network got the zero
CLOSE = 1e-5  # to the outputs, for what a link makes of logits
FEW_VALUES = 20  # between 0 and 1 that may be so by chance


def zero_first(z: Tensor) -> Tensor:
    """[0, z] (n, 2) of one logit (n, 1); outputs of several as they are."""
    return torch.cat([torch.zeros_like(z), z], 1) if z.shape[1] == 1 else z


class Answer:
    """A forward hook that makes one row of values of whatever the network returns.

    chosen: where in its last outputs they stood, '' where there was nothing to choose.
    """

    def __init__(self, name: str = ""):
        self.name, self.chosen, self.kind = name, "", ""

    def __call__(self, module: nn.Module, inputs: Any, outputs: Any) -> Tensor:
        self.chosen, tensor = choose(outputs, self.name, lambda value: isinstance(value, Tensor))
        self.kind = type(outputs).__name__
        if self.chosen and not self.name:
            _refuse_measure(self.chosen, tensor, outputs, inputs)
        return tensor.reshape(-1, 1) if tensor.dim() < 2 else tensor

    def say(self) -> None:
        """Tell what was chosen."""
        if self.chosen:
            log.info(f"the model returns a {self.kind}; its output '{self.chosen}' is used (--output-name)")


def answer_with(model: nn.Module, name: str = "") -> Answer:
    """From now on the model returns one row of values for each example."""
    answer = Answer(name)
    model.register_forward_hook(answer)
    return answer


@contextlib.contextmanager
def answering(model: nn.Module, name: str = "") -> Iterator[Answer]:
    """Within it, the model returns one row of values for each example, as it may do already."""
    already = next((hook for hook in model._forward_hooks.values() if isinstance(hook, Answer)), None)
    if already is not None:
        yield already
        return
    answer = Answer(name)
    handle = model.register_forward_hook(answer)
    try:
        yield answer
    finally:
        handle.remove()


def choose(outputs: Any, name: str, is_tensor: Callable[[Any], bool]) -> tuple[str, Any]:
    """Where the logits stand in what a network returned ('' for the whole of it), and they themselves.

    Raises FsdtoolError where there is no tensor, or none of this name.
    """
    if is_tensor(outputs):
        if name:
            raise FsdtoolError(f"the model returns one tensor and no output '{name}'; leave --output-name out")
        return "", outputs
    found = dict(_tensors(outputs, is_tensor))
    if not found:
        raise FsdtoolError(
            f"the model returns a {type(outputs).__name__} without a tensor; let it return the logits (batch, classes)"
        )
    if name and name not in found:
        raise FsdtoolError(f"the model returns no output '{name}'{perhaps(name, found)}; it has {some(list(found), 8)}")
    logits = (key for key in found if key.rpartition(".")[2] == "logits")
    key = name or next(logits, next(iter(found)))
    return key, found[key]


def _refuse_measure(key: str, tensor: Tensor, outputs: Any, inputs: Any) -> None:
    """Raise FsdtoolError for a first output that has no row per example, as a loss, beside others that may have."""
    examples = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() else None
    if tensor.dim() and (examples is None or len(tensor) == examples):
        return
    found = dict(_tensors(outputs, lambda value: isinstance(value, Tensor)))
    rows = [name for name, value in found.items() if value.dim() and len(value) == examples]
    if rows:
        raise FsdtoolError(
            f"the model's output '{key}', the first of {some(list(found), 8)}, has shape {tuple(tensor.shape)}, not "
            f"one row per example; give --output-name {rows[0]} or another of them"
        )


def _tensors(outputs: Any, is_tensor: Callable[[Any], bool], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in _parts(outputs):
        inner = f"{path}.{name}" if path else name
        if is_tensor(value):
            yield inner, value
        elif path.count(".") < 3:
            yield from _tensors(value, is_tensor, inner)


def _parts(outputs: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(outputs, Mapping):
        yield from ((str(name), value) for name, value in outputs.items())
    elif dataclasses.is_dataclass(outputs):
        yield from ((field.name, getattr(outputs, field.name)) for field in dataclasses.fields(outputs))
    elif hasattr(outputs, "_fields"):
        yield from zip(outputs._fields, outputs, strict=True)
    elif isinstance(outputs, (tuple, list)):
        yield from ((str(i), value) for i, value in enumerate(outputs))
    elif hasattr(outputs, "__dict__"):
        yield from vars(outputs).items()


def link_between(z: Tensor, outputs: Tensor, links: Sequence[str]) -> str | None:
    """How the outputs (n, O) come from z (n, O): as they are, or by one of the links; None if by none."""
    if z.dim() != 2 or outputs.dim() != 2:
        return None
    if torch.equal(z, outputs):
        return PLAIN
    for link in links:
        made = LINKS[link](z)
        if made.shape == outputs.shape and torch.allclose(made, outputs, rtol=CLOSE, atol=CLOSE, equal_nan=True):
            return link
    return None


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (n, O) are between 0 and 1 throughout, and their sums are 1 or they are too many for chance."""
    if outputs.numel() == 0 or not (0 <= outputs.min() < outputs.max() <= 1):
        return False
    sums_to_one = torch.allclose(outputs.sum(1), torch.ones(len(outputs)).to(outputs), atol=1e-4)
    return (sums_to_one and outputs.shape[1] > 1) or outputs.numel() >= FEW_VALUES


def say_link(link: str) -> None:
    """Tell by what the outputs of a classifier are taken."""
    if link == LOG_SOFTMAX:
        log.info("the model ends in log_softmax, whose outputs count as logits")
    elif link == SOFTMAX:
        log.info("the model ends in softmax: its outputs are taken by their logarithm, from before the softmax")
    elif link in (SIGMOID, ONE_PROBABILITY):
        log.info("the model ends in a sigmoid: its outputs are taken by their logit, from before the sigmoid")
    if link in AS_TWO.values():
        log.info(
            'the model has one output: the logit of class 1 against class 0 (`task="binary"`); for a regression give '
            '`task="regression"`'
        )
