"""What `--model` and `--checkpoint` take, each row of `fsdtool docs models` as a command line, and what they refuse.

The keys of wrapped and averaged checkpoints are those that Lightning 2.6, timm 1.0 and torch 2.13 write.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import random
import re
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

from fsdtool import cli
from fsdtool.errors import FsdtoolError
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.model.computed_weights import make_plain
from fsdtool.summary.reader import load
from tests.conftest import gaussian_classes

DOCUMENT = (Path(__file__).parents[2] / "fsdtool" / "docs" / "models.md").read_text(encoding="utf-8")
FACTORY = """
import torch
import torch.nn.functional as F
from torch import nn

def net(hidden=6):
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 2))

def sized(*, hidden):
    return net(hidden)

def evaluating():
    return net().eval()

def parallel():
    return nn.DataParallel(net())

class Compiled(nn.Module):  # as torch.compile wraps a network
    def __init__(self):
        super().__init__()
        self._orig_mod = net()

def lazy():
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 2))

def batch_statistics():
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 2))

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(F.dropout(x))

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(x - x.mean(0))
"""


def network(hidden: int = 6, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 2))


WEIGHTS = network().state_dict()
AVERAGE = network(seed=1).state_dict()


def prefixed(prefix: str, state=WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    """Runs a command line in a folder that holds net.py and train.npz; returns (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("net.py").write_text(FACTORY)
    x, y = gaussian_classes(24, 3, 2)
    np.savez("train.npz", x=x, y=y)

    def shell(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        return code, capsys.readouterr().err

    return shell


@pytest.fixture
def summarize(shell):
    """`summarize` on that data: returns the weights in the summary and what was said on stderr."""

    def summarize(*arguments: str) -> tuple[dict[str, torch.Tensor], str]:
        model = () if "--model" in arguments or None in arguments else ("--model", "net.py:net")
        given = [argument for argument in arguments if argument is not None]
        rest = ("--data", "train.npz", "-o", "out.h5", "--components", "1", "--no-records")
        code, said = shell("summarize", *model, *given, *rest)
        assert code == 0, said
        return load(Path("out.h5")).parameters, said

    return summarize


@pytest.fixture
def refuse(shell):
    """`summarize` that must end with exit code 2, one line and no file: returns the line."""

    def refuse(*arguments: str) -> str:
        model = () if "--model" in arguments or None in arguments else ("--model", "net.py:net")
        given = [argument for argument in arguments if argument is not None]
        before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
        code, said = shell("summarize", *model, *given, "--data", "train.npz", "-o", "out.h5", "--quiet")
        assert code == 2, said
        assert re.fullmatch(r"error: [^\n]+\n", said), said
        assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
        return said

    return refuse


def same(found, expected=WEIGHTS) -> bool:
    """Whether the values are those expected, under whatever names, in their order."""
    return len(found) == len(expected) and all(map(torch.equal, found.values(), expected.values()))


# --- the tables of the document


def rows(header: str) -> list[str]:
    """The first cells of the document's table with this header."""
    table = DOCUMENT[DOCUMENT.index(header) :].split("\n\n")[0]
    return [line.split(" | ")[0].removeprefix("| ").strip("`") for line in table.splitlines()[2:]]


def by_file(summarize):
    torch.save(WEIGHTS, "a.pt")
    assert same(summarize("--model", "net.py:net", "--checkpoint", "a.pt")[0])
    torch.save(network(8).state_dict(), "wide.pt")
    given = ("--model", "net.py:sized", "--model-arg", "hidden=8", "--checkpoint", "wide.pt")
    assert same(summarize(*given)[0], network(8).state_dict())


def by_package(summarize):
    torch.save(WEIGHTS, "a.pt")
    Path("nets_for_test").mkdir()
    Path("nets_for_test/__init__.py").touch()
    Path("net.py").rename("nets_for_test/small.py")
    assert same(summarize("--model", "nets_for_test.small:net", "--checkpoint", "a.pt")[0])


def by_torchvision(summarize):
    x = np.random.default_rng(0).normal(size=(6, 3, 32, 32)).astype(np.float32)
    np.savez("train.npz", x=x, y=np.arange(6) % 2)
    torch.manual_seed(0)
    from fsdtool.model.libraries import import_torchvision

    state = import_torchvision().models.squeezenet1_1(num_classes=2).state_dict()
    torch.save(state, "a.pt")
    given = ("--model", "torchvision:squeezenet1_1", "--model-arg", "num_classes=2")
    assert same(summarize(*given, "--checkpoint", "a.pt")[0], state)


def by_timm(summarize):
    from fsdtool.model.libraries import import_torchvision

    import_torchvision()  # which timm imports, and may not load by itself
    timm = pytest.importorskip("timm")
    x = np.random.default_rng(0).normal(size=(6, 3, 160, 160)).astype(np.float32)
    np.savez("train.npz", x=x, y=np.arange(6) % 2)
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=2).state_dict()
    torch.save(state, "a.pt")
    found, said = summarize("--model", "timm:test_vit", "--model-arg", "num_classes=2", "--checkpoint", "a.pt")
    assert "traced in full" in said
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def by_transformers(summarize):
    from fsdtool.model.libraries import import_torchvision

    import_torchvision()
    transformers = pytest.importorskip("transformers")
    np.savez("train.npz", x=np.random.default_rng(0).integers(1, 20, (6, 5)), y=np.arange(6) % 2)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    network = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, num_labels=2, **sizes))
    network.save_pretrained("bert")
    found, said = summarize("--model", "transformers:AutoModelForSequenceClassification", "--checkpoint", "bert")
    assert "traced in full" in said
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.items())


