"""Features of layers, from which the evidence on labels and targets is computed, and their store during the pass.

The features of a layer are its activations and gate slopes per channel, averaged over the cells of a coarse grid of
positions: where in the image a convolution responds tells classes apart much better than its mean over the whole image.
Positions of tokens have no such meaning, so they are averaged over all tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.network.activations import Activation
from fsdtool.network.graph import Observer, Step
from fsdtool.network.operations.base import ACTIVATION
from fsdtool.network.traced import Watch
from fsdtool.util.atomic_files import reserve

INPUT, FEATURES, OUTPUTS = "(input)", "(features)", "(outputs)"  # no module can have these names
MOST_LAYERS = 12  # activation layers that give evidence
MOST_FEATURES = 512  # of a layer; more are projected on so many random directions
MOST_POOLED = 1024  # channels x cells of a layer, before the projection
GRIDS = (4, 2)  # cells along each axis of positions: the finest grid within MOST_POOLED is taken
ROWS = 1024  # examples read at once from the stored features: few enough that their memory is used again


Keep = Callable[[str, Tensor], None]


class Narrowing:
    """Projects features (batch, D) of more than 512 on as many random directions of +-1 (seeded by D and `seed`)."""

    def __init__(self, seed: int):
        self._seed = seed
        self._directions: dict[int, Tensor] = {}

    def __call__(self, features: Tensor) -> Tensor:
        width = features.shape[1]
        if width <= MOST_FEATURES:
            return features
        if width not in self._directions:
            self._directions[width] = projection(width, self._seed).to(features)
        return features @ self._directions[width]


class FeatureStore:
    """Features (N, D) float32 of every evidence layer, narrowed, in files of a temporary folder; a context manager."""

    def __init__(self, examples: int, seed: int):
        self._folder = tempfile.TemporaryDirectory(prefix="fsdtool-")
        self._examples, self._narrow = examples, Narrowing(seed)
        self._arrays: dict[str, np.memmap] = {}

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._arrays.clear()
        self._folder.cleanup()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names (L,) of the layers stored, in the order in which they came."""
        return tuple(self._arrays)

    def put(self, layer: str, rows: slice, features: Tensor) -> None:
        """Store features (batch, D) of the examples `rows`.

        Raises FsdtoolError where the temporary folder has no room.
        """
        features = self._narrow(features)
        if layer not in self._arrays:
            self._arrays[layer] = self._array(features.shape[1])
        self._arrays[layer][rows] = features.cpu().numpy()

    def _array(self, width: int) -> np.memmap:
        path, shape = Path(self._folder.name) / f"{len(self._arrays)}.f32", (self._examples, width)
        size = 4 * self._examples * width
        try:
            with open(path, "w+b") as file:
                reserve(file, size)
                return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        except OSError as error:
            raise FsdtoolError(
                f"the temporary folder '{path.parent.parent}' has no room for {size:,} bytes ({error.strerror}); "
                "free some, or set TMPDIR to another folder"
            ) from error

    def get(self, layer: str) -> np.ndarray:
        """Features (N, D) float32 of one layer."""
        return self._arrays[layer]


def projection(width: int, seed: int) -> Tensor:
    """The random directions (width, 512) float32 for layers of more than 512 features, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (width, MOST_FEATURES), generator=generator, dtype=torch.int8)
    return (signs * 2 - 1).float() / width**0.5


def choose_layers(names: list[str], most: int = MOST_LAYERS) -> list[str]:
    """At most `most` of the layers, evenly spaced from the first to the last; if one, the middle layer."""
    if len(names) <= most:
        return names
    if most == 1:
        return [names[len(names) // 2]]
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def layer_features(activation: Activation, s: Tensor, a: Tensor, channels_last: bool) -> Tensor:
    """Mean outputs and slopes per channel and cell (batch, 2 C cells) of a layer with pre-activations s, outputs a."""
    m, _ = activation.gate(s)
    return torch.cat([pool(a, channels_last), pool(m, channels_last)], 1)


def pool(value: Tensor, channels_last: bool) -> Tensor:
    """Means (batch, C cells) over a grid of positions of a signal (batch, C, ...).

    channels_last: of a signal (batch, ..., C) the mean (batch, C) over all positions.
    """
    if value.dim() == 2:
        return value
    if channels_last:
        return value.flatten(1, -2).mean(1)
    axes = value.dim() - 2
    grid = next((g for g in GRIDS if value.shape[1] * g**axes <= MOST_POOLED), 1)
    cells = [min(grid, size) for size in value.shape[2:]]
    if axes > 3 or max(cells) == 1:
        return value.flatten(2).mean(2)
    if axes == 1:
        return F.adaptive_avg_pool1d(value, cells[0]).flatten(1)
    if axes == 2:
        return F.adaptive_avg_pool2d(value, (cells[0], cells[1])).flatten(1)
    return F.adaptive_avg_pool3d(value, (cells[0], cells[1], cells[2])).flatten(1)


def watch(watched: dict[str, bool], keep: Keep) -> Watch:
    """Keeps the evidence features of hooked activation modules (last layer mode)."""

    def before(name: str, activation: Activation, s: Tensor, channels_last: bool) -> Callable[[Tensor], None]:
        if name not in watched:
            return lambda a: None
        slopes = pool(activation.gate(s)[0], channels_last)
        return lambda a: keep(name, torch.cat([pool(a, channels_last), slopes], 1))

    return before


def observe(watched: dict[str, bool], keep: Keep) -> Observer:
    """Keeps the evidence features of steps, some of which have their channels last (full mode).

    Of an embedding they are the mean vector: a bag of words.
    """

    def see(step: Step, inputs: list[Tensor], output: Tensor) -> None:
        if step.name in watched and step.kind != ACTIVATION:
            keep(step.name, pool(output, watched[step.name]))
        elif step.name in watched:
            keep(step.name, layer_features(step.activation(), inputs[0], output, watched[step.name]))

    return see
