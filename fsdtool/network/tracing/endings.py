"""What a classifier ends in: of probabilities the network is what goes into them, and one logit gets a zero before it.

A network of one output z, or of one probability, decides between two classes by the logits [0, z].  The zero becomes
its last step, so that all that follows knows two classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fsdtool.network.graph import Step
from fsdtool.network.logits import AS_TWO, LOG_SOFTMAX, PLAIN, SIGMOID, SOFTMAX
from fsdtool.network.operations.calls import Signal
from fsdtool.network.operations.function import Function
from fsdtool.network.operations.reshaping import Reshape
from fsdtool.network.tracing.building import Builder


def two_logits(built: Builder, last: int) -> tuple[str, int]:
    """[0, z] of the step `last`, which gives one number z or its sigmoid: the link to that number, and the step."""
    before = _unshaped(built.steps, last)
    link = SIGMOID if _function(built.steps[before]) == "sigmoid" else PLAIN
    z = _unshaped(built.steps, built.steps[before].inputs[0]) if link == SIGMOID else last
    if len(built.steps[z].shape) != 1:
        z = _step(built.add("logit", "reshape", [z], {"shape": (1,)}))
    return AS_TWO[link], _step(built.add("zero first", "zero_first", [z]))


def _step(added: object) -> int:
    assert isinstance(added, Signal)  # its examples are in front, as those of what it reads are
    return added.step


def _unshaped(steps: Sequence[Step], last: int) -> int:
    """The step whose one number the steps up to `last` give in another shape."""
    while isinstance(steps[last].definition, Reshape) and math.prod(steps[steps[last].inputs[0]].shape) == 1:
        last = steps[last].inputs[0]
    return last


def before_link(steps: Sequence[Step], last: int, links: Sequence[str]) -> tuple[str, int]:
    """Which of the links the steps up to `last` end in, and the step that goes into it."""
    step = steps[last]
    name = _function(step)
    found, before = PLAIN, last
    if _over_classes(step, "softmax"):
        found, before = SOFTMAX, step.inputs[0]
    elif name == "log" and _over_classes(inside := steps[step.inputs[0]], "softmax"):
        found, before = LOG_SOFTMAX, inside.inputs[0]
    elif _over_classes(step, "log_softmax"):
        found, before = LOG_SOFTMAX, step.inputs[0]
    elif name == "sigmoid":
        found, before = SIGMOID, step.inputs[0]
    return (found, before) if found in links else (PLAIN, last)


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
