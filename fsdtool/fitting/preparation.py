"""Before the data is gone over: the model gets its weights, the data its layout, and the network is traced."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fsdtool.data.inputs.handing import hand_over
from fsdtool.data.inputs.part import TRUTH, WHOLE
from fsdtool.data.layout import fit_layout
from fsdtool.data.repeatability import check_data, check_outputs, spread_inputs
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError, ModelError
from fsdtool.mislabel.earlier_checkpoints import EarlierCheckpoint, check_distinct, earlier_networks
from fsdtool.model.checkpoint import Checkpoint, apply_checkpoint, with_plain_weights
from fsdtool.model.computed_weights import computed_weights
from fsdtool.network.frozen import check_trained, frozen_names
from fsdtool.network.logits import AS_TWO, LINKS, answer_with, say_link
from fsdtool.network.per_example_gradients import blocks, parameters_without_block
from fsdtool.network.traced import FULL, Network
from fsdtool.network.tracing.trace import trace
from fsdtool.tasks.task import task_of

log = logging.getLogger("fsdtool")
CLOSE = 1e-2  # of the largest output: weights of no training magnify rounding


@dataclass(frozen=True)
class Given:
    """What is to be summarized, and how that was said, as in fsdtool.fitting.run.summarize."""

    model: nn.Module
    checkpoint: Checkpoint
    data: DataSource
    earlier: Sequence[Checkpoint] = ()
    frozen: Sequence[str] = ()
    output_name: str = ""
    model_spec: str = ""
    model_arguments: Mapping[str, str] = field(default_factory=dict)
    command_line: str = ""

    def check(self, records: bool) -> None:
        """Raise FsdtoolError for checkpoints that cannot be used together, or not without records."""
        check_distinct([*self.earlier, self.checkpoint])
        if self.earlier and not records:
            count = "1 earlier checkpoint adds"
            if len(self.earlier) > 1:
                count = f"{len(self.earlier)} earlier checkpoints add"
            raise FsdtoolError(
                f"{count} evidence on labels, which `records=False` leaves out; give the last checkpoint alone"
            )


@dataclass(frozen=True)
class Prepared:
    """The traced network on its device, the data as it takes them, earlier networks.

    computed: of weights that the model computes, as fsdtool.model.computed_weights has them.
    """

    network: Network
    data: DataSource
    earlier: Sequence[EarlierCheckpoint]
    computed: dict


def prepare(given: Given, *, gradients: bool, device: torch.device, workers: int) -> Prepared:
    """The network of a model with its checkpoint, for the data.  gradients: whether they will be needed.

    Raises FsdtoolError for weights, data and networks that cannot be used.
    """
    model, earlier = given.model.eval(), given.earlier
    computed = computed_weights(model)
    earlier = [with_plain_weights(model, other) for other in earlier] if computed else earlier
    for note in apply_checkpoint(model, given.checkpoint):
        log.info(note)
    frozen = frozen_names(model, given.frozen)
    answer = answer_with(model, given.output_name)
    data = fit_layout(given.data, model, workers=workers)
    answer.say()
    hand_over(model, data.preprocessing.parts)
    together = _padded_first(spread_inputs(check_data(data, workers=workers).x), data)
    check_outputs(model, together)
    network = trace(model, together, task=data.task, output=given.output_name)
    _check_others(network, model, together)
    network = network.to(device)
    network = replace(network, graph=replace(network.graph, frozen=frozen))
    say_link(network.link)
    if network.link in AS_TWO.values():
        data = data.with_task(task_of("binary"))
    if gradients:
        check_trained(network)
    trajectory = earlier_networks(model, network, earlier)
    _say_coverage(network)
    return Prepared(network, data, trajectory, computed)


def _padded_first(x: Tensor, data: DataSource) -> Tensor:
    """The inputs x (n, ...), those with the most zeros in whole numbers and masks first.

    Code that asks whether a mask is needed at all (transformers does) is then traced where it is.
    """
    start, zeros = 0, torch.zeros(len(x))
    flat = x.flatten(1)
    for part in data.preprocessing.parts:
        if part.dtype in (WHOLE, TRUTH):
            zeros += (flat[:, start : start + part.size] == 0).sum(1)
        start += part.size
    return x[zeros.argsort(descending=True, stable=True)]


def _check_others(network: Network, model: nn.Module, x: Tensor) -> None:
    """Raise ModelError unless the network traced on the first of the inputs x (n, ...) is the model on all of them."""
    if network.mode != FULL:
        return
    with torch.no_grad():
        expected = model(x.clone()).nan_to_num()
        found = LINKS[network.link](network.graph.run(network.parameters, x)).nan_to_num()
    if found.shape != expected.shape or (found - expected).abs().max() > CLOSE * expected.abs().max().clamp(min=1e-30):
        raise ModelError(
            "the model does with some examples other than with those it was traced on: its code decides by values of "
            "the data; let it do the same for all (a mask, torch.where)"
        )


def _say_coverage(network: Network) -> None:
    """Tell what of the network is not traced, and which parameters influence leaves out."""
    if network.mode != FULL:
        more = f" and {len(network.reasons) - 3} more" if len(network.reasons) > 3 else ""
        log.warning(
            f"not traced in full ({'; '.join(network.reasons[:3])}{more}): function space distance and influence use "
            f"the last linear layer '{network.head}' alone; evidence on labels comes from {len(network.hooked)} hooked "
            "activation layers"
        )
    still = [name for name in network.graph.parameter_names() if name in network.graph.frozen]
    if still:
        log.info(f"influence leaves out {len(still)} frozen parameters, '{still[0]}' first")
    omitted = parameters_without_block(network.graph, blocks(network.graph, network.parameters))
    if omitted:
        log.info(f"influence leaves out {len(omitted)} parameters, '{omitted[0]}' first")
