"""Components: classes, clusters of gate patterns, or all data as one."""

from __future__ import annotations

import logging
import re

import torch
from torch import nn

from fsdtool.network.tracing.trace import trace
from fsdtool.statistics.mixture import UNITS_PER_STEP, Assignment, GatePattern, k_means


def blobs(clusters: int, each: int, dimensions: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(clusters, dimensions, generator=generator)
    owner = torch.arange(clusters).repeat_interleave(each)
    return centres[owner] + torch.randn(clusters * each, dimensions, generator=generator), owner


def test_k_means_finds_separate_groups_and_their_means():
    points, owner = blobs(4, 30)
    centres = k_means(points, 4, seed=0)
    expected = torch.stack([points[owner == k].mean(0) for k in range(4)])
    order = torch.cdist(expected, centres).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert torch.allclose(centres[order], expected, atol=1e-4)


def test_k_means_is_deterministic_and_leaves_the_global_generator_alone():
    points, _ = blobs(6, 20)
    state = torch.random.get_rng_state()
    first = k_means(points, 9, seed=4)
    assert torch.equal(first, k_means(points, 9, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, k_means(points, 9, seed=5))


def test_k_means_is_a_fixed_point_of_lloyds_steps():
    points, _ = blobs(3, 40, dimensions=2)
    centres = k_means(points, 5, seed=1)
    owner = torch.cdist(points, centres).argmin(1)
    means = torch.stack([points[owner == k].mean(0) for k in range(len(centres))])
    assert torch.allclose(means, centres, atol=1e-4)


def test_clusters_that_have_not_settled_are_said(caplog):
    generator = torch.Generator().manual_seed(0)
    with caplog.at_level(logging.INFO, "fsdtool"):
        k_means(blobs(4, 30)[0], 4, seed=0)
        assert caplog.text == ""
        k_means(torch.rand(3000, 2, generator=generator), 30, seed=0)
    assert re.search(r"k-means ended after 25 steps, when \d+\.\d% of the examples still changed", caplog.text)


def test_there_are_no_more_clusters_than_different_points():
    points = torch.tensor([[0.0, 1], [0, 1], [1, 1], [1, 1], [1, 1]])
    centres = k_means(points, 4, seed=0)
    assert sorted(centres.tolist()) == [[0.0, 1.0], [1.0, 1.0]]
    assert k_means(points[:1], 3, seed=0).tolist() == [[0.0, 1.0]]


def test_patterns_are_the_slopes_of_a_fixed_choice_of_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 700), nn.ReLU(), nn.Linear(700, 9), nn.GELU(), nn.Linear(9, 3)).eval()
    network = trace(model, torch.randn(2, 6))
    x = torch.randn(11, 6)
    pattern = GatePattern(network.graph, seed=7)
    found = pattern.of(network.graph, network.parameters, x)
    assert found.shape == (11, UNITS_PER_STEP + 9)
    assert torch.equal(found, GatePattern(network.graph, seed=7).of(network.graph, network.parameters, x))
    with torch.no_grad():
        s = model[0](x)
        t = model[2](torch.relu(s))
    chosen = pattern.units["1"]
    assert torch.equal(found[:, :UNITS_PER_STEP], (s[:, chosen] > 0).float())
    assert len(set(chosen.tolist())) == UNITS_PER_STEP
    point = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.gelu(point).sum(), point)
    assert torch.allclose(found[:, UNITS_PER_STEP:], slope, atol=1e-6)
    assert not found.requires_grad


def test_examples_go_to_their_class_to_the_nearest_centre_or_together():
    labels = torch.tensor([2, 0, 1])
    by_class = Assignment("class", ("a", "b", "c"))
    assert by_class.assign(labels).tolist() == [2, 0, 1]
    assert len(by_class) == 3
    assert Assignment("all", ("all",)).assign(labels).tolist() == [0, 0, 0]
    points, owner = blobs(4, 10)
    centres = torch.stack([points[owner == k].mean(0) for k in range(4)])
    clusters = Assignment("cluster", ("0", "1", "2", "3"), None, centres)
    assert torch.equal(clusters.assign(torch.zeros(40), points), owner)
