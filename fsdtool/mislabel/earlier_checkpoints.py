"""Earlier checkpoints of the same training as further evidence: they have memorised fewer of the wrong labels.

The pass runs each batch through the summarized network and then through each earlier one.  Features of their layers
and their outputs are stored beside those of the summarized network, as layers `LAYER@NAME` and `(outputs)@NAME`, and
weighted in the same way; nothing else of the summary depends on them.  Of all earlier checkpoints together at most
MOST_LAYERS activation layers give evidence, as of the summarized network, which bounds the size of the summary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.features import INPUT, MOST_LAYERS, OUTPUTS, Keep, observe, watch
from fsdtool.model.checkpoint import Checkpoint, apply_checkpoint, tensors_of, tied_names
from fsdtool.network.traced import FULL, Network


@dataclass(frozen=True)
class EarlierCheckpoint:
    """An earlier checkpoint: its name among the others, SHA-256, and the network with its weights."""

    name: str
    sha256: str
    network: Network

    def see(self, x: Tensor, watched: dict[str, bool], keep: Keep) -> None:
        """Run on a batch x; `keep(layer, features)` gets the features (batch, D) of its layers and its outputs.

        watched: names of the observed layers, and whether the channels of each are last.
        """

        def own(layer: str, features: Tensor) -> None:
            keep(f"{layer}@{self.name}", features)

        with torch.no_grad():
            signal = self.network.signal(x, watch(watched, own))
            logits = self.network.graph.run(self.network.parameters, signal, observe=observe(watched, own))
            own(OUTPUTS, logits)


def earlier_networks(model: nn.Module, network: Network, checkpoints: Sequence[Checkpoint]) -> list[EarlierCheckpoint]:
    """The traced `network` of `model` once more with the weights of each checkpoint.

    Raises FsdtoolError where weights do not fit the model.
    """
    found = []
    for checkpoint, name in zip(checkpoints, distinct_names([c.path for c in checkpoints]), strict=True):
        other = copy.deepcopy(model).to("cpu")
        apply_checkpoint(other, checkpoint)
        state, device = other.state_dict(), next(iter(network.parameters.values())).device
        parameters = {key: state[key].detach().to(device) for key in network.graph.parameter_names()}
        inner = None if network.mode == FULL else other.eval().to(device)
        found.append(EarlierCheckpoint(name, checkpoint.sha256, replace(network, parameters=parameters, model=inner)))
    return found


def parameters_before(network: Network, earlier: Sequence[EarlierCheckpoint], layer: str) -> int:
    """How many numbers, in weights and buffers, come before a layer of the network or of an earlier checkpoint.

    In last layer mode the order of the layers is not known: then all numbers of the model count.
    """
    if network.mode != FULL:
        assert network.model is not None
        tied = tied_names(network.model)
        return sum(value.numel() for name, value in tensors_of(network.model).items() if name not in tied)
    for other in earlier:
        layer = layer.removesuffix(f"@{other.name}")
    names = [step.name for step in network.graph.steps]
    end = 0 if layer == INPUT else names.index(layer) if layer in names else len(names)
    used = {name for step in network.graph.steps[:end] for name in step.parameters.values()}
    return sum(network.parameters[name].numel() for name in used)


def check_distinct(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise FsdtoolError for more than MOST_LAYERS earlier checkpoints, or one given twice.  The last is summarized."""
    if len(checkpoints) - 1 > MOST_LAYERS:
        raise FsdtoolError(
            f"{len(checkpoints)} checkpoints are given, and {MOST_LAYERS} earlier ones can be used; leave some out"
        )
    seen: dict[str, str] = {}
    for checkpoint in checkpoints:
        if checkpoint.sha256 in seen:
            raise FsdtoolError(
                f"`checkpoint` '{checkpoint.path}' has the same content as '{seen[checkpoint.sha256]}'; "
                "give checkpoints of different epochs, each once"
            )
        seen[checkpoint.sha256] = checkpoint.path


def layers_each(networks: int) -> int:
    """How many activation layers of each of `networks` earlier checkpoints give evidence."""
    return max(MOST_LAYERS // max(networks, 1), 1)


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many folders before it as are needed to make all names distinct."""
    parts = [PurePath(path).parts for path in paths]
    longest = max((len(part) for part in parts), default=0)
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
