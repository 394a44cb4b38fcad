"""Gradient records, against gradients formed in full and the singular value decomposition."""

from __future__ import annotations

import h5py
import pytest
import torch
from torch import nn

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.influence.gradient_records import Factors, bytes_per_example, factors, numbers_within
from fsdtool.network.per_example_gradients import blocks, capture, gradient
from fsdtool.network.tracing.trace import trace
from fsdtool.tasks.task import task_of
from tests.conftest import gaussian_classes, perceptron

HALF = 2e-3  # a few roundings of float16


def orthonormal(n: int, k: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator)).Q[:, :k]


def some_curvature(block, ks: int, ka: int, seed: int = 0) -> BlockCurvature:
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.rand(ks, ka, generator=generator) ** 4
    return BlockCurvature(
        block.weight,
        block.bias,
        orthonormal(block.d_in, ka, generator),
        orthonormal(block.d_out, ks, generator),
        eigenvalues,
        float(eigenvalues.mean()) / 2,
    )


def projected(block, uses, c: BlockCurvature) -> torch.Tensor:
    """S^T G A in float64 from the whole gradient."""
    return c.output_basis.T.double() @ gradient(block, uses).double() @ c.input_basis.double()


def rebuilt(found: Factors) -> torch.Tensor:
    b, a = found.part(slice(None))
    return b.double()[:, :, None] * a.double()[:, None, :]


def captured(network: nn.Module, x: torch.Tensor, scale: float = 1.0):
    """Blocks of a network and what they saw of x, with random gradients of size `scale` at the outputs."""
    traced = trace(network.eval(), x)
    generator = torch.Generator().manual_seed(1)

    def output_gradient(logits: torch.Tensor) -> torch.Tensor:
        return scale * torch.randn(logits.shape, generator=generator)

    _, uses = capture(traced.graph, traced.parameters, x, output_gradient)
    return blocks(traced.graph, traced.parameters), uses


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3))


@pytest.mark.parametrize("kept", [3, 5])
def test_a_linear_layer_on_vectors_is_kept_exactly_in_the_kept_directions(kept):
    found, uses = captured(perceptron(6, 7, 5), torch.randn(20, 6))
    for block in found:
        c = some_curvature(block, kept, kept)
        expected = projected(block, uses, c)
        error = (rebuilt(factors(block, c, uses)) - expected).flatten(1).norm(dim=1)
        assert bool((error <= HALF * expected.flatten(1).norm(dim=1)).all())


def test_a_convolution_is_kept_as_its_best_rank_one_matrix_after_preconditioning():
    found, uses = captured(convolution(), torch.randn(30, 2, 4, 4))
    block = found[0]
    c = some_curvature(block, 4, 9)
    inverse_root = c.damped.double().rsqrt()
    weight = torch.outer(inverse_root.mean(1), inverse_root.mean(0))  # separable, so that rank one stays rank one
    whole, kept = projected(block, uses, c) * weight, rebuilt(factors(block, c, uses)) * weight
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    best = (whole - s[:, :1, None] * u[:, :, :1] * vh[:, :1]).flatten(1).norm(dim=1)
    error, size = (whole - kept).flatten(1).norm(dim=1), whole.flatten(1).norm(dim=1)
    assert bool((error <= best + 0.03 * size).all())  # a few steps of the power method
    apart = s[:, 1] < 0.5 * s[:, 0]
    assert int(apart.sum()) >= 3
    assert bool((error <= best + HALF * size)[apart].all())


def test_a_convolution_at_one_position_is_kept_exactly():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3))
    found, uses = captured(network, torch.randn(10, 2, 3, 3))
    c = some_curvature(found[0], 5, 19)
    torch.testing.assert_close(rebuilt(factors(found[0], c, uses)), projected(found[0], uses, c), rtol=0.02, atol=HALF)


