"""Input models are found by the name that the summary holds."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from fsdtool.errors import FsdtoolError
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.statistics.input_model import InputModel, Stored, input_models
from fsdtool.statistics.no_inputs import NoInputs
from fsdtool.summary.reader import load


class Constant(InputModel):
    """A model that draws one number."""

    name = "constant"

    def sample(self, k, count, generator):
        return torch.full((count, 1), float(k))

    def to(self, device=None, dtype=None):
        return self

    def stored(self):
        return {"value": Stored(torch.zeros(1), "the number")}

    @classmethod
    def read(cls, arrays, components, n):
        return cls()


def test_the_models_are_found():
    assert input_models() == {"gaussian": GaussianInputs, "none": NoInputs}


def test_another_model_is_drawn_from_but_has_no_moments():
    statistics = Statistics("all", ("all",), torch.tensor([9.0]), Constant(), {}, None).to(dtype=torch.float64)
    assert statistics.input.sample(2, 3, torch.Generator()).tolist() == [[2.0]] * 3
    with pytest.raises(FsdtoolError, match="drawn by the model 'constant', and this needs Gaussian ones"):
        statistics.gaussian  # noqa: B018


def test_a_summary_holds_the_name_and_an_older_one_is_gaussian(sample_paths, tmp_path):
    path = tmp_path / "summary.h5"
    path.write_bytes(sample_paths["mlp"].read_bytes())
    with h5py.File(path, "r+") as file:
        attributes = file["statistics/input"].attrs
        assert attributes["model"] == b"gaussian"
        del attributes["model"]
    assert isinstance(load(path).statistics.input, GaussianInputs)
    with h5py.File(path, "r+") as file:
        file["statistics/input"].attrs["model"] = np.bytes_("crystal")
    with pytest.raises(FsdtoolError, match="the input model 'crystal' is not known"):
        load(path)
