"""A kind of data is a module of fsdtool.data.sources, and help, errors and the table of accepted data come from it."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import fsdtool
from fsdtool.data import registry
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import DataError

DOCUMENT = Path(fsdtool.__file__).parent / "docs" / "data.md"
PAIRS = """
from fsdtool.data.registry import Source

def open_pairs(spec, request):
    import numpy as np
    from fsdtool.data.readers import ArrayReader, Found
    numbers, ids = np.loadtxt(spec, dtype=np.float32), np.arange(2)
    return Found(ArrayReader(numbers[:, :-1], request.task.targets(numbers[:, -1], ids)), ids, None, "rows of numbers")

SOURCE = Source("file.pairs", 35, open_pairs, (("`train.pairs`", "rows of numbers"),), suffixes=(".pairs",))
"""


def table() -> list[tuple[str, str]]:
    """The rows of the document's first table, below its head."""
    lines = [line for line in DOCUMENT.read_text().partition("## ")[0].splitlines() if line.startswith("|")]
    return [tuple(re.fullmatch(r"\| (.*?) \| (.*) \|", line).groups()) for line in lines[2:]]


def test_the_table_of_accepted_data_has_the_rows_of_the_sources():
    assert table() == [row for source in registry.sources() for row in source.rows]


def test_help_shows_every_source_once():
    assert registry.data_help() == (
        "file.npz, x.npy,y.npy, file.h5, file.csv, file.parquet, folder/, torchvision:NAME or path/file.py:factory."
    )
    assert all(source.spec in registry.data_help() for source in registry.sources())
    assert all(source.rows for source in registry.sources())


def test_sources_have_places_of_their_own():
    places = [source.place for source in registry.sources()]
    assert len(set(places)) == len(places) == len({source.rows for source in registry.sources()})


@pytest.mark.parametrize(
    ("spec", "spec_of_source"),
    [
        ("torchvision:MNIST?root=x", "torchvision:NAME"),
        ("folder/data.py:Pairs?size=3", "path/file.py:factory"),
        ("package.module:pairs", "path/file.py:factory"),
        ("x.npy,y.npy", "x.npy,y.npy"),
        ("no.npz", None),
        ("x.npy", None),
    ],
)
def test_what_names_no_file_is_told_by_its_form(spec, spec_of_source):
    found = registry.find_source(spec)
    assert (None if found is None else found.spec) == spec_of_source


def test_folders_are_told_by_what_they_hold(tmp_path):
    assert registry.find_source(str(tmp_path)).rows[0][0] == "`folder/`"
    (tmp_path / "x.npy").touch()
    assert registry.find_source(str(tmp_path)).spec == "x.npy,y.npy"
    (tmp_path / "dataset_info.json").touch()
    assert registry.find_source(str(tmp_path)).rows[0][0] == "`folder/` of `save_to_disk`"


def test_a_kind_of_data_is_a_module_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "pairs.py").write_text(PAIRS)
    np.savetxt(tmp_path / "data.pairs", [[0.5, 1.5, 0], [2.5, 3.5, 1]])
    with pytest.raises(DataError, match=r"unknown kind; give a \.npz, \.h5, \.hdf5, \.csv"):
        load_dataset(str(tmp_path / "data.pairs"))
    package = import_module(registry.PACKAGE)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{registry.PACKAGE}.pairs", raising=False)
    data = load_dataset(str(tmp_path / "data.pairs"))
    (batch,) = data.batches(2)
    np.testing.assert_array_equal(batch.x, [[0.5, 1.5], [2.5, 3.5]])
    assert batch.y.tolist() == [0, 1]
    assert "file.h5, file.pairs, file.csv" in registry.data_help()