def by_activation(summarize):
    save_file(WEIGHTS, "a.safetensors")
    weights, said = summarize("--model", "mlp:tanh", "--checkpoint", "a.safetensors")
    assert same(weights)
    assert "inferred from the weights: Linear(3, 6), Tanh(), Linear(6, 2)" in said


def left_out(summarize):
    torch.save(network(), "whole.pt")
    weights, said = summarize(None, "--allow-pickle", "--checkpoint", "whole.pt")
    assert same(weights)
    assert "the model is the Sequential pickled in whole.pt" in said
    linear = nn.Linear(3, 2).state_dict()
    torch.save(linear, "a.pt")
    assert same(summarize(None, "--checkpoint", "a.pt")[0], linear)


MODELS = {
    "path/file.py:factory": by_file,
    "package.module:factory": by_package,
    "torchvision:resnet18": by_torchvision,
    "timm:vit_tiny_patch16_224": by_timm,
    "transformers:AutoModelForSequenceClassification": by_transformers,
    "mlp:relu": by_activation,
    "left out": left_out,
}


@pytest.mark.parametrize("row", rows("| `--model` |"))
def test_every_model_that_the_readme_names(summarize, row):
    MODELS[row](summarize)


def plain(summarize):
    torch.save(WEIGHTS, "a.bin")
    torch.save(WEIGHTS, "b.pth", _use_new_zipfile_serialization=False)
    assert same(summarize("--checkpoint", "a.bin")[0])
    assert same(summarize("--checkpoint", "b.pth")[0])


def wrapped(summarize):
    beside = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "rng": torch.get_rng_state()}
    torch.save(beside | {"model_state_dict": {"net": WEIGHTS}}, "a.pt")
    weights, said = summarize("--checkpoint", "a.pt")
    assert same(weights)
    assert "took the weights under 'model_state_dict'" in said
    torch.save(beside | {"classifier": WEIGHTS}, "b.pt")
    weights, said = summarize("--checkpoint", "b.pt")
    assert same(weights)
    assert "took the weights under 'classifier'" in said


def safetensors(summarize):
    save_file(WEIGHTS, "a.safetensors")
    assert same(summarize("--checkpoint", "a.safetensors")[0])
    Path("a.safetensors").rename("a.ckpt")  # told by its content
    assert same(summarize("--checkpoint", "a.ckpt")[0])


