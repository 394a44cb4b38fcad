"""What several tests share: the sample data's summaries, and summaries of small networks on arrays."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.model.factory import load_model
from fsdtool.summary.reader import Summary, load

SAMPLE = Path(__file__).parents[1] / "sample_data"
CHECKPOINTS = {"mlp": "mlp.pt", "convnet": "convnet.safetensors"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small networks are faster on one thread, and sums have one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of the sample data."""
    return SAMPLE


@pytest.fixture(scope="session")
def sample_paths(tmp_path_factory) -> dict[str, Path]:
    """The summaries of the two networks of the sample data, by network."""
    folder = tmp_path_factory.mktemp("sample")
    for name, checkpoint in CHECKPOINTS.items():
        summarize(
            model=load_model(f"{SAMPLE}/model.py:{name}"),
            checkpoint=read_checkpoint(SAMPLE / checkpoint),
            data=load_dataset(str(SAMPLE / "train.npz")),
            output=folder / f"{name}.h5",
            model_spec=f"model.py:{name}",
        )
    return {name: folder / f"{name}.h5" for name in CHECKPOINTS}


@pytest.fixture(scope="session")
def mlp_summary(sample_paths) -> Summary:
    return load(sample_paths["mlp"])


@pytest.fixture(scope="session")
def convnet_summary(sample_paths) -> Summary:
    return load(sample_paths["convnet"])


@pytest.fixture(scope="session")
def truth() -> dict[str, np.ndarray]:
    """Columns of the sample data's truth: id, given_label, true_label."""
    with open(SAMPLE / "truth.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {column: np.array([int(row[column]) for row in rows]) for column in rows[0]}


@pytest.fixture
def arrays(tmp_path) -> Callable[..., Path]:
    """Writes arrays: `arrays(x, y)` gives the path of an .npz file with them."""

    def write(x, y, name: str = "data.npz", **more) -> Path:
        np.savez(tmp_path / name, x=np.asarray(x), y=np.asarray(y), **more)
        return tmp_path / name

    return write


@pytest.fixture
def summarized(tmp_path, arrays) -> Callable[..., Summary]:
    """Summarizes a network on arrays: `summarized(network, x, y, **options)` gives the opened summary."""

    def build(network: nn.Module, x, y, *, task="classification", name: str = "summary.h5", **options) -> Summary:
        checkpoint, data = tmp_path / f"{name}.pt", arrays(x, y, f"{name}.npz")
        torch.save(network.state_dict(), checkpoint)
        summarize(
            model=network.eval(),
            checkpoint=read_checkpoint(checkpoint),
            data=load_dataset(str(data), task=task),
            output=tmp_path / name,
            **options,
        )
        return load(tmp_path / name)

    return build


@pytest.fixture
def edited(tmp_path) -> Callable[..., Path]:
    """A changed copy of a summary: `edited(path, change)` calls change(file) on the copy."""

    def edit(path: Path, change: Callable[[h5py.File], None], name: str = "edited.h5") -> Path:
        shutil.copy(path, tmp_path / name)
        with h5py.File(tmp_path / name, "r+") as file:
            change(file)
        return tmp_path / name

    return edit


def identity(change: Callable[[dict], object]) -> Callable[[h5py.File], None]:
    """For `edited`: change(parts) on what the file says of itself ("/"), the "model" and the "data", or a new one."""

    def edit(file: h5py.File) -> None:
        content = json.loads(bytes(file["identity"][:]))
        changed = change(content)
        content = changed if isinstance(changed, list) else content
        attributes = dict(file["identity"].attrs)
        del file["identity"]
        file["identity"] = np.frombuffer(json.dumps(content).encode(), np.uint8)
        file["identity"].attrs.update(attributes)

    return edit


def perceptron(*widths: int, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A fully connected network with these widths from input to output."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


def gaussian_classes(examples: int, dimensions: int, classes: int, seed: int = 0):
    """Inputs (examples, dimensions) float32 around a mean per class, and their labels (examples,) int64."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, examples)
    centres = 1.5 * generator.normal(size=(classes, dimensions))
    return (centres[y] + generator.normal(size=(examples, dimensions))).astype(np.float32), y


def unseen(x: torch.Tensor) -> torch.Tensor:
    """x, by a way that no tracer sees, so that a network is taken by its last layer."""
    return x if x.requires_grad else torch.from_numpy(x.numpy())
