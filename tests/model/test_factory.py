"""Specs, factories and checkpoints: what is undone is reported, what is wrong is one line."""

from __future__ import annotations

import hashlib
import itertools
import logging
import pickle
import sys
import textwrap
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fsdtool.errors import ExitStatus, FsdtoolError, describe, some
from fsdtool.model.checkpoint import Checkpoint, apply_checkpoint, read_checkpoint
from fsdtool.model.factory import load_factory, load_model, parse_value
from fsdtool.model.libraries import import_torchvision
from fsdtool.model.state_dict_names import match_state
from fsdtool.model.unwrapping import WRAPPERS

MODEL_FILE = """
    import torch
    from torch import nn

    def mlp(hidden: int = 3, act=nn.ReLU):
        return nn.Sequential(nn.Linear(2, hidden), act(), nn.Dropout(), nn.Linear(hidden, 4)).double()

    def needs(width, *, depth, flag=False):
        return nn.Linear(width, depth)

    def echo(**given):
        model = nn.Linear(1, 1)
        model.given = given
        return model

    def raises():
        raise KeyError("no such\\nthing")

    def quits():
        raise SystemExit("usage: model.py")

    def number():
        return 3

    def lazy():
        return nn.Sequential(nn.LazyLinear(3))

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)

    ready = nn.Linear(2, 2)
    _hidden = 1
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(textwrap.dedent(MODEL_FILE))
    return path


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def error_line(call, *arguments, **options) -> str:
    """The message of the FsdtoolError that the call raises; it is always one line."""
    with pytest.raises(FsdtoolError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message


def save(content, path):
    torch.save(content, path)
    return path


# --- errors


def test_exit_codes_are_those_of_the_contract():
    assert [status.value for status in ExitStatus] == [0, 1, 2, 3, 130]


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(FsdtoolError("bad \x1b[31mname\r\n\u2028here")) == "bad  [31mname here"
    assert str(pickle.loads(pickle.dumps(FsdtoolError("a\nb")))) == "a b"


def test_describe_keeps_the_type_and_the_first_line():
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
    assert describe(EOFError()) == "EOFError"


def test_some_counts_what_it_leaves_out():
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdef")) == "a, b, c, d and 2 more"


# --- factories


def test_a_model_comes_in_eval_mode_in_float32(model_file, caplog):
    caplog.set_level(logging.INFO, "fsdtool")
    model = load_model(f"{model_file}:mlp", {"hidden": "5"})
    assert model[0].out_features == 5
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "used as float32" in caplog.text


@pytest.mark.parametrize("name", ["Net", "ready"])
def test_a_class_or_a_finished_network_is_a_factory_too(model_file, name):
    assert isinstance(load_model(f"{model_file}:{name}"), nn.Linear)


def test_a_package_is_found_from_the_current_folder(model_file, monkeypatch):
    package = model_file.parent / "somepackage_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    model_file.rename(package / "nets.py")
    monkeypatch.chdir(model_file.parent)
    assert isinstance(load_model("somepackage_for_test.nets:Net"), nn.Linear)
    assert isinstance(load_model("torch.nn:Linear", {"in_features": "2", "out_features": "1"}), nn.Linear)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-1.5", -1.5), ("[1, 2]", [1, 2]), ("None", None), ("true", True), ("False", False)]
    + [(text, text) for text in ("relu", "a b", "__import__('os')", "1 +", "", "path/to:x")],
)
def test_arguments_are_literals_or_text(text, value):
    assert parse_value(text) == value


def test_arguments_reach_the_factory_by_name(model_file):
    assert load_model(f"{model_file}:echo", {"a": "1", "b": "x"}).given == {"a": 1, "b": "x"}


def test_factory_errors_are_one_line(model_file, tmp_path):
    spec = str(model_file)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "absent.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "blob").write_text("f = int\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "blob")
    cases = {
        f"{spec}:lost": ["no factory 'lost'", "mlp, needs, echo, raises, quits, number, lazy, Net"],
        f"{spec}:needs": ["arguments width, depth", "`model_arg=width=VALUE` `model_arg=depth=VALUE`"],
        f"{spec}:raises": ["raised KeyError", "correct"],
        f"{spec}:quits": ["raised SystemExit: usage: model.py"],
        f"{spec}:number": ["returned a int", "torch.nn.Module"],
        f"{spec}:lazy": ["unknown size (0.weight, 0.bias)", "run one input"],
        f"{tmp_path}/nowhere.py:f": ["nowhere.py' does not exist"],
        f"{tmp_path}/link.py:f": ["blob' cannot be imported", "does not end in .py", "give a copy"],
        f"{tmp_path}/broken.py:f": ["SyntaxError", "line 1"],
        f"{tmp_path}/absent.py:f": ["No module named 'no_such_module_anywhere'"],
        "no_such_package.at_all:f": ["'no_such_package.at_all' cannot be imported"],
        "resnet18": ["names no factory", "torchvision:resnet18"],
        ":f": ["names no factory"],
    }
    for case, expected in cases.items():
        line = error_line(load_model, case)
        assert all(part in line for part in expected), line
    line = error_line(load_model, f"{spec}:mlp", {"hiden": "3"})
    assert "takes no argument 'hiden' (perhaps 'hidden'); it takes hidden, act" in line
    line = error_line(load_model, f"{spec}:mlp", {"hidden": "x"})
    assert "raised TypeError" in line


def test_a_file_may_import_its_neighbours_and_two_folders_do_not_mix(tmp_path):
    path_before = list(sys.path)
    values = []
    for name, width in (("first", 2), ("second", 3), ("first", 2)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "neighbour_for_test.py").write_text(f"WIDTH = {width}\n")
        (folder / "net.py").write_text(
            "from neighbour_for_test import WIDTH\nfrom torch import nn\ndef f():\n    return nn.Linear(WIDTH, 1)\n"
        )
        values.append(load_model(f"{folder}/net.py:f").in_features)
    assert values == [2, 3, 2]
    assert sys.path == path_before


def test_dataclasses_and_pickle_work_in_a_model_file(tmp_path):
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom torch import nn\n"
        "@dataclasses.dataclass\nclass C:\n    n: int = 2\nclass Net(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(C().n, 1)\n"
    )
    model = load_model(f"{tmp_path}/net.py:Net")
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


# --- torchvision


def test_torchvision_imports_once_and_stays():
    assert import_torchvision() is import_torchvision()
    assert import_torchvision() is sys.modules["torchvision"]


def test_a_torchvision_model_is_built_without_weights_and_with_arguments():
    model = load_model("torchvision:squeezenet1_1", {"num_classes": "7"})
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_an_unknown_torchvision_model_names_its_neighbours():
    line = error_line(load_model, "torchvision:resnet19")
    assert "no classification model 'resnet19'" in line
    assert "resnet18" in line
    assert "no classification model 'fasterrcnn" in error_line(load_model, "torchvision:fasterrcnn_resnet50_fpn")


def test_a_model_file_that_imports_torchvision_is_read_again_once_the_operators_are_declared(tmp_path):
    (tmp_path / "net.py").write_text(
        "import pathlib\nfrom torch import nn\nmark = pathlib.Path(__file__).with_suffix('.tried')\n"
        "if not mark.exists():\n    mark.touch()\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\nfactory = nn.Linear\n"
    )
    assert load_factory(f"{tmp_path}/net.py:factory") is nn.Linear


def test_a_missing_torchvision_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "pip install torchvision" in error_line(import_torchvision)


# --- reading checkpoints


def test_a_plain_state_dict_is_read_as_it_is(tmp_path):
    state = small().state_dict()
    path = save(state, tmp_path / "a.pt")
    checkpoint = read_checkpoint(path)
    assert checkpoint.path == str(path)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.notes == ()
    assert list(checkpoint.state) == list(state)
    assert all(torch.equal(checkpoint.state[name], state[name]) for name in state)


def test_safetensors_and_the_older_torch_format_hold_the_same(tmp_path):
    state = small().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt"):
        read = read_checkpoint(tmp_path / name).state
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("wrappers", [*itertools.permutations(WRAPPERS, 1), ("state_dict", "model"), ("net",) * 3])
def test_wrappers_are_undone_and_reported(tmp_path, wrappers):
    content = small().state_dict()
    for key in reversed(wrappers):
        content = {"epoch": 3, key: content, "optimizer": {"lr": 0.1, "state": {}}, "step": torch.tensor(5)}
    checkpoint = read_checkpoint(save(content, tmp_path / "a.pt"))
    assert checkpoint.state.keys() == small().state_dict().keys()
    assert checkpoint.notes == tuple(f"took the weights under '{key}'" for key in wrappers)


def test_entries_that_are_no_tensors_are_left_out(tmp_path):
    state = small().state_dict() | {"epoch": 3, "name": "x", "history": [1, 2]}
    assert read_checkpoint(save(state, tmp_path / "a.pt")).state.keys() == small().state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32_with_a_note(tmp_path, dtype):
    state = {"w": torch.tensor([0.5, 2.0], dtype=dtype), "n": torch.tensor([1, 2])}
    checkpoint = read_checkpoint(save(state, tmp_path / "a.pt"))
    assert checkpoint.state["w"].dtype == torch.float32
    assert checkpoint.state["w"].tolist() == [0.5, 2.0]
    assert checkpoint.state["n"].dtype == torch.int64
    assert checkpoint.notes == (f"stored as {str(dtype)[6:]}, used as float32",)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, bad):
    path = save({"fine": torch.ones(2), "layer.weight": torch.tensor([1.0, bad])}, tmp_path / "a.pt")
    line = error_line(read_checkpoint, path)
    assert "'layer.weight'" in line
    assert "NaN or infinity" in line


def test_a_double_too_large_for_float32_counts_as_infinite(tmp_path):
    path = save({"w": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "a.pt")
    assert "'w'" in error_line(read_checkpoint, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("garbage.pt", b"this is no checkpoint at all"),
        ("garbage.safetensors", b"this is no checkpoint at all"),
        ("one.pt", b"\x80"),
        ("short.safetensors", b"abc"),
        ("zip.pt", b"PK\x03\x04" + bytes(50)),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    line = error_line(read_checkpoint, tmp_path / name)
    assert "damaged or not a" in line
    assert name in line
    assert len(line) < 400


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_line(tmp_path, name, part):
    path = tmp_path / name
    state = {"w": torch.zeros(500)}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "damaged" in error_line(read_checkpoint, path)


def test_missing_empty_and_folder_are_one_line(tmp_path):
    (tmp_path / "empty.pt").touch()
    assert "does not exist" in error_line(read_checkpoint, tmp_path / "no.pt")
    assert "is empty (0 bytes)" in error_line(read_checkpoint, tmp_path / "empty.pt")
    (tmp_path / "sub").mkdir()
    assert "is a folder with no .pt" in error_line(read_checkpoint, tmp_path / "sub")


def test_content_without_tensors_is_one_line(tmp_path):
    assert "holds a list" in error_line(read_checkpoint, save([1, 2], tmp_path / "a.pt"))
    assert "holds a Tensor" in error_line(read_checkpoint, save(torch.ones(2), tmp_path / "b.pt"))
    two = {"epoch": 1, "one": {"w": torch.ones(1)}, "other": {"w": torch.ones(1)}}
    line = error_line(read_checkpoint, save(two, tmp_path / "c.pt"))
    assert "holds several sets of weights (one, other); give `checkpoint_key=one`" in line
    assert set(read_checkpoint(tmp_path / "c.pt", key="other").state) == {"w"}
    assert "(it has no entries)" in error_line(read_checkpoint, save({}, tmp_path / "d.pt"))
    itself: dict = {}
    itself["model"] = itself
    assert "holds no tensors" in error_line(read_checkpoint, save(itself, tmp_path / "e.pt"))


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta")],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_of_another_kind_are_refused(tmp_path, tensor):
    assert "dense floating tensor" in error_line(read_checkpoint, save({"w": tensor}, tmp_path / "a.pt"))


def test_a_tensor_that_claims_more_than_its_file_is_refused_before_it_is_made(tmp_path):
    path = save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    assert "larger than its file" in error_line(read_checkpoint, path)


def test_a_pickled_network_is_refused_unless_allowed(tmp_path):
    path = save({"model": small(), "epoch": 1}, tmp_path / "a.pt")
    line = error_line(read_checkpoint, path)
    assert "needs code to be run" in line
    assert "torch.nn.modules.container.Sequential" in line
    assert "`allow_pickle=True`" in line
    checkpoint = read_checkpoint(path, allow_pickle=True)
    assert checkpoint.state.keys() == small().state_dict().keys()
    assert checkpoint.notes == ("took the weights under 'model'", "took the weights of a pickled Sequential")


def test_what_stands_beside_weights_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    path = save({"w": torch.ones(1), "x": Harmful()}, tmp_path / "a.pt")
    assert set(read_checkpoint(path).state) == {"w"}
    alone = save({"weight": Harmful()}, tmp_path / "b.pt")
    assert "`allow_pickle=True`" in error_line(read_checkpoint, alone)
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arrays_of_objects_and_torchscript_need_the_flag_too(tmp_path):
    path = save({"weight": np.array([{}, None])}, tmp_path / "a.pt")
    assert "`allow_pickle=True`" in error_line(read_checkpoint, path)
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.zeros(1, 2)), script)
    assert "TorchScript" in error_line(read_checkpoint, script)
    assert set(read_checkpoint(script, allow_pickle=True).state) == {"weight", "bias"}


def test_a_pickle_whose_class_is_gone_is_one_line(model_file, tmp_path):
    model = load_model(f"{model_file}:Net")
    path = save(model, tmp_path / "a.pt")
    del sys.modules[type(model).__module__]
    line = error_line(read_checkpoint, path, allow_pickle=True)
    assert "needs code that was not found" in line


# --- matching names and shapes


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


PREFIXED = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "module._orig_mod.",
    "model.module.model._orig_mod.net.",
]


@pytest.mark.parametrize("prefix", PREFIXED)
def test_prefixes_are_removed_and_reported(prefix):
    state = small().state_dict()
    matched, notes = match_state({prefix + k: v for k, v in state.items()}, shapes(state), source="a.pt")
    assert list(matched) == list(state)
    assert all(matched[name] is state[name] for name in state)
    assert notes == ([f"removed the prefix '{prefix}' from 9 of 9 names"] if prefix else [])


@pytest.mark.parametrize("prefix", PREFIXED)
def test_a_network_whose_own_names_have_prefixes_keeps_them(prefix):
    model = nn.Module()
    model.model = nn.Linear(2, 2)
    model.net = nn.Linear(2, 2)
    model.module = nn.Linear(2, 2)
    state = model.state_dict()
    matched, _ = match_state({prefix + k: v for k, v in state.items()}, shapes(state), source="a.pt")
    assert all(matched[name] is state[name] for name in state)


def test_a_prefix_that_also_begins_a_name_is_removed_from_all_alike():
    # removed key by key, 'model.w' would be taken for the network's own model.w
    expected = {"w": (1,), "model.w": (1,)}
    state = {"model.w": torch.tensor([1.0]), "model.model.w": torch.tensor([2.0])}
    matched, _ = match_state(state, expected, source="a.pt")
    assert matched["w"].item() == 1
    assert matched["model.w"].item() == 2


def test_a_prefix_on_some_keys_only_is_removed_from_those():
    state = {"module.a": torch.ones(1), "b": torch.ones(2), "net._orig_mod.c": torch.ones(3)}
    matched, notes = match_state(state, {"c": (3,), "b": (2,), "a": (1,)}, source="a.pt")
    assert list(matched) == ["c", "b", "a"]
    assert notes == [
        "removed the prefix 'module.' from 1 of 3 names",
        "removed the prefix 'net._orig_mod.' from 1 of 3 names",
    ]


def test_num_batches_tracked_may_be_missing_or_extra():
    state = small().state_dict()
    less = {name: tensor for name, tensor in state.items() if name != "1.num_batches_tracked"}
    more = less | {"module.7.num_batches_tracked": torch.tensor(3)}
    for given in (less, more):
        matched, notes = match_state(given, shapes(state), source="a.pt")
        assert list(matched) == list(less)
        assert notes == []


def test_what_does_not_fit_is_named_and_counted():
    expected = {f"layer{i}.weight": (2, i) for i in range(8)} | {"head.weight": (3, 2)}
    state = {"head.weight": torch.ones(5, 2)} | {f"module.old{i}": torch.ones(1) for i in range(6)}
    line = error_line(match_state, state, expected, source="runs/a.pt")
    assert "the checkpoint does not fit the model (runs/a.pt)" in line
    assert "missing layer0.weight, layer1.weight, layer2.weight, layer3.weight and 4 more" in line
    assert "unexpected module.old0, module.old1, module.old2, module.old3 and 2 more" in line
    assert "head.weight is (5, 2), expected (3, 2)" in line


def test_one_extra_tensor_is_an_error():
    state = {"w": torch.ones(1), "ema.w": torch.ones(1)}
    assert "unexpected ema.w;" in error_line(match_state, state, {"w": (1,)}, source="a.pt")


def test_two_tensors_for_one_name_are_an_error():
    state = {"net.w": torch.ones(1), "model.w": torch.zeros(1), "b": torch.ones(1)}
    line = error_line(match_state, state, {"w": (1,), "b": (1,)}, source="a.pt")
    assert "both net.w and model.w stand for w" in line


def test_an_empty_checkpoint_misses_everything():
    assert "missing w;" in error_line(match_state, {}, {"w": (1,)}, source="a.pt")


# --- loading into the model


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path):
    trained = small().train()
    trained(torch.randn(16, 3))
    trained.eval()
    content = {"state_dict": OrderedDict((f"module.{k}", v) for k, v in trained.state_dict().items())}
    checkpoint = read_checkpoint(save(content, tmp_path / "a.ckpt"))
    model = small().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9)
    assert apply_checkpoint(model, checkpoint) == ["removed the prefix 'module.' from 9 of 9 names"]
    x = torch.randn(5, 3)
    assert torch.equal(model(x), trained(x))


def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(tmp_path):
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = read_checkpoint(save(nn.Linear(3, 4).state_dict(), tmp_path / "a.pt"))
    assert "does not fit the model" in error_line(apply_checkpoint, model, other)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_integers_for_a_floating_parameter_are_refused():
    checkpoint = Checkpoint("a.pt", "", {"weight": torch.ones(1, 2, dtype=torch.int8), "bias": torch.ones(1)}, ())
    assert "weight hold torch.int8" in error_line(apply_checkpoint, nn.Linear(2, 1), checkpoint)
