"""The penalty: the distance of a live module, with gradients that reach its weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fsdtool
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.laftr.metrics import measure
from fsdtool.model.checkpoint import Checkpoint, read_checkpoint
from fsdtool.model.factory import load_model

NETWORKS = {"mlp": "mlp.pt", "convnet": "convnet.safetensors"}


@pytest.fixture(params=list(NETWORKS))
def case(request, sample_data):
    """A freshly opened summary and the network at the summarized checkpoint."""
    summary = fsdtool.load(request.getfixturevalue(f"{request.param}_summary").path)
    network = load_model(f"{sample_data}/model.py:{request.param}")
    network.load_state_dict(read_checkpoint(sample_data / NETWORKS[request.param]).state)
    return summary, network


def move(network: nn.Module, size: float, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return network


def test_zero_at_the_reference_and_growing_away_from_it(case):
    summary, network = case
    assert float(summary.penalty(network)) == pytest.approx(0, abs=1e-9)
    near = float(summary.penalty(move(network, 0.05), batch=1024))
    far = float(summary.penalty(move(network, 0.2), batch=1024))
    assert 0 < near < far


@pytest.mark.parametrize("metric", ["kl", "kl2", "squared_error", "probability"])
def test_agrees_with_the_command(case, metric):
    summary, network = case
    move(network, 0.1)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    # The penalty measures at simulated outputs; the command at recorded ones where the summary has them.
    simulated = replace(summary, statistics=replace(summary.statistics, outputs=None))
    found = distances(
        simulated, [Checkpoint("moved.pt", "", state, ())], metric=metric, form="sampled", samples=4096
    ).found[0]
    drawn = [float(summary.penalty(network, metric=metric, batch=512)) for _ in range(6)]
    # The penalty draws larger batches, whose gates meet their probabilities more closely.
    allowed = 6 * found.standard_error + 0.03 * found.distance
    assert sum(drawn) / 6 == pytest.approx(found.distance, abs=allowed)


def test_gradients_reach_every_parameter_and_are_those_of_the_value(case):
    summary, network = case
    move(network, 0.1)
    summary.penalty(network, metric="squared_error", seed=3).backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)
    # The same pseudo-samples in both directions: a freshly opened summary draws the same pool.
    direction = [torch.sign(g) for g in gradients]
    values = []
    for side in (1, -1):
        with torch.no_grad():
            for parameter, d in zip(network.parameters(), direction, strict=True):
                parameter.add_(side * 1e-4 * d)
        values.append(float(fsdtool.load(summary.path).penalty(network, metric="squared_error", seed=3).detach()))
        with torch.no_grad():
            for parameter, d in zip(network.parameters(), direction, strict=True):
                parameter.sub_(side * 1e-4 * d)
    slope = (values[0] - values[1]) / 2e-4
    assert slope == pytest.approx(
        sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True)), rel=2e-2
    )


def test_closed_form_for_fully_connected_nets(mlp_summary, sample_data):
    summary = fsdtool.load(mlp_summary.path)
    network = load_model(f"{sample_data}/model.py:mlp")
    network.load_state_dict(read_checkpoint(sample_data / "mlp.pt").state)
    move(network, 0.1)
    value = summary.penalty(network, metric="squared_error", form="closed")
    state = {name: v.clone() for name, v in network.state_dict().items()}
    command = distances(summary, [Checkpoint("m", "", state, ())], metric="squared_error", form="closed").distances[0]
    assert float(value) == pytest.approx(command, rel=1e-3)
    value.backward()
    assert all(parameter.grad.any() for parameter in network.parameters())


def test_own_gates_are_the_plain_networks_on_pseudo_inputs(case):
    summary, network = case
    assert float(summary.penalty(network, gates="own")) == pytest.approx(0, abs=1e-9)
    move(network, 0.1)
    summary.penalty(network, gates="own", batch=512).backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    own = summary._penalties[None, "sampled", "own", 0, torch.device("cpu")]
    x, f0, tape = own._next(512)
    assert tape is None
    with torch.no_grad():
        f1 = network(x)
        assert float(own(network, 512)) == pytest.approx(float(measure("kl", f0, f1).mean()), rel=0.3)


def test_gates_that_move_see_what_fixed_ones_cannot(case):
    """A bias so low that a layer falls silent changes the outputs; with the reference's gates it shifts them more."""
    summary, network = case
    first = next(p for n, p in network.named_parameters() if n.endswith("bias"))
    with torch.no_grad():
        first.sub_(1e4)
        found = {
            gates: float(summary.penalty(network, metric="squared_error", gates=gates, batch=512))
            for gates in ("own", "moving", "coupled")
        }
    assert 0 < found["own"] < 1e-3 * found["coupled"]
    assert 0 < found["moving"] < 1e-3 * found["coupled"]


def test_unknown_gates_are_one_line(case):
    summary, network = case
    with pytest.raises(FsdtoolError, match="there are no gates 'free'; give one of coupled, independent, moving, own"):
        summary.penalty(network, gates="free")


def test_auto_takes_the_closed_form_of_independent_gates(mlp_summary, sample_data):
    summary = fsdtool.load(mlp_summary.path)
    network = move(load_model(f"{sample_data}/model.py:mlp"), 0.1)
    settings = {"metric": "kl2", "gates": "independent"}
    values = [float(summary.penalty(network, form=form, **settings)) for form in ("auto", "closed")]
    assert values[0] == values[1]


def test_a_descent_on_the_penalty_leads_back(case):
    summary, network = case
    move(network, 0.1)
    before = float(summary.penalty(network, batch=1024).detach())
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    for _ in range(60):
        optimizer.zero_grad()
        summary.penalty(network, metric="squared_error").backward()
        optimizer.step()
    assert float(summary.penalty(network, batch=1024).detach()) < 0.7 * before


def test_a_wrapped_module_is_recognised(case):
    summary, network = case
    wrapped = nn.Module()
    wrapped.module = move(network, 0.1)
    summary.penalty(wrapped).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_another_network_is_one_line(mlp_summary):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(FsdtoolError) as error:
        mlp_summary.penalty(other)
    assert "\n" not in str(error.value)
    assert "1.weight" in str(error.value)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(case):
    summary, network = case
    value = summary.penalty(move(network, 0.1).cuda(), batch=1024)
    value.backward()
    assert value.is_cuda
    assert float(value) == pytest.approx(float(summary.penalty(network.cpu(), batch=1024)), rel=0.3)
