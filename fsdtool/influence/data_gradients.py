"""Examples of a data set as the summarized network sees them: outputs, and what each weight saw for its gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.data.inputs.handing import hand_over
from fsdtool.data.layout import fit_layout
from fsdtool.data.repeatability import check_data
from fsdtool.data.source import Batch, DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.network.per_example_gradients import Block, LayerIO, blocks, capture, has_rank_one
from fsdtool.network.traced import FULL, LAST_LAYER, Network
from fsdtool.statistics.fit import FitSums, described, doubt_new
from fsdtool.summary.reader import Summary
from fsdtool.util.memory import BatchSize

T = TypeVar("T")
log = logging.getLogger("fsdtool")

GRADIENT_NUMBERS = 2**26  # held by the gradients of a batch where a weight's are formed whole


@dataclass(frozen=True)
class Seen:
    """A batch (on the CPU), its outputs (n, O), and by step index what each weight saw of it."""

    batch: Batch
    outputs: Tensor
    uses: dict[int, LayerIO]


class NewFit:
    """How well the summarized network fits data that it was not trained on; says it once they were all seen."""

    def __init__(self, summary: Summary, noun: str):
        self.training, self.noun = summary.fit, noun
        self._sums = None if summary.fit is None else FitSums(summary.task, np.array(summary.fit.constant))

    def update(self, batch: Batch, outputs: Tensor) -> None:
        """A batch and its outputs (n, O) on the CPU."""
        if self._sums is not None:
            losses = self._sums.task.loss(outputs, batch.y)
            self._sums.update(losses.numpy(), outputs.numpy(), batch.y.numpy())

    def say(self) -> None:
        """A note, and a warning where the fit is no better than a constant answer's."""
        if self._sums is None or self.training is None:
            return
        found = self._sums.finalize()
        log.info(f"fit to the {self.noun} data: {described(found)}; to the training data: {described(self.training)}")
        if fault := doubt_new(found, self.training, self.noun):
            log.warning(fault)


class Examples:
    """A data set read through the reference network of a summary.

    Raises FsdtoolError for data that the network does not take, or a summary that cannot run its network.
    """

    def __init__(
        self, summary: Summary, source: DataSource, *, model: nn.Module | None, device: torch.device, noun: str
    ):
        self.network = network_of(summary, model).to(device)
        self.source = _fitting(self.network, source, noun)
        check_data(self.source)
        self.task, self.device, self.noun = summary.task, device, noun
        self.graph, self.parameters = self.network.graph, self.network.parameters
        self.blocks: dict[str, Block] = {block.weight: block for block in blocks(self.graph, self.parameters)}

    def restrict(self, curvatures: Sequence[BlockCurvature]) -> None:
        """Gradients are of these weights alone; summaries from before there were vectors know none of them."""
        self.blocks = {c.weight: self.blocks[c.weight] for c in curvatures}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def ids(self) -> np.ndarray:
        return self.source.ids

    @property
    def rank_one(self) -> bool:
        """Whether the gradient of every weight is one outer product."""
        return all(has_rank_one(block, self.graph) for block in self.blocks.values())

    def batches(self, batch_size: int, rows: Sequence[int] | np.ndarray | None = None) -> Iterator[Seen]:
        """All examples, or those of `rows` in the order given."""
        return self.parts(batch_size, rows, self._seen)

    def _seen(self, batch: Batch) -> Seen:
        x, y = batch.x.to(self.device), batch.y.to(self.device)
        gradient_of = self.task.loss_gradient(y)
        outputs, uses = capture(self.graph, self.parameters, self.network.signal(x), gradient_of)
        return Seen(batch, outputs, uses)

    def outputs(self, batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Batches and the network's outputs (n, O) on the CPU, without gradients."""
        return self.parts(batch_size, None, self._outputs)

    def _outputs(self, batch: Batch) -> tuple[Batch, Tensor]:
        with torch.no_grad():
            return batch, self.graph.run(self.parameters, self.network.signal(batch.x.to(self.device))).cpu()

    def parts(
        self, batch_size: int, rows: Sequence[int] | np.ndarray | None, compute: Callable[[Batch], T]
    ) -> Iterator[T]:
        """compute(batch) of every batch; one for which memory runs out comes again in halves."""
        size = BatchSize(batch_size)
        for batch in self.source.batches(batch_size, indices=rows):
            self._check(batch)

            def part(rows: slice, batch: Batch = batch) -> T:
                return compute(Batch(batch.index[rows], batch.x[rows], batch.y[rows]))

            yield from size.parts(len(batch.index), part)

    def largest_batch(self, batch_size: int) -> int:
        """No more than `batch_size`, and so many that the gradients formed whole fit into memory."""
        formed = [block.size for block in self.blocks.values() if not has_rank_one(block, self.graph)]
        return max(1, min(batch_size, GRADIENT_NUMBERS // max(formed, default=1)))

    def check_finite(self, values: Tensor, batch: Batch) -> None:
        """Raise FsdtoolError naming the first example of the batch whose `values` (n, ...) are not finite."""
        broken = (~torch.isfinite(values).reshape(len(values), -1).all(1)).nonzero()[:, 0].tolist()
        if broken:
            raise FsdtoolError(
                f"the gradient of {self.noun} {self.ids[int(batch.index[broken[0]])]} is not finite: "
                "its inputs are far outside those of training; correct or remove it"
            )

    def _check(self, batch: Batch) -> None:
        ids, source = self.ids[batch.index.numpy()], f"'{self.source.spec}'"
        self.task.check_targets(batch.y, ids, self.graph.outputs, source, "give data of the same kind")


def network_of(summary: Summary, model: nn.Module | None = None) -> Network:
    """The reference network as the summary holds it; in last layer mode `model` computes its features.

    Raises FsdtoolError when the summary has no weights, or needs a model that is not given.
    """
    identity = summary.identity
    if summary.parameters is None:
        raise FsdtoolError(f"'{summary.path}' was written with `keep_weights=False`; write it again with weights")
    if identity.mode == LAST_LAYER and model is None:
        raise FsdtoolError(
            f"'{summary.path}' holds only the last layer '{identity.head}' of {identity.model_spec}; "
            "give `model` and `checkpoint` to compute the features of the queries"
        )
    used = model if identity.mode != FULL else None
    return Network(identity.graph, summary.parameters, identity.mode, identity.reasons, used, identity.head)


def _fitting(network: Network, source: DataSource, noun: str) -> DataSource:
    """The data set, known to be inputs that the network takes."""
    if network.mode != FULL:
        assert network.model is not None
        hand_over(network.model, source.preprocessing.parts)
        return fit_layout(source, network.model)
    found, expected = tuple(source.input_shape), tuple(network.graph.input_shape)
    if found != expected:
        raise FsdtoolError(
            f"the {noun} data '{source.spec}' have inputs of shape {found}, "
            f"the summary was made from {expected}; give data of the same kind"
        )
    return source
