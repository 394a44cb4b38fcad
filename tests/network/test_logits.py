"""What networks return: tuples, dicts, objects, probabilities and single columns, as one row of logits each."""

from __future__ import annotations

import logging
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.errors import FsdtoolError
from fsdtool.network.logits import answer_with
from fsdtool.network.traced import FULL, LAST_LAYER
from tests.conftest import gaussian_classes


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


Named = namedtuple("Named", "hidden logits")


class Net(nn.Module):
    """5-6-3; `end` makes its output of z and the hidden h.  An `opaque` one cannot be traced in full."""

    def __init__(self, end, outputs: int = 3, opaque: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, outputs)
        self.opaque = opaque
        self.end = end

    def forward(self, x):
        h = self.first(x).relu()
        h = torch.from_numpy(h.detach().numpy()) if self.opaque else h
        return self.end(self.last(h), h)

    def logits(self, x):
        return self.last(self.first(torch.from_numpy(x)).relu()).detach()


STRUCTURES = {
    "tuple": lambda z, h: (z, h),
    "list": lambda z, h: [z, h],
    "dict": lambda z, h: {"hidden": h, "logits": z},
    "ordered dict": lambda z, h: OrderedDict(loss=None, logits=z, hidden=h),
    "nested": lambda z, h: {"aux": {"hidden": h}, "main": {"logits": z}},
    "dataclass": lambda z, h: Output(hidden=h, logits=z),
    "named tuple": lambda z, h: Named(h, z),
}
PROBABILITIES = {
    "softmax": lambda z, h: F.softmax(z, dim=1),
    "softmax method": lambda z, h: z.softmax(-1),
    "softmax in float64's place": lambda z, h: F.dropout(F.softmax(z, 1), training=False),
    "log_softmax": lambda z, h: F.log_softmax(z, dim=-1),
    "log of softmax": lambda z, h: torch.log(torch.softmax(z, 1)),
    "sigmoid": lambda z, h: torch.sigmoid(z),
    "in a tuple": lambda z, h: (z.softmax(1), h),
}
BY_HAND = {
    "softmax": lambda z, h: z.exp() / z.exp().sum(1, keepdim=True),
    "sigmoid": lambda z, h: 1 / (1 + (-z).exp()),
    "sigmoid by tanh": lambda z, h: (torch.tanh(z / 2) + 1) / 2,
}
X, Y = gaussian_classes(60, 5, 3)


def loss(z: torch.Tensor) -> np.ndarray:
    return F.cross_entropy(z, torch.from_numpy(Y), reduction="none").numpy()


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_logits_of_a_structure_are_found(summarized, caplog, structure, opaque):
    caplog.set_level(logging.INFO, "fsdtool")
    net = Net(STRUCTURES[structure], opaque=opaque)
    summary = summarized(net, X, Y)
    assert summary.identity.mode == (LAST_LAYER if opaque else FULL)
    np.testing.assert_allclose(summary.records.read("loss"), loss(net.logits(X)), rtol=1e-4, atol=1e-5)
    assert "is used (--output-name)" in caplog.text


@pytest.mark.parametrize("measure", [lambda h: h.mean(), lambda h: h.mean().reshape(1, 1)])
def test_a_loss_before_the_outputs_is_told_from_them(measure):
    answer = answer_with(net := Net(lambda z, h: {"loss": measure(h), "scores": z}))
    with pytest.raises(FsdtoolError, match=r"'loss', the first of loss, scores, has shape .*give --output-name scores"):
        net(torch.zeros(2, 5))
    answer.name = "scores"
    assert net(torch.zeros(2, 5)).shape == (2, 3)


def test_another_output_is_chosen_by_name(summarized):
    net = Net(lambda z, h: {"a": {"z": 2 * z}, "logits": z})
    summary = summarized(net, X, Y, output_name="a.z")
    np.testing.assert_allclose(summary.records.read("loss"), loss(2 * net.logits(X)), rtol=1e-4, atol=1e-5)
    assert summary.identity.output == "a.z"
    with pytest.raises(FsdtoolError, match=r"no output 'logit' .perhaps 'logits'.; it has a.z, logits"):
        summarized(Net(net.end), X, Y, output_name="logit")
    with pytest.raises(FsdtoolError, match="one tensor and no output 'logits'; leave --output-name out"):
        summarized(Net(lambda z, h: z), X, Y, output_name="logits")
    with pytest.raises(FsdtoolError, match="returns a dict without a tensor; let it return the logits"):
        summarized(Net(lambda z, h: {"loss": None}), X, Y)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("end", PROBABILITIES)