def write_shards(folder: Path, end: str = "safetensors", name: str = "model") -> Path:
    folder.mkdir()
    places = {}
    for number, part in enumerate([dict(list(WEIGHTS.items())[:3]), dict(list(WEIGHTS.items())[3:])], 1):
        file = f"{name}-{number:05d}-of-00002.{end}"
        (save_file if end == "safetensors" else torch.save)(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"{name}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def sharded(summarize):
    index = write_shards(Path("s"))
    assert same(summarize("--checkpoint", str(index))[0])
    weights, said = summarize("--checkpoint", "s/model-00002-of-00002.safetensors")
    assert same(weights)
    assert "took all 2 shards of model.safetensors.index.json" in said
    assert same(summarize("--checkpoint", str(write_shards(Path("b"), "bin", "pytorch_model")))[0])


def folder(summarize):
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(WEIGHTS, "run/checkpoints/last.ckpt")
    weights, said = summarize("--checkpoint", "run")
    assert same(weights)
    assert "took last.ckpt" in said
    write_shards(Path("shards"))
    torch.save({"state": {}}, "shards/optimizer.pt")
    assert same(summarize("--checkpoint", "shards")[0])


def lightning_content(**more):
    return {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.1",
        "state_dict": OrderedDict(prefixed("model.") | {"criterion.weight": torch.ones(2)}),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "a.ckpt", "best_model_score": None}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"hidden": 6, "lr": 0.01},
    } | more


def lightning(summarize):
    torch.save(lightning_content(), "a.ckpt")
    weights, said = summarize("--model", "net.py:sized", "--checkpoint", "a.ckpt")
    assert same(weights)
    assert "hidden=6 are from the checkpoint's hyper_parameters" in said
    assert "removed the prefix 'model.' from 4 of 4 names" in said
    assert "left out criterion.weight" in said


def wrappers(summarize):
    for prefix in ("module._orig_mod.model.", "_orig_mod.module.model.", "backbone.", "_fsdp_wrapped_module."):
        save_file(prefixed(prefix), "a.safetensors")
        assert same(summarize("--checkpoint", "a.safetensors")[0])
    inside = {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in prefixed("model.").items()}
    torch.save(inside, "a.pt")  # a Lightning module whose network alone is compiled
    weights, said = summarize("--checkpoint", "a.pt")
    assert same(weights)
    assert "removed the names of wrappers" in said or "removed the prefix 'model._orig_mod.'" in said


def averages(summarize):
    timm = {"epoch": 1, "arch": "x", "state_dict": WEIGHTS, "state_dict_ema": AVERAGE, "metric": 0.5}
    deit = {"model": WEIGHTS, "model_ema": prefixed("module.", AVERAGE) | {"n_averaged": torch.tensor(3)}}
    attribute = prefixed("model.") | prefixed("model_ema.module.", AVERAGE) | {"model_ema.n_averaged": torch.tensor(3)}
    for content in (timm, deit, {"state_dict": attribute}, {"params": WEIGHTS, "params_ema": AVERAGE}):
        torch.save(content, "a.pt")
        if "params" not in content:
            assert same(summarize("--checkpoint", "a.pt")[0])
        assert same(summarize("--ema", "--checkpoint", "a.pt")[0], AVERAGE)
    lightning_average = lightning_content(
        state_dict=prefixed("model.", AVERAGE),
        current_model_state=prefixed("model."),
        averaging_state={"n_averaged": torch.tensor(10)},
    )
    averaged = AveragedModel(network(seed=1)).state_dict()  # nothing but an average
    for content in (lightning_average, averaged, {"ema": AVERAGE, "epoch": 1}):
        torch.save(content, "a.ckpt")
        weights, said = summarize("--checkpoint", "a.ckpt")
        assert same(weights, AVERAGE)
        assert "average" in said
        assert same(summarize("--ema", "--checkpoint", "a.ckpt")[0], AVERAGE)
    assert load(Path("out.h5")).identity.checkpoint_averaged


def other_precision(summarize):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({name: tensor.to(dtype) for name, tensor in WEIGHTS.items()}, "a.pt")
        weights, said = summarize("--checkpoint", "a.pt")
        assert same(weights, {name: tensor.to(dtype).float() for name, tensor in WEIGHTS.items()})
        assert f"stored as {str(dtype).removeprefix('torch.')}, used as float32" in said


