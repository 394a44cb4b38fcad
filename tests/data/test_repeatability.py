"""What gives something else each time is refused: data that are read twice, outputs in another batch."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool import cli
from fsdtool.data import repeatability
from fsdtool.data.formats.load import load_dataset
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.data.repeatability import check_data, check_outputs, spread, spread_inputs
from fsdtool.errors import FsdtoolError

DATA = """
import numpy as np, torch
base = torch.randn({count}, {shape}, generator=torch.Generator().manual_seed(0))
calls = 0

class Plain(torch.utils.data.Dataset):
    def __len__(self): return len(base)
    def __getitem__(self, i): return self.change(base[i]), i % 2
    def change(self, x): return x

class Noise(Plain):
    def change(self, x): return x + 0.1 * torch.randn(x.shape)

class Flip(Plain):
    def change(self, x): return x.flip(-1) if torch.rand(()) < 0.5 else x

class Rarely(Plain):
    def change(self, x): return x * 2 if torch.rand(()) < 0.05 else x

class LastOnly(Plain):
    def __getitem__(self, i): return (base[i] + torch.rand(()) if i == len(base) - 1 else base[i]), i % 2

class FourOnly(Plain):
    def __getitem__(self, i): return (base[i] + torch.rand(()) if i == 4 else base[i]), i % 2

class Labels(Plain):
    def __getitem__(self, i): return base[i], int(torch.randint(0, 2, ()))

class NextOne(Plain):
    def __getitem__(self, i):
        global calls
        calls += 1
        return base[calls % len(base)], i % 2

class Seeded(Plain):
    def __getitem__(self, i):
        return base[i] + torch.randn(base[i].shape, generator=torch.Generator().manual_seed(i)), i % 2

class OnlyInWorkers(Plain):
    def change(self, x): return x + torch.rand(()) if torch.utils.data.get_worker_info() else x

class Rounded(Plain):
    def change(self, x): return x * (1 + 1e-7 * torch.randn(x.shape))

