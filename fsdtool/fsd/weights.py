"""The weights that are compared: those of the summarized checkpoint, and of others under the summary's names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError
from fsdtool.fsd.last_layer import changed, check_seen
from fsdtool.model.checkpoint import Checkpoint, with_plain_weights
from fsdtool.model.computed_weights import has_sources, plain_state
from fsdtool.model.state_dict_names import match_state
from fsdtool.network.graph import Parameters
from fsdtool.network.traced import FULL
from fsdtool.summary.reader import Summary

log = logging.getLogger("fsdtool")

Build = Callable[[Checkpoint], nn.Module]


@dataclass(frozen=True)
class ComparedWeights:
    """The parameters that the summary's graph uses, by name: theta0 of the reference, and those of each checkpoint.

    moved: of each checkpoint, the tensors that differ before the only layer that the summary holds; empty in full mode.
    """

    theta0: Parameters
    others: Sequence[Parameters]
    moved: Sequence[list[str]]


def compared_weights(
    summary: Summary,
    checkpoints: Sequence[Checkpoint],
    *,
    reference: Checkpoint | None,
    model: Build | None,
    whole: bool,
    device: torch.device,
) -> ComparedWeights:
    """The weights on the device.

    reference: the summarized checkpoint, for a summary without weights.  model: builds the network for a checkpoint.
    whole: the whole network is measured on data, so that a change before the only layer that is held is seen.

    Raises FsdtoolError for a reference that is another file, a checkpoint that does not fit the summary, and one whose
    change would not be seen.
    """
    theta0 = _on(_reference(summary, reference, model), device)
    states = [_matched(summary, checkpoint, model) for checkpoint in checkpoints]
    others = [_on(_used(summary, state, c), device) for state, c in zip(states, checkpoints, strict=True)]
    moved = [[] if summary.identity.mode == FULL else changed(summary, state) for state in states]
    for checkpoint, names in zip(checkpoints, moved, strict=True):
        check_seen(summary, checkpoint, names, whole=whole)
    return ComparedWeights(theta0, others, moved)


def _reference(summary: Summary, reference: Checkpoint | None, model: Build | None) -> dict[str, Tensor]:
    if reference is not None:
        expected = summary.identity.checkpoint_sha256
        if reference.sha256 != expected:
            raise FsdtoolError(
                f"{reference.path} is not the summarized checkpoint: its SHA-256 is {reference.sha256[:12]}, "
                f"that of the summary {expected[:12]}; give the one that was summarized"
            )
        return _used(summary, _matched(summary, reference, model), reference)
    if summary.parameters is None:
        raise FsdtoolError(
            f"'{summary.path}' was written with `keep_weights=False`; give the summarized checkpoint by `reference`"
        )
    return summary.parameters


def _matched(summary: Summary, checkpoint: Checkpoint, model: Build | None) -> dict[str, Tensor]:
    """The checkpoint's tensors under the summary's names, computed weights plain."""
    identity = summary.identity
    notes: list[str] = []
    if model is not None:
        checkpoint = with_plain_weights(model(checkpoint), checkpoint)
    state = checkpoint.state
    if not has_sources(identity.shapes):
        state, notes = plain_state(state, identity.computed, source=checkpoint.path)
    state, more = match_state(state, identity.shapes, source=checkpoint.path, tied=identity.tied)
    for note in notes + more:
        log.info(note)
    return state


def _used(summary: Summary, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    used = {name: state[name] for name in summary.identity.graph.parameter_names()}
    integer = next((name for name, value in used.items() if not value.is_floating_point()), None)
    if integer is not None:
        raise FsdtoolError(
            f"{checkpoint.path} holds {used[integer].dtype} values for '{integer}'; give one that is not quantized"
        )
    return used


def _on(parameters: Parameters, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in parameters.items()}