def pickled(summarize):
    torch.save({"net": network(), "args": argparse.Namespace(lr=0.1)}, "a.pt")
    assert same(summarize("--allow-pickle", "--checkpoint", "a.pt")[0])
    torch.jit.save(torch.jit.trace(network().eval(), torch.zeros(1, 3)), "script.pt")
    weights, said = summarize("--allow-pickle", "--checkpoint", "script.pt")
    assert same(weights)
    assert "took the weights of a pickled Sequential" in said


@pytest.mark.filterwarnings("ignore::FutureWarning")
def computed(summarize):
    parametrized = network()
    parametrized[0], parametrized[3] = weight_norm(parametrized[0]), prune.l1_unstructured(parametrized[3], "weight", 2)
    torch.save(parametrized.state_dict(), "a.pt")
    make_plain(parametrized)
    weights, said = summarize("--checkpoint", "a.pt")
    assert same(weights, {name: parametrized.state_dict()[name] for name in WEIGHTS})
    assert "computed 0.weight, 3.weight from the parts that are stored" in said


def tied_or_extra(summarize):
    content = OrderedDict(WEIGHTS) | {"2._extra_state": {"version": 2}}
    torch.save(content, "a.pt")
    assert same(summarize("--checkpoint", "a.pt")[0])


CHECKPOINTS = {
    "state_dict": plain,
    "wrapped": wrapped,
    "safetensors": safetensors,
    "shards": sharded,
    "folder": folder,
    "Lightning": lightning,
    "parallel or compiled": wrappers,
    "moving average": averages,
    "other precision": other_precision,
    "pickled network": pickled,
    "computed weights": computed,
    "tied or with extra state": tied_or_extra,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("row", rows("| checkpoint |"))
def test_every_checkpoint_that_the_readme_names(summarize, row):
    CHECKPOINTS[row](summarize)


def test_the_readme_names_every_case():
    assert set(rows("| `--model` |")) == set(MODELS)
    assert set(rows("| checkpoint |")) == set(CHECKPOINTS)


# --- what stands beside the weights


def test_options_of_the_training_script_do_not_matter(summarize):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs")),
        "best": np.float64(0.5),
        "random": np.random.default_rng(0).integers(0, 9, 5),
        "path": Path("runs"),
    }
    torch.save({"state_dict": WEIGHTS, **beside}, "a.pt")
    assert same(summarize("--checkpoint", "a.pt")[0])


