"""Probabilities that a classifier ends in: the network is what goes into them.."""

from __future__ import annotations

from collections.abc import Sequence

from fsdtool.network.graph import Step
from fsdtool.network.logits import LOG_SOFTMAX, PLAIN, SIGMOID, SOFTMAX
from fsdtool.network.operations.function import Function


def before_link(steps: Sequence[Step], last: int) -> tuple[str, int]:
    """The link that the steps up to `last` end in, and the step that goes into it."""
    step = steps[last]
    name = _function(step)
    if _over_classes(step, "softmax"):
        return SOFTMAX, step.inputs[0]
    if name == "log" and _over_classes(before := steps[step.inputs[0]], "softmax"):
        return LOG_SOFTMAX, before.inputs[0]
    if _over_classes(step, "log_softmax"):
        return LOG_SOFTMAX, step.inputs[0]
    return (SIGMOID, step.inputs[0]) if name == "sigmoid" else (PLAIN, last)


def _function(step: Step) -> str:
    """The name of the function of torch that a step is, '' for none."""
    if step.kind == "activation":
        return str(step.options.get("function", ""))
    return step.options["function"].partition(".")[2] if isinstance(step.definition, Function) else ""


def _over_classes(step: Step, name: str) -> bool:
    """Whether a step is this function over the classes of (batch, classes)."""
    if _function(step) != name or len(step.shape) != 1:
        return False
    arguments = step.options["arguments"]
    dim = step.options["keywords"].get("dim", arguments[1] if len(arguments) > 1 else None)
    return dim in (1, -1, None)
