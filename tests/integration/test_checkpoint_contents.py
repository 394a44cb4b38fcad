"""What checkpoints hold beside plain names and tensors, and networks that name tensors twice or save more."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fsdtool import cli
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.model.checkpoint import apply_checkpoint, read_checkpoint
from fsdtool.model.libraries import import_torchvision
from fsdtool.model.state_dict_names import match_state
from fsdtool.summary.reader import load
from tests.conftest import gaussian_classes


class Versioned(nn.Module):
    """Saves what is no tensor, which its outputs depend on."""

    def __init__(self, extra=None):
        super().__init__()
        self.fc, self.extra = nn.Linear(3, 2), extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state

    def forward(self, x):
        return self.fc(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu())


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self): super().__init__(3, 2)\n"
    )
    x, y = gaussian_classes(30, 3, 2)
    np.savez("d.npz", x=x, y=y)

    def shell(*arguments: str, command: str = "summarize") -> tuple[int, str]:
        given = ("--data", "d.npz", "-o", "out.h5") if command == "summarize" else ()
        capsys.readouterr()
        code = cli.main([command, *arguments, *given])
        return code, capsys.readouterr().err

    return shell


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(3, 2).state_dict()


def same(found, expected) -> bool:
    return all(torch.equal(found[name], expected[name]) for name in expected)


# --- what modules save besides tensors


@pytest.mark.parametrize("extra", [{"version": 2}, [1, "a"], 3, torch.arange(4), torch.ones(2, 2), None, {}])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_extra_states_reach_the_model_and_no_one_else(tmp_path, summarized, extra, prefix):
    saved = nn.Sequential(Versioned(extra), nn.ReLU(), nn.Linear(2, 2))
    torch.save({prefix + name: value for name, value in saved.state_dict().items()}, tmp_path / "a.pt")
    model = nn.Sequential(Versioned("else"), nn.ReLU(), nn.Linear(2, 2))
    apply_checkpoint(model, read_checkpoint(tmp_path / "a.pt"))
    assert same(dict(model.named_parameters()), dict(saved.named_parameters()))
    found = model[0].extra
    assert torch.equal(found, extra) if isinstance(extra, torch.Tensor) else found == extra
    summary = summarized(saved, *gaussian_classes(30, 3, 2))
    assert set(summary.identity.shapes) == {"0.fc.weight", "0.fc.bias", "2.weight", "2.bias"}
    other = read_checkpoint(tmp_path / "a.pt")
    assert distances(summary, [other], samples=64).distances == [0.0]


def test_versions_of_modules_survive_loading(tmp_path):
    """torchvision's mnasnet takes no state_dict without the version that it noted."""
    mnasnet = import_torchvision().models.mnasnet0_5
    torch.manual_seed(0)
    saved = mnasnet(num_classes=2)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "a.pt")
    save_file(saved.state_dict(), tmp_path / "a.safetensors")
    torch.save(nn.DataParallel(saved).state_dict(), tmp_path / "parallel.pt")
    for name in ("a.pt", "a.safetensors", "parallel.pt"):
        model = mnasnet(num_classes=2)
        apply_checkpoint(model, read_checkpoint(tmp_path / name))
        assert same(model.state_dict(), saved.state_dict())


# --- tied tensors


@pytest.mark.parametrize("names", [("a.weight", "b.weight"), ("a.weight",), ("b.weight",)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_one_name_of_a_tied_tensor_is_enough(tmp_path, summarized, names, prefix):
    model = Tied()
    summary = summarized(model, *gaussian_classes(30, 3, 2))
    with h5py.File(summary.path) as file:
        assert len([n for n in ("a.weight", "b.weight") if n in file["model/parameters"]]) == 1
    kept = {n: t for n, t in model.state_dict().items() if n in names or not n.endswith(("a.weight", "b.weight"))}
    torch.save({prefix + name: tensor for name, tensor in kept.items()}, tmp_path / "other.pt")
    other = read_checkpoint(tmp_path / "other.pt")
    assert distances(summary, [other], samples=64).distances == [0.0]
    again = Tied()
    with torch.no_grad():
        again.a.weight.zero_()
    apply_checkpoint(again, other)
    assert torch.equal(again.b.weight, model.a.weight)


def test_tied_tensors_that_differ_are_refused():
    model = Tied()
    untied = model.state_dict() | {"b.weight": torch.ones(3, 3)}
    shapes = {name: tuple(tensor.shape) for name, tensor in untied.items()}
    with pytest.raises(FsdtoolError, match=r"'b.weight' and 'a.weight' are one tensor in the network and differ"):
        match_state(untied, shapes, source="x", tied={"b.weight": "a.weight"})


# --- where the weights stand


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"student": state(1), "teacher": state()}, "teacher"),
        ({"epoch": 3, "state_dict": {"student": state(1), "teacher": state()}}, "teacher"),
        ({"models": {"a": state(1), "b": {"model": state()}}}, "models.b"),
        ([state(1), state()], "1"),
        ({"nets": [state(1), state()]}, "nets.1"),
        ({f"{who}.{n}": t for i, who in enumerate("ba") for n, t in state(1 - i).items()}, "a"),
        ({f"models.{i}.{n}": t for i in (0, 1) for n, t in state(1 - i).items()}, "models.1"),
    ],
)
def test_the_key_tells_which_weights(shell, content, key):
    torch.save(content, "a.pt")
    given = ("--model", "net.py:Net", "--checkpoint", "a.pt")
    code, said = shell(*given)
    assert code == 2
    assert "--checkpoint-key" in said
    code, said = shell(*given, "--checkpoint-key", key)
    assert code == 0, said
    assert same(load("out.h5").parameters, state())
    code, said = shell("out.h5", "--checkpoint", "a.pt", "--checkpoint-key", key, "--max-distance", "0", command="fsd")
    assert code == 0, said
    code, said = shell(*given, "--checkpoint-key", "nothing")
    assert code == 2
    assert "has nothing under 'nothing' (it has" in said