def jitter(x): return x * (1 + torch.rand(()))
def still(x): return x / 2
"""


@pytest.fixture
def written(tmp_path):
    """Writes the module of data sets: `written(count, shape)` gives the spec of one by its name."""

    def write(count: int = 200, shape: str = "6"):
        path = tmp_path / f"data{count}.py"
        path.write_text(DATA.format(count=count, shape=shape))
        return lambda name: f"{path}:{name}"

    return write


@pytest.mark.parametrize("name", ["Noise", "Flip", "Rarely", "LastOnly", "NextOne"])
def test_inputs_that_change_are_refused(written, name):
    with pytest.raises(FsdtoolError, match="gives other inputs of example"):
        check_data(load_dataset(written()(name)))


def test_labels_that_change_are_refused(written):
    with pytest.raises(FsdtoolError, match="gives other targets of example"):
        check_data(load_dataset(written()("Labels")))


def test_a_flip_of_few_examples_is_found(written):
    specs = [written(count, "6")("Flip") for count in range(3, 23)]
    assert sum(_refused(load_dataset(spec)) for spec in specs) == len(specs)


@pytest.mark.parametrize("name", ["Plain", "Seeded", "Rounded"])
def test_data_that_stay_are_accepted(written, name):
    batch = check_data(load_dataset(written()(name)))
    assert batch.index[0] == 0
    assert batch.index[-1] == 199


def test_what_changes_in_worker_processes_alone_is_found(written):
    source = load_dataset(written()("OnlyInWorkers"))
    check_data(source)
    with pytest.raises(FsdtoolError, match="gives other inputs"):
        check_data(source, workers=1)
    check_data(load_dataset(written()("Plain")), workers=2)


def test_a_random_transform_is_named_and_one_of_evaluation_accepted(written, arrays):
    spec, place = str(arrays(np.random.rand(40, 5).astype(np.float32), np.arange(40) % 2)), written()
    with pytest.raises(FsdtoolError, match=re.escape(f"`transform={place('jitter')}` changes examples at random")):
        check_data(load_dataset(spec, preprocessing=Preprocessing(transform=place("jitter"))))
    check_data(load_dataset(spec, preprocessing=Preprocessing(transform=place("still"))))


def test_every_command_that_reads_data_refuses_and_the_remedy_works(written, tmp_path, capsys):
    place, weights, summary = written(), str(tmp_path / "w.pt"), str(tmp_path / "s.h5")
    torch.save(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).state_dict(), weights)
    summarize = ["summarize", "--model", "mlp:relu", "--checkpoint", weights, "-o", summary, "-q", "--data"]
    assert cli.main([*summarize, place("Noise")]) == 2
    assert "when read again" in capsys.readouterr().err
    assert cli.main([*summarize, place("Plain")]) == 0
    commands = (
        ["influence", summary, "--queries", place("Plain"), "--mean", "--data"],
        ["influence", summary, "--queries"],
        ["find-mislabeled", summary, "--data"],
        ["fsd", summary, "--checkpoint", weights, "--samples", "64", "--data"],
    )
    for command in commands:
        for name, code in (("Noise", 2), ("Plain", 0)):
            assert cli.main([*command, place(name), "-q"]) == code
            assert ("when read again" in capsys.readouterr().err) is (code == 2)


def test_spread_covers_the_ends():
    for count in (1, 2, 3, 17, 1000):
        rows = spread(count, 16).tolist()
        assert (rows[0], rows[-1]) == (0, count - 1)
        assert len(rows) == len(set(rows)) == min(count, 16)
    assert len(spread_inputs(torch.zeros(128, 3))) == 32
    assert len(spread_inputs(torch.zeros(128, 3, 224, 224))) == 8


def _refused(source) -> bool:
    try:
        check_data(source)
    except FsdtoolError:
        return True
    return False


# Outputs


class Along(nn.Module):
    """A network of which `mix` sees the hidden units (B, 8) of the whole batch."""

    def __init__(self, mix):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.inner, self.head = mix, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.mix(self.inner(x)))


class TimeFirst(nn.Module):
    """A GRU over (B, 7, 4) that takes the examples for the steps of time, unless `batch_first`."""

    def __init__(self, batch_first: bool):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(4, 6, batch_first=batch_first), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


ALONG = {
    "cumsum": lambda h: h.cumsum(0),
    "from behind": lambda h: h.flip(0).cumsum(0),
    "softmax": lambda h: h.softmax(0),
    "norm": lambda h: h / h.norm(dim=0),
    "mean": lambda h: h - h.mean(0),
    "neighbour": lambda h: h + 0.1 * h.roll(1, 0),
    "last of the batch": lambda h: torch.cat([h[:-1], h[-1:] + 0.1 * h[:1]]),
    "weak": lambda h: h + 1e-4 * h.mean(0),
    "largest": lambda h: h / h.abs().max(),
    "size": lambda h: h / len(h),
    "pairs": lambda h: torch.cat([h[:1], h[1:] + 0.05 * h[:-1]]),
}


@pytest.mark.parametrize("mix", ALONG.values(), ids=ALONG)
def test_outputs_that_depend_on_the_batch_are_refused(mix):
    with pytest.raises(FsdtoolError, match="depend on the others in its batch"):
        check_outputs(Along(mix).eval(), torch.randn(32, 5))


@pytest.mark.parametrize("examples", [2, 3, 8, 32])
def test_a_recurrent_layer_along_the_batch_is_refused_and_the_remedy_works(examples):
    x = torch.randn(examples, 7, 4)
    with pytest.raises(FsdtoolError, match="batch_first=True"):
        check_outputs(TimeFirst(batch_first=False).eval(), x)
    check_outputs(TimeFirst(batch_first=True).eval(), x)


def test_a_squeeze_that_drops_the_examples_is_named():
    with pytest.raises(FsdtoolError, match=re.escape("squeeze(1), not squeeze()")):
        check_outputs(Along(lambda h: h[:, None].squeeze()).eval(), torch.randn(4, 5))


def test_a_network_for_one_size_of_batch_is_named():
    with pytest.raises(FsdtoolError, match="takes 8 examples at once and fails on"):
        check_outputs(Along(lambda h: h.reshape(8, 8)).eval(), torch.randn(8, 5))


def test_random_outputs_and_batch_norm_without_statistics_are_refused():
    with pytest.raises(FsdtoolError, match="differ from call to call"):
        check_outputs(Along(nn.functional.dropout).eval(), torch.randn(8, 5))
    with pytest.raises(FsdtoolError, match="batch norm without running statistics"):
        check_outputs(
            nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 2)).eval(), torch.randn(8, 5)
        )


class RoundsByBatch(nn.Module):
    """In float32 the last digits depend on the batch, as those of kernels may; in float64 nothing does."""

    def __init__(self, size: float):
        super().__init__()
        self.size, self.head = size, nn.Linear(5, 3)

    def forward(self, x):
        found = self.head(x)
        return found if x.dtype == torch.float64 else found + self.size * len(x)


def test_rounding_is_told_from_dependence_in_float64():
    check_outputs(RoundsByBatch(2e-5).eval(), torch.randn(16, 5))
    with pytest.raises(FsdtoolError, match="depend on the others"):
        check_outputs(RoundsByBatch(0.1).eval(), torch.randn(16, 5))


def test_deep_and_badly_scaled_networks_are_accepted():
    torch.manual_seed(0)
    deep = nn.Sequential(*(layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 5))
    large = nn.Sequential(nn.Linear(64, 2000), nn.Tanh(), nn.Linear(2000, 5))
    convolutions = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(4608, 5))
    for net, x in (
        (deep, torch.randn(32, 64)),
        (large, 1e4 * torch.randn(32, 64)),
        (convolutions, torch.randn(9, 3, 16, 16)),
    ):
        check_outputs(net.eval(), x)


def test_one_random_example_among_hundreds_is_found_where_reading_is_cheap(written, monkeypatch):
    monkeypatch.setattr(repeatability, "SECONDS", 60)
    assert 4 not in spread(200, 128)
    with pytest.raises(FsdtoolError, match="gives other inputs of example 4 when read again"):
        check_data(load_dataset(written()("FourOnly")))