def test_objects_of_unknown_types_beside_the_weights_do_not_matter(summarize):
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    beside = {
        "sampler": re.compile("a"),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3),
        "history": defaultdict(list, {"loss": [0.1]}),
        "layers": [nn.ReLU, nn.CrossEntropyLoss()],
        "state": random.getstate(),
    }
    torch.save({"state_dict": WEIGHTS, **beside}, "a.pt")
    assert same(summarize("--checkpoint", "a.pt")[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
@pytest.mark.parametrize("flag", [None, "--allow-pickle"])
def test_weights_stored_as_arrays_are_read(summarize, dtype, flag):
    arrays = {name: np.asfortranarray(tensor.numpy().astype(dtype)) for name, tensor in WEIGHTS.items()}
    torch.save({"params": arrays, "epoch": 3}, "a.pt")
    weights, said = summarize(flag or "--seed=0", "--model", "net.py:net", "--checkpoint", "a.pt")
    assert same(weights, {n: torch.from_numpy(a.astype(np.float32)) for n, a in arrays.items()})
    assert "stored as NumPy arrays" in said


def test_extra_buffers_are_no_reason_to_stop(summarize):
    extra = {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1), "0.position_ids": torch.arange(3)}
    torch.save(WEIGHTS | extra | {"1.num_batches_tracked": torch.tensor(2)}, "a.pt")
    assert same(summarize("--checkpoint", "a.pt")[0])


def test_a_mask_of_minus_infinity_is_no_divergence(refuse):
    mask = torch.triu(torch.full((3, 3), -torch.inf), 1)
    torch.save(WEIGHTS | {"mask": mask}, "a.pt")
    assert "unexpected mask;" in refuse("--checkpoint", "a.pt")


def test_the_reference_of_a_summarized_average_is_the_average(shell):
    torch.save({"state_dict": WEIGHTS, "state_dict_ema": AVERAGE}, "a.pt")
    given = ("--model", "net.py:net", "--checkpoint", "a.pt", "--data", "train.npz", "-o", "out.h5")
    assert shell("summarize", *given, "--ema", "--no-weights")[0] == 0
    code, said = shell("fsd", "out.h5", "--checkpoint", "a.pt", "--ema", "--reference", "a.pt", "--max-distance", "0")
    assert code == 0, said
    assert shell("fsd", "out.h5", "--checkpoint", "a.pt", "--reference", "a.pt", "--max-distance", "0")[0] == 1


# --- refusals: checkpoints


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes); write it again"),
        (b"no weights at all", "is damaged or not a PyTorch checkpoint"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is an HTML page, not weights: the download failed or needs a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer, not the weights; run"),
        (b'{"error": "not found"}', "is JSON text, not weights"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file (a summary, or of Keras)"),
        (b"\x1f\x8b\x08" + bytes(20), "is compressed; unpack it"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_of_another_kind(refuse, content, message, name):
    Path(name).write_bytes(content)
    expected = message.replace("PyTorch checkpoint", "safetensors file") if name.endswith("safetensors") else message
    assert f"error: the checkpoint '{name}' {expected}" in refuse("--checkpoint", name)


def test_a_truncated_file(refuse):
    torch.save(WEIGHTS, "a.pt")
    save_file(WEIGHTS, "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        Path(name).write_bytes(Path(name).read_bytes()[:-40])
        assert f"'{name}' is damaged or not a" in refuse("--checkpoint", name)


def test_archives_of_other_programs(refuse):
    assert "'train.npz' is a NumPy archive" in refuse("--checkpoint", "train.npz")
    with zipfile.ZipFile("a.pt2", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
    assert "'a.pt2' is a program of torch.export" in refuse("--checkpoint", "a.pt2")


def test_hidden_files_of_a_folder_are_no_checkpoints(tmp_path):
    weight = torch.randn(2, 3)
    for place in ("model.pt", ".cache/old.pt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        torch.save({"weight": weight}, tmp_path / place)
    (tmp_path / "._model.pt").write_bytes(b"Mac OS X")
    assert torch.equal(read_checkpoint(tmp_path).state["weight"], weight)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(FsdtoolError, match="is a folder with no"):
        read_checkpoint(tmp_path)


def test_missing_files_and_folders_name_what_is_there(refuse):
    torch.save(WEIGHTS, "a.pt")
    torch.save(WEIGHTS, "b.pt")
    Path("empty").mkdir()
    assert "'c.pt' does not exist (its folder has a.pt, b.pt)" in refuse("--checkpoint", "c.pt")
    assert "'.' is a folder with several checkpoints (a.pt, b.pt); give the file" in refuse("--checkpoint", ".")
    assert "'empty' is a folder with no .pt, .pth, .ckpt" in refuse("--checkpoint", "empty")
    Path("empty/__0_0.distcp").touch()
    assert "dcp_to_torch empty weights.pt" in refuse("--checkpoint", "empty")


def test_shards_that_do_not_belong_together(refuse):
    index = write_shards(Path("s"))
    Path("s/model-00002-of-00002.safetensors").rename("kept")
    assert "model-00002-of-00002.safetensors missing" in refuse("--checkpoint", str(index))
    Path("s/model-00001-of-00002.safetensors").rename("s/model-00002-of-00002.safetensors")
    Path("kept").rename("s/model-00001-of-00002.safetensors")
    assert "does not hold 0.weight, 0.bias, 3.weight" in refuse("--checkpoint", str(index))
    Path(index).write_text(json.dumps({"weight_map": {"w": "../../etc/passwd"}}))
    assert "does not name files of its own folder (../../etc/passwd)" in refuse("--checkpoint", str(index))
    Path(index).write_text("[")
    assert "is damaged or has no 'weight_map'" in refuse("--checkpoint", str(index))
    index.unlink()
    assert "one of 2 shards and their index 'model.safetensors.index.json' is not beside it" in refuse(
        "--checkpoint", "s/model-00002-of-00002.safetensors"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refuse, bad):
    weight = WEIGHTS["3.weight"].clone()
    weight[1, 2] = bad
    torch.save(WEIGHTS | {"3.weight": weight}, "a.pt")
    line = refuse("--checkpoint", "a.pt")
    assert "the tensor '3.weight' of the checkpoint 'a.pt' holds NaN or infinity (1 of 12 values)" in line


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_weights(refuse):
    torch.save({n: t.to(torch.float8_e4m3fn) for n, t in WEIGHTS.items()}, "a.pt")
    assert "'0.weight' of the checkpoint 'a.pt' is quantized (float8_e4m3fn)" in refuse("--checkpoint", "a.pt")
    torch.save(WEIGHTS | {"0.weight": torch.quantize_per_tensor(WEIGHTS["0.weight"], 0.1, 0, torch.qint8)}, "b.pt")
    assert "is quantized (qint8)" in refuse("--checkpoint", "b.pt")
    torch.save(WEIGHTS | {"0.weight": WEIGHTS["0.weight"].to(torch.int8)}, "c.pt")
    assert "0.weight hold torch.int8, expected float32" in refuse("--checkpoint", "c.pt")
    torch.save({"0.scale": torch.ones(1), "0._packed_params._packed_params": (1, None)}, "d.pt")
    assert "is of a quantized network (0._packed_params._packed_params)" in refuse("--checkpoint", "d.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pickled_networks_and_scripts_are_refused_without_the_flag(refuse):
    torch.save(network(), "a.pt")
    line = refuse("--checkpoint", "a.pt")
    assert "needs code to be run while it is read (torch.nn.modules.container.Sequential)" in line
    assert "if you trust its source give --allow-pickle, or save model.state_dict() instead" in line
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), "script.pt")
    assert "(a TorchScript archive)" in refuse("--checkpoint", "script.pt")


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_no_code_of_a_checkpoint_runs(refuse):
    torch.save({"state_dict": WEIGHTS, "args": Harmful()}, "a.pt")
    Path("b.pt").write_bytes(pickle.dumps(Harmful()))
    refuse("--checkpoint", "b.pt")
    read_checkpoint("a.pt")
    assert not Path("harm").exists()


def test_a_network_whose_lazy_layers_saw_no_input(refuse):
    torch.save(nn.Sequential(nn.LazyLinear(6)).state_dict(), "a.pt")
    for flags in ((), ("--allow-pickle",)):
        line = refuse("--checkpoint", "a.pt", *flags)
        assert "saved before its lazy layer" in line
        assert "run one batch through the model" in line


def test_names_that_do_not_match_come_with_the_nearest(refuse):
    state = {name.replace("3.", "head."): tensor for name, tensor in WEIGHTS.items()}
    torch.save(state | {"extra.weight": torch.ones(4, 4)}, "a.pt")
    line = refuse("--checkpoint", "a.pt")
    assert "missing 3.weight (perhaps head.weight, of the same shape), 3.bias (perhaps head.bias" in line
    assert "unexpected head.weight, head.bias, extra.weight" in line


def test_another_number_of_classes_says_which_argument(refuse):
    torch.save(WEIGHTS | {"3.weight": torch.ones(5, 6), "3.bias": torch.ones(5)}, "a.pt")
    line = refuse("--checkpoint", "a.pt")
    assert "3.weight is (5, 6), expected (2, 6), 3.bias is (5,), expected (2,)" in line
    assert "it has 5 outputs, the model 2 (in torchvision: --model-arg num_classes=5)" in line


def test_a_layer_outside_the_network_is_not_dropped(refuse):
    torch.save(prefixed("model.") | {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}, "a.pt")
    assert "unexpected head.weight, head.bias;" in refuse("--checkpoint", "a.pt")


def test_two_networks_in_one_file_are_not_guessed_between(refuse):
    torch.save(prefixed("student.") | prefixed("teacher.", AVERAGE), "a.pt")
    assert "under several prefixes (a.pt): student., teacher.; give --checkpoint-key student" in refuse(
        "--checkpoint", "a.pt"
    )
    torch.save({"generator": WEIGHTS, "discriminator": AVERAGE}, "b.pt")
    assert "several sets of weights (generator, discriminator); give --checkpoint-key generator" in refuse(
        "--checkpoint", "b.pt"
    )


def test_an_average_that_is_not_there_or_has_no_names(refuse):
    torch.save({"state_dict": WEIGHTS}, "a.pt")
    line = refuse("--ema", "--checkpoint", "a.pt")
    assert "--ema is given and the checkpoint 'a.pt' holds no averaged weights" in line
    torch.save({"state_dict": WEIGHTS, "ema": {"decay": 0.9, "shadow_params": [torch.ones(2)]}}, "b.pt")
    line = refuse("--ema", "--checkpoint", "b.pt")
    assert "as a list without names (shadow_params); copy it into the model with copy_to" in line


# --- refusals: models


def test_a_wrong_spec_names_the_nearest(refuse):
    torch.save(WEIGHTS, "a.pt")
    cases = {
        "net.py:nett": "has no factory 'nett' (perhaps 'net'); it has net, sized",
        "nets.py:net": "the file 'nets.py' does not exist (perhaps 'net.py')",
        "torchvision:resnet81": "no classification model 'resnet81'; it has resnet18",
        "mlp:rellu": "names no activation (perhaps 'relu'); write for example mlp:relu",
        "no_module_of_this_name:net": "the module 'no_module_of_this_name' cannot be imported",
        "net.py:sized": "'net.py:sized' needs the argument hidden; give --model-arg hidden=VALUE",
        "net.py:lazy": "the model 'net.py:lazy' has parameters of unknown size (0.weight, 0.bias)",
    }
    for spec, message in cases.items():
        assert message in refuse("--model", spec, "--checkpoint", "a.pt")
    wrong = ("--model", "net.py:net", "--model-arg", "hiden=3", "--checkpoint", "a.pt")
    assert "takes no argument 'hiden' (perhaps 'hidden'); it takes hidden" in refuse(*wrong)


def test_a_model_is_used_in_eval_mode_whatever_mode_its_factory_leaves(summarize):
    torch.save(WEIGHTS, "a.pt")
    outputs = []
    for factory in ("net", "evaluating", "parallel", "Compiled"):
        summarize("--model", f"net.py:{factory}", "--checkpoint", "a.pt")
        outputs.append(load(Path("out.h5")).statistics.outputs.values)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_a_model_whose_outputs_depend_on_more_than_the_example(refuse):
    normed = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 2))
    torch.save(normed.state_dict(), "a.pt")
    line = refuse("--model", "net.py:batch_statistics", "--checkpoint", "a.pt")
    assert "batch norm without running statistics (1)" in line
    assert "torch.optim.swa_utils.update_bn" in line
    torch.save(prefixed("fc.", nn.Linear(3, 2).state_dict()), "b.pt")
    assert "differ from call to call in eval mode" in refuse("--model", "net.py:Random", "--checkpoint", "b.pt")
    assert "depend on the others in its batch" in refuse("--model", "net.py:Centred", "--checkpoint", "b.pt")


def test_a_model_left_out_says_what_to_give(refuse):
    torch.save(WEIGHTS, "a.pt")
    line = refuse(None, "--checkpoint", "a.pt")
    assert "the fully connected network 3-6-2 of 'a.pt' is not recorded in it; give --model mlp:relu" in line
    torch.save({"conv.weight": torch.ones(2, 1, 3, 3)}, "b.pt")
    line = refuse(None, "--checkpoint", "b.pt")
    assert "--model is left out and cannot be inferred from 'b.pt' ('conv.weight' of shape (2, 1, 3, 3)" in line
    assert "give --model path/file.py:factory, package.module:factory or torchvision:NAME" in line
