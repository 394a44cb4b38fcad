"""Does a network take whole numbers, such as token ids?  Nothing between them is an input, nor is every combination."""

from __future__ import annotations

import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters, Step
from fsdtool.network.operations.base import FUNCTION

CASTS = (".long", ".int", ".bool", ".to", ".type_as")


def takes_whole_numbers(graph: Graph, parameters: Parameters, x: Tensor) -> bool:
    """Whether a step of the graph, run on inputs x (batch, ...), makes whole numbers of floating ones.

    Comparisons and positions (argmax, sort) do not count: they have an answer for any numbers.
    """
    found = []

    def see(step: Step, inputs: list[Tensor], output: Tensor) -> None:
        if step.kind == FUNCTION and not output.is_floating_point() and inputs[0].is_floating_point():
            found.append(str(step.options.get("function", "")).endswith(CASTS))

    with torch.no_grad():
        graph.run(parameters, x, observe=see)
    return any(found)
