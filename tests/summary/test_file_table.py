"""The table of the summary file is what a file holds, and what is read of it."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.influence.self_scores import recorded_self_influence
from fsdtool.mislabel.class_model_file import read_class_models
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.mislabel.regression.target_errors import find_target_errors
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.summary import hdf5
from fsdtool.summary.reader import load
from fsdtool.util.fields import Fields
from tests.conftest import SAMPLE, gaussian_classes, perceptron

Attribute = tuple[str, str]  # of which object, and its name
TEXT = (SAMPLE.parent / "fsdtool" / "docs" / "summary-file.md").read_text(encoding="utf-8")


def documented() -> tuple[set[str], set[Attribute]]:
    """Datasets and attributes of the table."""
    paths, attributes = set(), set()
    for line in TEXT.splitlines():
        if not line.startswith("| `/"):
            continue
        where, content = line.strip("| ").split(" | ", 1)
        first, *others = re.findall(r"`([^`]+)`", where)
        of = [first, *(f"{first.rsplit('/', 1)[0]}/{name}" for name in others)]
        if where.endswith("attributes"):
            named = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", content))
        else:
            paths |= set(of)
            lists = re.findall(r"attributes? ((?:`\w+`(?:, )?(?:\([^)]*\))?)+)", content)
            named = [name for names in lists for name in re.findall(r"`(\w+)`", names)]
        attributes |= {(path, name) for path in of for name in named}
    return paths, attributes


def fits(path: str, entry: str) -> bool:
    """Whether a path of a file is one of an entry of the table: words in capitals stand for names."""
    return re.fullmatch(re.sub("[A-Z]{4,}", ".+", entry), path) is not None


def compare(found: set[str], table: set[str]) -> None:
    assert {path for path in found if not any(fits(path, entry) for entry in table)} == set()
    assert {entry for entry in table if not any(fits(path, entry) for path in found)} == set()


@pytest.fixture(scope="module")
def files(tmp_path_factory, sample_paths) -> list[Path]:
    """Summaries that together hold everything that a summary can."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    x, _ = gaussian_classes(60, 4, 3)
    images = np.random.default_rng(0).random((60, 3, 10, 10), dtype=np.float32)
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    cases = {
        "large": (convolutional, "classification", {"x": images, "y": np.arange(60) % 3, "class_names": [*"abc"]}),
        "tight": (perceptron(300, 8, 3), "classification", {"x": images.reshape(60, 300), "y": np.arange(60) % 3}),
        "values": (perceptron(4, 8, 2), "regression", {"x": x, "y": np.stack([x.sum(1), x[:, 0]], 1)}),
    }
    for name, (network, task, arrays) in cases.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
        np.savez(folder / f"{name}.npz", **arrays)
        summarize(
            model=network.eval(),
            checkpoint=read_checkpoint(folder / f"{name}.pt"),
            data=load_dataset(str(folder / f"{name}.npz"), task=task),
            output=folder / f"{name}.h5",
            **({"statistics_budget": 50_000} if name == "tight" else {}),
        )
    return [sample_paths["mlp"], *(folder / f"{name}.h5" for name in cases)]


def test_the_table_is_what_a_file_holds(files):
    held: set[str] = set()
    attributes: set[Attribute] = set()
    for path in files:
        with h5py.File(path) as file:
            items: dict[str, h5py.HLObject] = {"/": file}
            file.visititems(lambda name, item, items=items: items.update({f"/{name}": item}))
            held |= {name for name, item in items.items() if isinstance(item, h5py.Dataset)}
            attributes |= {(name, key) for name, item in items.items() for key in item.attrs}
    paths, told = documented()
    compare(held, paths)
    of_all = {"description", "units"}
    compare({f"{name} {key}" for name, key in attributes if key not in of_all}, {f"{name} {key}" for name, key in told})


def test_the_table_is_what_is_read(files, monkeypatch):
    read: set[str] = set()
    attributes: set[Attribute] = set()
    identity: set[str] = set()
    dataset, attribute, field = hdf5.dataset, hdf5.Attributes.get, Fields.get

    def see_dataset(*arguments, **options):
        found = dataset(*arguments, **options)
        read.add(found.name)
        return found

    def see_attribute(self, key):
        attributes.add((self._holder.name, key))
        return attribute(self, key)

    def see_field(self, key):
        identity.add(key)
        return field(self, key)

    monkeypatch.setattr(hdf5, "dataset", see_dataset)
    monkeypatch.setattr(hdf5.Attributes, "get", see_attribute)
    monkeypatch.setattr(Fields, "get", see_field)
    for path in files:
        with load(path) as summary:
            recorded_self_influence(summary)
            if summary.task.has_classes:
                find_mislabeled(summary)
                read_class_models(summary)
            else:
                find_target_errors(summary)
    paths, told = documented()
    compare(read, paths)
    unknown = {(name, key) for name, key in attributes if not any(key == k and fits(name, entry) for entry, k in told)}
    assert unknown == set()
    of_groups = {key for entry, key in told if entry in ("/", "/model", "/data")}
    assert of_groups - identity == {"format", "schema"}
    assert {key for key in identity - of_groups if f"`{key}`" not in TEXT} == set()  # in another dataset of JSON


def test_the_schema_in_the_document_is_that_of_the_file(files):
    with h5py.File(files[0]) as file:
        assert f"HDF5, schema {file.attrs['schema']}, " in TEXT