def test_the_segment_of_a_parallel_part_is_removed_within_names():
    expected = {"features.0.weight": (2, 2), "head.weight": (2, 2)}
    given = {"features.module.0.weight": torch.ones(2, 2), "head.weight": torch.zeros(2, 2)}
    found, notes = match_state({f"module.{n}": t for n, t in given.items()}, expected, source="x")
    assert found["features.0.weight"].sum() == 4
    assert notes
    kept = {"module.0.weight": (2, 2), "0.weight": (2, 2)}  # a network that tells names apart by it
    own = {"module.0.weight": torch.ones(2, 2), "0.weight": torch.zeros(2, 2)}
    assert match_state(own, kept, source="x")[0]["module.0.weight"].sum() == 4


def test_metrics_beside_a_network_are_left_out():
    beside = {
        "metric.confmat": torch.zeros(2, 2),
        "val_metrics.f1.tp": torch.zeros(2, 5),
        "criterion.weight": torch.ones(2),
        "perceptual_loss.net.weight": torch.ones(2, 2),
    }
    given = {f"model.{name}": tensor for name, tensor in state().items()} | beside
    shapes = {name: tuple(tensor.shape) for name, tensor in state().items()}
    _, notes = match_state(given, shapes, source="x")
    assert notes[-1].startswith("left out metric.confmat, val_metrics.f1.tp, criterion.weight, perceptual_loss")


# --- what is no checkpoint of a network


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers.0.lora_A.weight": torch.ones(2, 3)}, "is of an adapter such as LoRA .* merge the adapter"),
        ({"w.lora_down.weight": torch.ones(2, 3), "w.alpha": torch.ones(1)}, "merge the adapter"),
        ({"0.qweight": torch.ones(1), "0.scales": torch.ones(1)}, "is of a quantized network .0.qweight"),
        ({"weight": torch.ones(2, 3), "SCB": torch.ones(2)}, "is of a quantized network .SCB"),
        ({"weight": torch.ones(2, 3), "weight.absmax": torch.ones(2)}, "is of a quantized network .weight.absmax"),
        ({"weight": [[1.0]], "bias": [0.0]}, "holds lists of numbers .*torch.tensor"),
        ({"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []}, "is the state of an optimizer"),
    ],
)
def test_what_a_file_is_instead_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FsdtoolError, match=message):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_of_the_training_script_is_found_by_the_model_file(shell, monkeypatch, wrapped):
    script = type("Net", (nn.Linear,), {"__module__": "__main__", "__qualname__": "Net"})
    monkeypatch.setattr(sys.modules["__main__"], "Net", script, raising=False)
    network = script(3, 2)
    torch.save({"epoch": 2, "model": network} if wrapped else network, "a.pt")
    monkeypatch.delattr(sys.modules["__main__"], "Net")
    given = ("--model", "net.py:Net", "--checkpoint", "a.pt")
    code, said = shell(*given)
    assert code == 2
    assert "(__main__.Net); if you trust its source give --allow-pickle with --model path/file.py:Net" in said
    code, said = shell(*given, "--allow-pickle")
    assert code == 0, said
    assert same(load("out.h5").parameters, network.state_dict())
    assert not hasattr(sys.modules["__main__"], "Net")


def test_with_the_flag_too_a_class_that_is_gone_does_not_hide_plain_weights(tmp_path, monkeypatch):
    gone = type(sys)("gone_for_test")
    gone.History = type("History", (), {"__module__": "gone_for_test"})
    monkeypatch.setitem(sys.modules, "gone_for_test", gone)
    torch.save({"state_dict": state(), "log": gone.History()}, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "gone_for_test")
    for allow in (False, True):
        assert same(read_checkpoint(tmp_path / "a.pt", allow_pickle=allow).state, state())


# --- numbers beyond float32


@pytest.mark.parametrize("scale", [1e18, 1e25, 1e37])
def test_numbers_too_large_for_the_linear_algebra_are_one_line(shell, scale):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).state_dict()
    torch.save(network | {"0.weight": network["0.weight"] * scale}, "a.pt")
    code, said = shell("--model", "mlp:relu", "--checkpoint", "a.pt", "--quiet")
    assert code == 2
    assert said.count("\n") == 1
    assert "too large" in said or "not finite" in said
