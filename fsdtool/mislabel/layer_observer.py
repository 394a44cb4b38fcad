"""Evidence of every layer on examples that are not in the summarized data.

The examples run through the summarized network, which is observed at the layers that gave evidence when the data was
summarized.  The discriminant of each layer, from the summary, says how well every class explains its features; the
network's outputs give log p as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fsdtool.data.source import Batch
from fsdtool.errors import FsdtoolError
from fsdtool.influence.data_gradients import Examples
from fsdtool.mislabel.class_gaussians import bounded
from fsdtool.mislabel.class_model_file import ClassModels
from fsdtool.mislabel.features import FEATURES, INPUT, Narrowing, observe, watch
from fsdtool.mislabel.label_evidence import MOST_CANDIDATES, SCORES, strongest
from fsdtool.network import activations
from fsdtool.network.traced import FULL, Network
from fsdtool.summary import hdf5
from fsdtool.summary.reader import Summary


class LayerObserver:
    """Computes the evidence of all layers on batches of new examples.

    Raises FsdtoolError where the model lacks a layer of the summary, in last layer mode.
    """

    def __init__(self, summary: Summary, examples: Examples, models: ClassModels):
        self.summary, self.examples, self.models = summary, examples, models
        self.network = _hooked(examples.network, models.layers, summary)
        self.numbers = summary.statistics.drawn
        basis = summary.statistics.gaussian.basis if self.numbers else None
        self.basis = None if basis is None else basis.to(examples.device)
        layers = self.network.evidence_layers()
        self.watched = {name: last for name, last in layers.items() if name in models.layers}
        self.narrow = Narrowing(summary.identity.seed)

    def evidence(self, batch: Batch) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """The batch, its outputs (n, O), candidates (n, T) int32 and their evidence (n, L, T) float16, in nats.

        Raises FsdtoolError for activations that are not finite, and layers that do not fit the summary.
        """
        features, outputs = self._observe(batch)
        self._check_finite(batch, torch.cat([outputs, *(f.sum(1, keepdim=True) for f in features.values())], 1))
        parts = list(self._parts(batch, features, outputs))
        return batch, outputs, torch.cat([found for found, _ in parts]), torch.cat([values for _, values in parts])

    def _parts(self, batch: Batch, features: dict[str, Tensor], outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Candidates and evidence, for so many examples at a time that SCORES numbers are held at once."""
        classes = outputs.shape[1]
        step = max(SCORES // (classes * len(self.models.layers)), 1)
        for start in range(0, len(outputs), step):
            rows = slice(start, start + step)
            inner = [self._log_likelihood(i, features[layer][rows]) for i, layer in enumerate(self.models.layers[:-1])]
            scores = torch.stack([*inner, bounded(torch.log_softmax(outputs[rows].double(), 1))], 1)
            found, values = strongest(scores, batch.y[rows], min(classes, MOST_CANDIDATES))
            yield found, values.half()

    def _log_likelihood(self, i: int, features: Tensor) -> Tensor:
        """Log-likelihoods (n, classes) float32 by layer i, the strongest class at 0."""
        found = self.models.discriminants[i]
        if features.shape[1] != len(found.middle):
            raise FsdtoolError(
                f"'{self.summary.path}': layer '{self.models.layers[i]}' has {features.shape[1]} features, "
                f"the file {len(found.middle)}; {hdf5.WRITE_AGAIN}"
            )
        # A class without examples has no model, and must not be suggested.
        return bounded(found.log_likelihood(features).masked_fill(self.models.members == 0, -torch.inf))

    def _observe(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Features (n, D) by layer and outputs (n, classes) of a batch, on the CPU."""
        features: dict[str, Tensor] = {}

        def keep(layer: str, values: Tensor) -> None:
            features[layer] = self.narrow(values).cpu()

        with torch.no_grad():
            signal = self.network.signal(batch.x.to(self.examples.device), watch(self.watched, keep))
            if self.numbers:
                flat = signal.flatten(1)
                name = INPUT if self.network.mode == FULL else FEATURES
                keep(name, flat if self.basis is None else flat @ self.basis)
            outputs = self.network.graph.run(self.network.parameters, signal, observe=observe(self.watched, keep)).cpu()
        missing = [layer for layer in self.models.layers[:-1] if layer not in features]
        if missing:
            raise FsdtoolError(f"'{self.summary.path}': the network has no layer '{missing[0]}'; {hdf5.WRITE_AGAIN}")
        return features, outputs

    def _check_finite(self, batch: Batch, values: Tensor) -> None:
        broken = (~torch.isfinite(values).all(1)).nonzero()[:, 0].tolist()
        if broken:
            raise FsdtoolError(
                f"the activations or outputs for example {self.examples.ids[int(batch.index[broken[0]])]} "
                "are not finite: its inputs are far outside those of training; correct or remove it"
            )


def _hooked(network: Network, layers: tuple[str, ...], summary: Summary) -> Network:
    """The network with hooks on the layers that gave evidence; in full mode its graph is observed and needs none.

    Raises FsdtoolError where the model has other layers.
    """
    if network.mode == FULL:
        return network
    hooked = tuple(layer for layer in layers[:-1] if layer != FEATURES)
    assert network.model is not None
    modules = dict(network.model.named_modules())
    missing = [name for name in hooked if type(modules.get(name)) not in activations.MODULES]
    if missing:
        raise FsdtoolError(
            f"the model has no activation layer '{missing[0]}', and that of '{summary.path}' has; "
            "give the model that was summarized"
        )
    return replace(network, hooked=hooked)
