"""What the pass refuses: activations, outputs and losses that are not finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.network.graph import Graph, Parameters, Step


def check_features(layer: str, features: Tensor, ids: np.ndarray) -> None:
    """Raise FsdtoolError unless the features (batch, D) of a layer are finite; ids (batch,) of the examples."""
    broken = _not_finite(features)
    if broken:
        raise FsdtoolError(
            f"the activations of layer '{layer}' for example {ids[broken[0]]} are not finite "
            f"({len(broken)} of {len(features)} in its batch); check the weights and the preprocessing, "
            "or remove the example"
        )


def check_losses(losses: Tensor, outputs: Tensor, ids: np.ndarray) -> None:
    """Raise FsdtoolError unless the losses (batch,) at the outputs (batch, O) are finite; ids (batch,)."""
    broken = _not_finite(losses[:, None])
    if broken:
        raise FsdtoolError(
            f"the loss of example {ids[broken[0]]} is not finite ({len(broken)} of "
            f"{len(losses)} in its batch): its outputs are up to {float(outputs[broken[0]].abs().max()):.3g}; "
            "check the weights, the preprocessing and the targets"
        )


def check_outputs(logits: Tensor, ids: np.ndarray, graph: Graph, parameters: Parameters, signal: Tensor) -> None:
    """Raise FsdtoolError unless the logits (batch, O) of the graph's input `signal` are finite; ids (batch,)."""
    broken = _not_finite(logits)
    if broken:
        raise FsdtoolError(
            f"the model's outputs for example {ids[broken[0]]} are not finite, "
            f"from layer '{_first_broken(graph, parameters, signal[broken[:1]])}' on ({len(broken)} of {len(logits)} "
            "in its batch); check the weights and the preprocessing, or remove the example"
        )


def _not_finite(values: Tensor) -> list[int]:
    """The rows of values (batch, n) that hold a number that is not finite."""
    return (~torch.isfinite(values).all(1)).nonzero()[:, 0].tolist()


def _first_broken(graph: Graph, parameters: Parameters, signal: Tensor) -> str:
    """The first step whose output for this signal is not finite."""
    names: list[str] = []

    def observe(step: Step, inputs: list[Tensor], output: Tensor) -> None:
        names.extend([] if torch.isfinite(output).all() else [step.name])

    with torch.no_grad():
        graph.run(parameters, signal, observe=observe)
    return names[0]
