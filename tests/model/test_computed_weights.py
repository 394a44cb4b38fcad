"""Weights that a network computes from others: the summary has what comes out, of the checkpoint and of others."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fitting.run import summarize
from fsdtool.fsd.drift import distances
from fsdtool.model.checkpoint import apply_checkpoint, read_checkpoint
from fsdtool.model.computed_weights import computed_weights, make_plain, plain_state
from fsdtool.summary.reader import load
from tests.conftest import gaussian_classes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


def custom(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


KINDS = {
    "weight norm": weight_norm,
    "weight norm of all": lambda layer: weight_norm(layer, dim=None),
    "weight norm by column": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "new weight norm": parametrizations.weight_norm,
    "spectral norm": spectral_norm,
    "new spectral norm": parametrizations.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruned twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.2),
}
OTHERS = {"orthogonal": parametrizations.orthogonal, "custom": custom}


def network(kind, layers=(0, 2), seed: int = 0) -> nn.Sequential:
    """4-6-3 with computed weights, moved from where its parametrization began."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    for i in layers:
        model[i] = kind(model[i])
    model.train()(torch.randn(8, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_plain_weight_gives_the_same_outputs(kind):
    model, x = network((KINDS | OTHERS)[kind]), torch.randn(5, 4)
    expected = model(x)
    assert set(make_plain(model)) == {"0.weight", "2.weight"}
    assert not computed_weights(model)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_values_alone_give_the_weights_of_the_code(kind):
    model = network(KINDS[kind])
    state, notes = plain_state(model.state_dict(), source="a.pt")
    make_plain(model)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert notes == ["computed 0.weight, 2.weight from the parts that are stored"]


@pytest.mark.parametrize("kind", OTHERS)
def test_what_names_do_not_tell_is_refused(kind):
    with pytest.raises(FsdtoolError, match=r"weights 0.weight, 2.weight of 'a.pt'.*give `model` with the code"):
        plain_state(network(OTHERS[kind]).state_dict(), source="a.pt")


def test_a_recorded_parametrization_is_not_taken_for_weight_norm():
    state = network(parametrizations.weight_norm, (0,)).state_dict()
    assert "0.weight" in plain_state(state, {"0.weight": "weight norm"}, source="a.pt")[0]
    with pytest.raises(FsdtoolError, match="computed by a parametrization"):
        plain_state(state, {"0.weight": "Scaled"}, source="a.pt")


def test_a_frozen_source_gives_a_frozen_weight():
    model = network(weight_norm)
    for name, parameter in model[0].named_parameters():
        parameter.requires_grad_(name == "bias")
    make_plain(model)
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad


def test_recurrent_weights_stay_in_use():
    torch.manual_seed(0)
    layer, x = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0").eval(), torch.randn(2, 3, 3)
    expected = layer(x)[0]
    make_plain(layer)
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("stored", ["computed", "plain"])
@pytest.mark.parametrize("factory", ["computed", "plain"])
def test_model_and_checkpoint_may_be_plain_or_not(tmp_path, stored, factory):
    trained, x = network(weight_norm), torch.randn(5, 4)
    expected = trained(x)
    if stored == "plain":
        make_plain(trained)
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    model = network(weight_norm, seed=1)
    if factory == "plain":
        make_plain(model)
    apply_checkpoint(model, read_checkpoint(tmp_path / "a.pt"))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_distances_and_earlier_checkpoints_of_computed_weights(tmp_path, arrays, caplog, kind):
    caplog.set_level(logging.INFO, "fsdtool")
    make, (x, y) = (KINDS | OTHERS)[kind], gaussian_classes(60, 4, 3)
    first, last, other = (network(make, seed=seed) for seed in (1, 2, 3))
    paths = [tmp_path / f"{name}.pt" for name in ("first", "last", "other")]
    for model, path in zip((first, last, other), paths, strict=True):
        torch.save(model.state_dict(), path)
    checkpoints = [read_checkpoint(path) for path in paths]
    data = load_dataset(str(arrays(x, y)))
    given = {"data": data, "earlier": checkpoints[:1], "output": tmp_path / "s.h5"}
    summarize(model=network(make), checkpoint=checkpoints[1], **given)
    assert "computed weights are used as they come out" in caplog.text
    summary = load(tmp_path / "s.h5")
    assert set(summary.identity.shapes) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    build = {} if kind in KINDS else {"model": lambda checkpoint: network(make)}
    found = distances(summary, checkpoints[1:], data=data, metric="squared_error", **build).found
    with torch.no_grad():
        exact = 0.5 * (last(torch.from_numpy(x)) - other(torch.from_numpy(x))).square().sum(1).mean()
    assert found[0].exact == pytest.approx(0, abs=1e-8)
    assert found[1].exact == pytest.approx(float(exact), rel=1e-4)
    # The same networks with plain weights give the same evidence.
    for model, path in zip((first, last), paths, strict=False):
        make_plain(model)
        torch.save(model.state_dict(), path)
    plain = [read_checkpoint(path) for path in paths[:2]]
    again = {"model": last, "checkpoint": plain[1], "earlier": plain[:1], "output": tmp_path / "plain.h5"}
    summarize(data=data, **again)
    expected = load(tmp_path / "plain.h5").records
    assert summary.records.layers("evidence") == expected.layers("evidence")
    np.testing.assert_allclose(summary.records.read("evidence"), expected.read("evidence"), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("kind", ["weight norm", "new weight norm", "pruned", "custom"])
def test_a_penalty_has_gradients_to_the_sources(tmp_path, summarized, kind):
    make = (KINDS | OTHERS)[kind]
    summary = summarized(network(make), *gaussian_classes(60, 4, 3))
    live = network(make, seed=1)
    summary.penalty(live).backward()
    trained = [p for p in live.parameters() if p.requires_grad]
    assert len(trained) >= 4
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained[:1])
    plain = network(make, seed=1)
    make_plain(plain)
    again = load(summary.path)
    assert float(again.penalty(plain)) == pytest.approx(float(load(summary.path).penalty(live)), rel=1e-4)
