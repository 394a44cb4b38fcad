"""Errors by subject: each is a FsdtoolError, and says in a field which example or file is at fault."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import DataError, FsdtoolError, ModelError, SummaryError
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.summary.reader import load


def test_a_data_error_names_the_example(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.full((2, 3), np.nan), y=[0, 1], id=["first", "second"])
    with pytest.raises(DataError, match="example first") as caught:
        next(load_dataset(str(tmp_path / "d.npz")).batches(2))
    assert caught.value.example == "first"
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path / "none.npz"))
    assert caught.value.example is None


def test_errors_of_checkpoints_and_summaries_name_the_file(tmp_path):
    for call, kind in ((read_checkpoint, ModelError), (load, SummaryError)):
        with pytest.raises(kind) as caught:
            call(tmp_path / "none")
        assert caught.value.path == str(tmp_path / "none")


@pytest.mark.parametrize("kind", [DataError, ModelError, SummaryError])
def test_an_error_comes_whole_out_of_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("two\nlines")))
    assert isinstance(error, FsdtoolError)
    assert str(error) == "two lines"
    assert vars(error) == vars(kind("two lines"))
