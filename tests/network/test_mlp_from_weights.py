"""A fully connected network read off its weights is the one that was trained, or it is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fsdtool.errors import FsdtoolError
from fsdtool.network.mlp_from_weights import infer_mlp
from tests.conftest import perceptron

X = torch.linspace(-2, 2, 15).reshape(5, 3)


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode, with running statistics that are not the identity."""
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def inferred(state, spec="mlp:relu", **arguments) -> nn.Module:
    model = infer_mlp(state, spec, arguments, source="a.pt")
    plain = {name.removeprefix("module._orig_mod."): tensor for name, tensor in state.items()}
    assert model.state_dict().keys() == plain.keys()
    model.load_state_dict(plain)
    assert not model.training
    return model


def refused(state, spec="mlp:relu") -> str:
    with pytest.raises(FsdtoolError) as caught:
        infer_mlp(state, spec, source="a.pt")
    assert str(caught.value).isprintable()
    return str(caught.value)


def numbered(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.middle = nn.Linear(5, 7, bias=False)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        return self.head(torch.relu(self.middle(torch.relu(self.first(x)))))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4)] + [nn.Linear(4, 4) for _ in range(11)] + [nn.Linear(4, 2)])

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


NETWORKS = {
    "one layer": lambda: nn.Linear(3, 2),
    "three layers": lambda: perceptron(3, 8, 5, 2),
    "with dropout and flatten": lambda: numbered(
        nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2)
    ),
    "norm before the activation": lambda: numbered(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
    "norm after the activation": lambda: numbered(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "norm of the inputs": lambda: numbered(
        nn.BatchNorm1d(3, affine=False), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
    ),
    "nested": lambda: numbered(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
    "named layers": Named,
    "a list of thirteen": Listed,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_it_computes_what_the_network_does(tmp_path, name, prefix):
    model = filled(NETWORKS[name]())
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    expected = model(X)
    assert torch.allclose(inferred(state)(X), expected)
    save_file(state, tmp_path / "a.safetensors")  # names in alphabetical order: 0, 10, 11, 2
    assert torch.allclose(infer_and_load(load_file(tmp_path / "a.safetensors"), prefix)(X), expected)


def infer_and_load(state, prefix: str) -> nn.Module:
    model = infer_mlp(state, "mlp:relu", source="a.safetensors")
    model.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in state.items()})
    return model


def test_the_activation_takes_arguments():
    model = filled(perceptron(3, 8, 2, activation=lambda: nn.LeakyReLU(0.3)))
    found = inferred(model.state_dict(), "mlp:leaky_relu", negative_slope="0.3")
    assert torch.allclose(found(X), model(X))
    with pytest.raises(FsdtoolError, match="takes no argument 'slope'"):
        infer_mlp(model.state_dict(), "mlp:relu", {"slope": "1"}, source="a.pt")


def test_without_a_spec_only_one_layer_is_certain():
    model = filled(nn.Linear(3, 2))
    assert torch.equal(inferred(model.state_dict(), None)(X), model(X))
    line = refused(perceptron(3, 8, 5, 2).state_dict(), None)
    assert "which activation stands in the fully connected network 3-8-5-2 of 'a.pt'" in line
    assert "give --model mlp:relu" in line


UNCLEAR = {
    "a convolution": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), "'0.weight' of shape (2, 1, 3, 3)"),
    "a layer norm": (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "'1.weight' of shape (4,)"),
    "widths that do not follow": (
        nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}),
        "'b' takes 3 inputs and the layer before it gives 4",
    ),
    "no room for an activation": (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "without room for an activation"),
    "a norm with room on both sides": (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)),
        "whether the activation comes before or after the batch norm '2'",
    ),
    "a norm by name": (
        nn.ModuleDict({"fc": nn.Linear(3, 4), "bn": nn.BatchNorm1d(4), "head": nn.Linear(4, 2)}),
        "whether the activation comes before or after the batch norm 'bn'",
    ),
    "two norms": (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        "two batch norms follow '0'",
    ),
    "a norm of the outputs": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "ends with batch norm, '1'"),
    "something after the first norm": (
        nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)),
        "what follows the batch norm '0'",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_could_be_another_network_is_refused(name):
    model, reason = UNCLEAR[name]
    line = refused(model.state_dict())
    assert "--model mlp:relu does not fit 'a.pt' (" in line
    assert reason in line
    assert "give --model path/file.py:factory" in line


def test_layers_whose_order_is_lost_are_refused_unless_one_order_fits():
    square = {f"{name}.weight": torch.eye(3) for name in ("first", "second", "third")}
    square = dict(sorted(square.items()))
    assert "their widths fit in more than one order" in refused(square)
    apart = {"a.weight": torch.ones(2, 3), "b.weight": torch.ones(4, 5)}
    assert "their widths fit in no order" in refused(apart)


def test_nothing_to_infer_from():
    assert "it has no weights" in refused({"num_batches_tracked": torch.tensor(1)})
