"""Features of layers: means over a grid of positions, the layers chosen, and where features are kept."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fsdtool.mislabel.features import FeatureStore, choose_layers, layer_features, pool, projection
from fsdtool.network.activations import activation

# Means over positions


def naive(value: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    """Means (batch, C cells) of a signal (batch, C, ...) over a grid of so many cells along each axis.

    Cell j of k along an axis of n positions has those from the floor of j n / k up to the ceiling of (j + 1) n / k.
    """
    columns = []
    for channel in range(value.shape[1]):
        for cell in itertools.product(*(range(k) for k in cells)):
            part = value[:, channel]
            for axis, (j, k) in enumerate(zip(cell, cells, strict=True), 1):
                n = value.shape[1 + axis]
                part = part.take(range(j * n // k, -(-(j + 1) * n // k)), axis)
            columns.append(part.reshape(len(part), -1).mean(1))
    return np.stack(columns, 1)


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        ((3, 8), (4,)),
        ((3, 13), (4,)),
        ((3, 2), (2,)),
        ((3, 1), (1,)),
        ((256, 9), (4,)),
        ((257, 9), (2,)),
        ((512, 5), (2,)),
        ((513, 5), (1,)),
        ((2, 8, 8), (4, 4)),
        ((2, 7, 5), (4, 4)),
        ((2, 3, 9), (3, 4)),
        ((2, 1, 6), (1, 4)),
        ((64, 4, 4), (4, 4)),
        ((65, 7, 7), (2, 2)),
        ((256, 1, 3), (1, 2)),
        ((257, 4, 4), (1, 1)),
        ((2, 4, 8, 5), (4, 4, 4)),
        ((17, 5, 5, 5), (2, 2, 2)),
        ((129, 2, 3, 2), (1, 1, 1)),
        ((2, 2, 3, 2, 2), (1, 1, 1, 1)),
    ],
)
def test_means_over_the_grid_are_those_of_its_cells(shape, cells):
    value = np.random.default_rng(0).normal(size=(3, *shape))
    found = pool(torch.from_numpy(value), channels_last=False)
    np.testing.assert_allclose(found, naive(value, cells), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("positions", [(4,), (3, 5)])
def test_of_tokens_there_is_one_mean(positions):
    value = torch.randn(5, *positions, 3)
    torch.testing.assert_close(pool(value, channels_last=True), value.flatten(1, -2).mean(1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_has_no_positions_stays_as_it_is(channels_last):
    value = torch.randn(5, 4)
    assert torch.equal(pool(value, channels_last), value)


@pytest.mark.parametrize("function", ["relu", "leaky_relu", "tanh"])
def test_the_features_of_a_layer_are_mean_output_and_mean_slope_per_channel_and_cell(function):
    phi, s = activation(function), torch.randn(5, 3, 6, 5, dtype=torch.float64)
    s.requires_grad_()
    a = phi.function(s)
    (m,) = torch.autograd.grad(a.sum(), s)
    expected = np.hstack([naive(value.detach().numpy(), (4, 4)) for value in (a, m)])
    np.testing.assert_allclose(layer_features(phi, s.detach(), a.detach(), channels_last=False), expected)


# Which layers


def test_at_most_twelve_layers_are_chosen_from_first_to_last():
    assert choose_layers(["a", "b"]) == ["a", "b"]
    names = [str(i) for i in range(40)]
    chosen = choose_layers(names)
    assert len(set(chosen)) == 12
    assert (chosen[0], chosen[-1]) == ("0", "39")
    assert chosen == sorted(chosen, key=int)
    assert choose_layers(names, 1) == ["20"]


# Where they are kept


def test_wide_layers_are_projected_on_512_seeded_directions():
    x = torch.randn(20, 700)

    def stored(seed: int) -> np.ndarray:
        with FeatureStore(20, seed) as store:
            store.put("wide", slice(0, 15), x[:15])
            store.put("wide", slice(15, 20), x[15:])
            return np.array(store.get("wide"))

    assert stored(0).shape == (20, 512)
    np.testing.assert_array_equal(stored(0), stored(0))
    assert not np.array_equal(stored(0), stored(1))
    lengths = np.linalg.norm(stored(0), axis=1) / (512 / 700) ** 0.5
    np.testing.assert_allclose(lengths, x.norm(dim=1), rtol=0.15)  # distances are kept, roughly


def test_the_random_directions_are_made_again_from_width_and_seed():
    x = torch.randn(20, 700)
    with FeatureStore(20, 3) as store:
        store.put("wide", slice(0, 20), x)
        np.testing.assert_array_equal(store.get("wide"), (x @ projection(700, 3)).numpy())


def test_layers_of_512_features_are_kept_as_they_are():
    x = torch.randn(4, 512)
    with FeatureStore(4, 0) as store:
        store.put("layer", slice(0, 4), x)
        np.testing.assert_array_equal(store.get("layer"), x.numpy())


def test_the_stored_features_leave_nothing_behind():
    with FeatureStore(3, seed=0) as store:
        store.put("layer", slice(0, 3), torch.ones(3, 2))
        folder = Path(store.get("layer").filename).parent
        assert folder.is_dir()
    assert not folder.exists()
