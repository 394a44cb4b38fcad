"""The sample data is what its README says: counts, wrong labels, what the networks memorised, size."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[2] / "sample_data"
NETWORKS = ("mlp", "convnet")


def load_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_network(name: str) -> torch.nn.Module:
    """A factory's network with its stored weights, every key matched."""
    if name == "mlp":
        weights = torch.load(FOLDER / "mlp.pt", weights_only=True)
    else:
        weights = load_file(FOLDER / "convnet.safetensors")
    network = getattr(load_module("model"), name)()
    network.load_state_dict(weights, strict=True)
    return network.eval()


def load_part(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as part:
        return part["x"], part["y"]


def load_truth() -> dict[str, np.ndarray]:
    with open(FOLDER / "truth.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {column: np.array([int(row[column]) for row in rows]) for column in rows[0]}


@torch.no_grad()
def predict(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(images)[:, None].float() / 255).argmax(1).numpy()


@pytest.mark.parametrize(("part", "count"), [("train", 1437), ("test", 360)])
def test_images_and_labels_have_the_documented_shapes(part, count):
    images, labels = load_part(part)
    assert (images.shape, images.dtype) == ((count, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.int64)
    assert (images.min(), images.max()) == (0, 255)
    assert set(labels) == set(range(10))


def test_truth_lists_every_training_row_in_order():
    truth = load_truth()
    assert list(truth) == ["id", "given_label", "true_label"]
    np.testing.assert_array_equal(truth["id"], np.arange(1437))
    np.testing.assert_array_equal(truth["given_label"], load_part("train")[1])


def test_eight_percent_of_the_labels_are_flipped_over_all_classes():
    truth = load_truth()
    flipped = truth["given_label"] != truth["true_label"]
    assert flipped.sum() == round(0.08 * 1437) == 115
    shift = (truth["given_label"] - truth["true_label"])[flipped] % 10
    assert set(shift) == set(range(1, 10))
    assert set(truth["true_label"][flipped]) == set(range(10))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_accurate_on_clean_digits_yet_not_perfect(name):
    images, labels = load_part("test")
    correct = predict(load_network(name), images) == labels
    assert correct.mean() >= 0.9
    assert not correct.all()  # the influence examples explain misclassified test digits


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_has_memorised_most_wrong_labels_but_not_all(name):
    truth = load_truth()
    flipped = truth["given_label"] != truth["true_label"]
    fitted = predict(load_network(name), load_part("train")[0]) == truth["given_label"]
    assert 0.75 <= fitted[flipped].mean() <= 0.95
    assert fitted[~flipped].mean() >= 0.98


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_traces(name):
    network = load_network(name)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), network(x))


def test_the_folder_stays_under_two_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 2_000_000


def test_the_script_makes_the_same_digits_and_flips(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is the source of the digits")
    monkeypatch.setitem(sys.modules, "model", load_module("model"))  # make.py imports its neighbour by name
    make = load_module("make")
    make.write_digits(make.make_digits(), tmp_path)
    for name in ("train.npz", "test.npz"):
        with np.load(FOLDER / name) as kept, np.load(tmp_path / name) as made:
            assert sorted(kept) == sorted(made) == ["x", "y"]
            for key in kept:
                np.testing.assert_array_equal(made[key], kept[key])
    assert (tmp_path / "truth.csv").read_bytes() == (FOLDER / "truth.csv").read_bytes()
