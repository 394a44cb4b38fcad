"""Last layer mode: what a summary knows of the layers before the head, and distances that see them too.

The summary keeps a digest of each tensor outside the head. Where another checkpoint differs in one of them, the
distance of its head alone is no distance of the network. The whole network is then run on data, with its code:

    mean over the data of rho(f(x; theta0), f(x; theta1))

f(x; theta0) comes from the summarized checkpoint, or from the records where the data are those summarized.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fsdtool.data.inputs.handing import hand_over
from fsdtool.data.layout import fit_layout
from fsdtool.data.source import Batch, DataSource, Fingerprint
from fsdtool.errors import FsdtoolError, some
from fsdtool.model.checkpoint import Checkpoint, apply_checkpoint, tensors_of
from fsdtool.model.state_dict_names import matters
from fsdtool.network.graph import Parameters
from fsdtool.network.traced import Network
from fsdtool.summary.reader import Summary
from fsdtool.util.memory import BatchSize
from fsdtool.util.progress import Track

log = logging.getLogger("fsdtool")


def digests(model: nn.Module, head: Mapping[str, Tensor]) -> dict[str, str]:
    """A digest of every tensor of the model that is not of the `head`, by name."""
    return {name: _digest(value) for name, value in tensors_of(model).items() if name not in head and matters(name)}


def changed(summary: Summary, state: Mapping[str, Tensor]) -> list[str]:
    """The tensors outside the head in which a checkpoint, under the summary's names, differs from the summarized one.

    Raises FsdtoolError for a summary without digests.
    """
    known = summary.identity.digests
    if not known and set(summary.identity.shapes) > set(summary.identity.graph.parameter_names()):
        raise FsdtoolError(
            f"'{summary.path}' is in last layer mode and has no digests of the layers before, so that their change "
            "would not be seen; write it again"
        )
    return [name for name, digest in known.items() if name in state and _digest(state[name]) != digest]


def check_unmoved(summary: Summary, model: nn.Module, path: str) -> None:
    """Raise FsdtoolError where the model's weights are not those that were summarized, as far as that is known."""
    moved = changed(summary, tensors_of(model)) if summary.identity.digests else []
    if moved:
        raise FsdtoolError(
            f"the weights of '{path}' are not those that were summarized ({some(moved)} differ); give the same `ema`, "
            "`checkpoint_key` and `model_arg` as then"
        )


def check_seen(summary: Summary, checkpoint: Checkpoint, moved: list[str], *, whole: bool) -> None:
    """Raise FsdtoolError where more than the head moved, unless the `whole` network is measured on data."""
    if moved and not whole:
        head = summary.identity.head
        raise FsdtoolError(
            f"'{checkpoint.path}' differs from the summarized checkpoint before the last layer '{head}' "
            f"({some(moved)}), which '{summary.path}', in last layer mode, "
            "does not see; give `model` and `data` for the exact distance of the whole network"
        )


class WholeNetwork:
    """The network of a summary in last layer mode, run with its code: `model(checkpoint)` builds it."""

    def __init__(
        self,
        summary: Summary,
        model: Callable[[Checkpoint], nn.Module],
        reference: Checkpoint | None,
        head: Parameters,
        device: torch.device,
    ):
        self.summary, self.device, self._head, self._model = summary, device, head, model
        self._reference = None if reference is None else self._loaded(reference)

    def _loaded(self, checkpoint: Checkpoint) -> nn.Module:
        model = self._model(checkpoint)
        for note in apply_checkpoint(model, checkpoint):
            log.info(f"{checkpoint.path}: {note}")
        hand_over(model, self.summary.preprocessing.parts)
        return model.to(self.device).eval()

    def exact(
        self,
        checkpoints: list[Checkpoint],
        measure: Callable[[Tensor, Tensor], Tensor],
        data: DataSource,
        batch_size: int,
        track: Track,
    ) -> list[float]:
        """The mean of `measure(f0, f1)` (n,) over the data, for each checkpoint.

        Raises FsdtoolError where the outputs of the summarized checkpoint are needed and not known.
        """
        identity, totals = self.summary.identity, [0.0] * len(checkpoints)
        models = [self._loaded(checkpoint) for checkpoint in checkpoints]
        unmoved = next((m for m in models if not changed(self.summary, tensors_of(m))), None)
        data = fit_layout(data, models[0])
        fingerprint, size = Fingerprint(data.ids), BatchSize(batch_size)
        known = unmoved if self._reference is None else self._reference
        recorded = self._recorded(len(data)) if known is None else None
        with track("exact distance", len(data)) as advance, torch.no_grad():
            for batch in data.batches(batch_size):
                fingerprint.update(batch)

                def of(rows: slice, batch: Batch = batch) -> list[float]:
                    x = batch.x[rows].to(self.device)
                    if recorded is not None:
                        f0 = recorded[batch.index[rows]].to(self.device)
                    else:
                        assert known is not None
                        f0 = self._run(known, x, self._head)
                    return [float(measure(f0, self._run(model, x)).sum()) for model in models]

                for sums in size.parts(len(batch.index), of):
                    totals = [total + part for total, part in zip(totals, sums, strict=True)]
                advance(len(batch.index))
        if recorded is not None and fingerprint.hexdigest() != identity.fingerprint:
            raise self._unknown(f"'{data.spec}' is not the data that was summarized")
        if recorded is not None:
            log.info(
                "the outputs of the summarized checkpoint are those recorded (float16); `reference` gives it itself"
            )
        return [total / len(data) for total in totals]

    def _run(self, model: nn.Module, x: Tensor, head: Parameters | None = None) -> Tensor:
        identity = self.summary.identity
        if head is None:
            state = tensors_of(model)
            head = {name: state[name] for name in identity.graph.parameter_names()}
        network = Network(identity.graph, dict(head), identity.mode, identity.reasons, model, identity.head)
        return identity.graph.run(head, network.signal(x))

    def _recorded(self, examples: int) -> Tensor:
        records = self.summary.records
        if records is None or "logits" not in records:
            raise self._unknown("the summary has no records of them")
        if examples != len(records):
            raise self._unknown("the data is not what was summarized")
        return torch.from_numpy(records.read("logits")).float()

    def _unknown(self, why: str) -> FsdtoolError:
        name = self.summary.identity.checkpoint_name
        return FsdtoolError(
            f"the outputs of the summarized checkpoint on this data are not known ({why}); "
            f"give it as `reference` ({name})"
        )


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:32]