@pytest.mark.parametrize("scale", [1e-9, 1e-15, 1e-23, 1e-30])
@pytest.mark.parametrize("network", [perceptron(32, 7, 5), convolution()], ids=["linear", "convolution"])
def test_the_gradients_of_examples_that_the_network_is_sure_of_do_not_underflow(network, scale):
    if isinstance(network[0], nn.Conv2d):
        x = torch.randn(10, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    else:
        x = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    kept = []
    for size in (1.0, scale):
        found, uses = captured(network, x, size)
        kept.append([factors(b, some_curvature(b, 3, 4), uses) for b in found])
    for large, small in zip(*kept, strict=True):
        torch.testing.assert_close(small.output.float(), large.output.float(), rtol=0, atol=2e-3)
        torch.testing.assert_close(small.input.float(), large.input.float(), rtol=0, atol=2e-3)
        torch.testing.assert_close(small.scale.double() / scale, large.scale.double(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("network", [perceptron(32, 7, 5), convolution()], ids=["linear", "convolution"])
def test_a_gradient_of_zero_is_kept_as_zero(network):
    x = torch.randn(4, 2, 4, 4) if isinstance(network[0], nn.Conv2d) else torch.randn(4, 32)
    found, uses = captured(network, x, 0.0)
    for block in found:
        kept = factors(block, some_curvature(block, 3, 4), uses)
        assert not rebuilt(kept).any()
        assert torch.isfinite(kept.output).all()
        assert torch.isfinite(kept.input).all()


def test_a_block_without_curvature_gives_finite_records():
    found, uses = captured(convolution(), torch.randn(4, 2, 4, 4))
    c = some_curvature(found[0], 3, 4)
    none = BlockCurvature(c.weight, c.bias, c.input_basis, c.output_basis, 0 * c.eigenvalues, 0.0)
    assert torch.isfinite(rebuilt(factors(found[0], none, uses))).all()


def test_a_part_of_the_records_is_that_of_the_whole():
    found, uses = captured(perceptron(6, 7, 5), torch.randn(20, 6))
    kept = factors(found[0], some_curvature(found[0], 3, 4), uses)
    assert len(kept) == 20
    for part, whole in zip(kept.part(slice(5, 9)), kept.part(slice(None)), strict=True):
        assert torch.equal(part, whole[5:9])


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_records_of_an_example_take_what_they_say_and_no_more_than_asked(sample_paths, network):
    with h5py.File(sample_paths[network]) as file:
        group = file["records/gradients"]
        sizes = [group[w][part].dtype.itemsize * group[w][part][0].size for w in group for part in group[w]]
    assert 900 < sum(sizes) <= 1024


@pytest.mark.parametrize("budget", [100, 150, 200])
def test_a_smaller_budget_is_kept(summarized, budget):
    summary = summarized(perceptron(4, 30, 20, 3), *gaussian_classes(100, 4, 3), record_bytes=budget)
    assert budget - 2 <= bytes_per_example(summary.curvature) <= budget


def test_numbers_within_a_budget():
    assert numbers_within(1024, 3) == (1024 - 12) // 2
    assert numbers_within(5, 3) == 0


# The losses whose gradients are kept


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_gradient_of_the_loss_is_that_of_autograd(task):
    outputs = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(4, (6,)) if task == "classification" else torch.randn(6, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad(task_of(task).loss(outputs, targets).sum(), outputs)
    torch.testing.assert_close(task_of(task).loss_gradient(targets)(outputs.detach()), expected)


def test_the_losses_are_cross_entropy_in_nats_and_half_the_squared_error():
    outputs = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    expected = -torch.log_softmax(outputs, 1)[[0, 1], [1, 0]]
    torch.testing.assert_close(task_of("classification").loss(outputs, torch.tensor([1, 0])), expected)
    torch.testing.assert_close(task_of("regression").loss(outputs, torch.zeros(2, 2)), torch.tensor([5.0, 0.0]))