def test_probabilities_are_taken_by_what_goes_into_them(summarized, caplog, end, opaque):
    caplog.set_level(logging.INFO, "fsdtool")
    net = Net(PROBABILITIES[end], opaque=opaque)
    summary = summarized(net, X, Y)
    assert summary.identity.mode == (LAST_LAYER if opaque else FULL)
    np.testing.assert_allclose(summary.records.read("loss"), loss(net.logits(X)), rtol=1e-4, atol=1e-5)
    assert "the model ends in" in caplog.text


@pytest.mark.parametrize("module", [nn.Softmax(1), nn.Softmax(-1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_modules_that_end_a_network(summarized, module):
    net = Net(lambda z, h: z)
    whole = nn.Sequential(nn.Sequential(net.first, nn.ReLU(), net.last, nn.Sequential(module)))
    summary = summarized(whole, X, Y)
    assert summary.identity.mode == FULL
    np.testing.assert_allclose(summary.records.read("loss"), loss(net.logits(X)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", BY_HAND)
def test_probabilities_by_hand_are_told_by_their_values(summarized, end):
    net = Net(BY_HAND[end])
    summary = summarized(net, X, Y)
    assert summary.identity.mode == LAST_LAYER
    np.testing.assert_allclose(summary.records.read("loss"), loss(net.logits(X)), rtol=1e-4, atol=1e-5)


def test_values_between_0_and_1_whose_origin_is_not_found_are_doubted(summarized, caplog):
    def complementary(z, h):
        p = (torch.tanh(torch.tanh(z)) + 1) / 2
        return torch.cat([p, 1 - p], 1)

    with pytest.raises(FsdtoolError, match="add up to 1: they are probabilities and no logits; let it return what"):
        summarized(Net(complementary, outputs=1), X, Y % 2)
    summarized(Net(lambda z, h: (torch.tanh(torch.tanh(z)) + 1) / 2), X, Y)
    assert "if they are probabilities, let it return what goes into its sigmoid" in caplog.text


def test_a_saturated_softmax_stays_finite(summarized):
    net = Net(PROBABILITIES["softmax"])
    with torch.no_grad():
        net.last.weight *= 1e4
    summary = summarized(net, X, Y)
    assert (net(torch.from_numpy(X)) == 0).any()
    np.testing.assert_allclose(summary.records.read("loss"), loss(net.logits(X)), rtol=1e-4)


def test_a_softmax_that_is_computed_with_is_no_end(summarized):
    net = Net(lambda z, h: z.softmax(1) * 2)
    summary = summarized(net, X, Y)
    assert summary.identity.mode == FULL
    np.testing.assert_allclose(summary.records.read("loss"), loss(2 * net.logits(X).softmax(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("end", [lambda z, h: z.squeeze(-1), lambda z, h: z[:, 0], lambda z, h: z.flatten()])
def test_one_value_for_each_example_is_a_column(summarized, end, opaque):
    net, targets = Net(end, outputs=1, opaque=opaque), Y.astype(np.float32)
    summary = summarized(net, X, targets, task="regression")
    expected = 0.5 * (net.logits(X)[:, 0].numpy() - targets) ** 2
    np.testing.assert_allclose(summary.records.read("loss"), expected, rtol=1e-4, atol=1e-6)


def test_a_regression_keeps_its_sigmoid(summarized):
    net, targets = Net(lambda z, h: torch.sigmoid(z), outputs=1), (Y == 0).astype(np.float32)
    summary = summarized(net, X, targets, task="regression")
    expected = 0.5 * (torch.sigmoid(net.logits(X))[:, 0].numpy() - targets) ** 2
    np.testing.assert_allclose(summary.records.read("loss"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("opaque", [False, True])
def test_two_logits_of_one_are_those_of_binary_cross_entropy(summarized, opaque):
    net = Net(lambda z, h: torch.cat([torch.zeros_like(z), z], 1), outputs=1, opaque=opaque)
    summary = summarized(net, X, Y % 2)
    z, y = net.logits(X)[:, 0], torch.from_numpy(Y % 2).float()
    expected = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    np.testing.assert_allclose(summary.records.read("loss"), expected.numpy(), rtol=1e-4, atol=1e-6)
