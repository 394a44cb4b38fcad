"""A format of the matrix is found by the suffix, and all of them hold the same values."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from fsdtool.errors import FsdtoolError
from fsdtool.influence.matrix_file import matrix_file
from fsdtool.influence.matrix_formats.matrix_format import format_of, suffixes

READ = {".npy": np.load, ".h5": lambda path: h5py.File(path)["influence"][:]}


def test_every_suffix_has_a_format():
    assert suffixes() == tuple(READ)
    for suffix in suffixes():
        assert f".{format_of(Path('matrix' + suffix)).name}" == suffix


@pytest.mark.parametrize("suffix", READ)
def test_blocks_make_up_the_matrix(suffix, tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    path = tmp_path / f"matrix{suffix}"
    with matrix_file(path, list("abcde"), np.arange(7), "nats") as put:
        for rows in (slice(0, 2), slice(2, 5)):
            for columns in (slice(0, 4), slice(4, 7)):
                put(rows, columns, values[rows, columns])
    np.testing.assert_array_equal(READ[suffix](path), values)


def test_hdf5_holds_the_ids_and_the_units(tmp_path):
    with matrix_file(tmp_path / "matrix.h5", ["a", "b"], np.array(["x", "y", "z"]), "nats"):
        pass
    with h5py.File(tmp_path / "matrix.h5") as file:
        assert (list(file["query_id"].asstr()), list(file["id"].asstr())) == (["a", "b"], ["x", "y", "z"])
        assert file["influence"].attrs["units"] == "nats"


def test_another_suffix_is_one_line(tmp_path):
    refused = pytest.raises(
        FsdtoolError, match=r"`matrix` '.*x.txt' does not end in .npy or .h5; give a name that does"
    )
    with refused, matrix_file(tmp_path / "x.txt", ["a"], np.arange(2), ""):
        pass
    assert not list(tmp_path.iterdir())
