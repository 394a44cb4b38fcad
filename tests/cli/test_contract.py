"""What the shell sees of each command: its output to the character, and its exit code.

The estimators are stand-ins that answer with fixed rows and keep what they were called with: this file tests
the command line and nothing below it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

import fsdtool
from fsdtool import cli
from fsdtool.cli import app
from fsdtool.cli import arguments as arguments_module
from fsdtool.cli.commands import demo, find_mislabeled
from fsdtool.errors import FsdtoolError
from fsdtool.report.talk import Talk
from fsdtool.tasks.task import task_of

ROOT = Path(__file__).parents[2]
COMMANDS = ["summarize", "find-mislabeled", "influence", "fsd", "inspect", "docs", "demo"]
README_COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/fsdtool demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest -n auto",
]

MISLABELED = [
    {
        "id": 7,
        "given_label": "3",
        "suggested_label": "5",
        "score": 4.25,
        "confidence": 0.98,
        "rank": 1,
        "extra": 0,
    },
    {"id": 2, "given_label": "=8", "suggested_label": "1", "score": 0.1, "confidence": None, "rank": 2},
]
ASKED = {"query_label": "7", "query_prediction": "1"}
INFLUENCE = [
    {"query_id": 4, "kind": "proponent", "rank": 1, "id": 9, "label": "3", "loss_change_if_removed": 2.5e-05, **ASKED},
    {"query_id": 4, "kind": "opponent", "rank": 1, "id": 1, "label": "5", "loss_change_if_removed": -1e-05, **ASKED},
]
SELF = [{"id": i, "label": "a", "self_influence": value} for i, value in enumerate([2.0, 1.0, 0.5])]
FSD = [
    {
        "checkpoint": "a.pt",
        "distance": 0.25,
        "standard_error": None,
        "model_error": None,
        "metric": "kl",
        "form": "closed",
        "exact": 0.2,
    },
    {
        "checkpoint": "b.pt",
        "distance": 1.5,
        "standard_error": 0.01,
        "model_error": 0.1,
        "metric": "kl",
        "form": "sampled",
        "exact": 1.4,
    },
]
PARTS = [{"part": "/records", "bytes": 1000, "bytes_per_example": 10.0, "description": "what is kept of each"}]


class Calls(dict):
    """What each stand-in was called with: its name -> (positional, keyword) arguments."""

    def answer(self, name: str, result):
        def stand_in(*positional, **keywords):
            self[name] = (positional, keywords)
            if isinstance(result, BaseException):
                raise result
            return result

        return stand_in


def rows_of(rows, **more):
    return SimpleNamespace(rows=lambda: iter(rows), **more)


def read_checkpoint(path, allow_pickle, ema, key, names):
    recorded = {"sha256": "0f" if str(path) == "other.pt" else "5e", "averaged": ema, "hyper_parameters": {"width": 3}}
    return SimpleNamespace(path=str(path), notes=("wrapper undone",), network=None, **recorded)


@pytest.fixture
def install(monkeypatch):
    """Puts a stand-in for a module of the package in place: install("fsd.drift", distances=...)."""

    def install(name: str, **contents) -> None:
        module = ModuleType(f"fsdtool.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, f"fsdtool.{name}", module)

    return install


@pytest.fixture
def calls(install) -> Calls:
    calls = Calls()
    summary = SimpleNamespace(
        fit=None,
        task=task_of("classification"),
        path="s.h5",
        preprocessing=SimpleNamespace(transform=None, runs_code=False),
        class_names=["3", "5"],
        records=None,
        identity=SimpleNamespace(
            checkpoint_sha256="5e",
            checkpoint_name="c.pt",
            checkpoint_averaged=False,
            checkpoint_key="",
            model_spec="",
            model_arguments={},
            output="",
            preprocessing=SimpleNamespace(parts=()),
        ),
    )
    install("model.factory", load_model=calls.answer("load_model", "network"))
    install(
        "model.checkpoint",
        read_checkpoint=read_checkpoint,
        apply_checkpoint=calls.answer("apply_checkpoint", ["prefix removed"]),
    )
    install("network.logits", answer_with=calls.answer("answer_with", None))
    install("fsd.last_layer", check_unmoved=calls.answer("check_unmoved", None))
    install("data.preprocessing", Preprocessing=calls.answer("Preprocessing", "preprocessing"))
    install("data.formats.load", load_dataset=calls.answer("load_dataset", "source"))
    install("util.device", choose_device=calls.answer("choose_device", "cpu device"))
    install(
        "fitting.run",
        summarize=calls.answer("summarize", rows_of([("examples", "3"), ("size", "1.2 MB")])),
    )
    install("summary.reader", load=calls.answer("load", summary))
    install("summary.inspection", inspect_rows=calls.answer("inspect_rows", ([("examples", "100")], PARTS)))
    install(
        "mislabel.find",
        find_mislabeled=calls.answer(
            "find_mislabeled", rows_of(MISLABELED, flagged=2, judged=100, noise_rate=0.03, between=None)
        ),
    )
    install(
        "influence.scores",
        influence=calls.answer("influence", rows_of(INFLUENCE)),
        self_influence=calls.answer("self_influence", rows_of(SELF)),
    )
    install("summary.catalogue", open_catalogue=calls.answer("open_catalogue", summary))
    install("influence.self_scores", recorded_self_influence=calls.answer("recorded_self_influence", rows_of(SELF)))
    install("fsd.drift", distances=calls.answer("distances", rows_of(FSD, distances=[0.25, 1.5])))
    return calls


@pytest.fixture
def shell(capsys, calls):
    """Runs a command line; returns (exit code, stdout, stderr)."""

    def shell(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        return (code, *capsys.readouterr())

    return shell


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
        **options,
    )


def assert_tracks(given: dict) -> None:
    """Take the progress of the command line's own talk out of the arguments."""
    track = given.pop("track")
    assert track.__func__ is Talk.track


# Help


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_shows_an_example_and_the_exit_codes(shell, command):
    code, out, err = shell(*([command] if command else []), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: fsdtool {command or ''}".strip())
    assert f"\n  Example:\n    fsdtool {command or 'summarize'}" in out
    assert "\n  Exit codes:\n    0    done" in out
    assert "    2    the input is at fault" in out


def test_help_of_influence_states_sign_and_unit(shell):
    text = " ".join(shell("influence", "--help")[1].split())
    assert (
        "The column loss_change_if_removed is a first-order estimate, in nats for cross-entropy, "
        "of how much the loss on the query would rise if the training example were removed; "
        "positive: the example helps (proponent), negative: it harms (opponent)."
    ) in text


def test_help_is_the_same_through_typers_runner():
    result = CliRunner().invoke(app.app, ["fsd", "--help"])
    assert result.exit_code == 0
    assert "Exit codes:" in result.output


def test_examples_in_help_use_options_that_exist(shell):
    for command in COMMANDS:
        text = shell(command, "--help")[1]
        examples, options = text.split("\nOptions:\n")
        used = {word for word in examples.split("Example:")[1].split() if word.startswith("-")}
        assert all(word in options for word in used), (command, used)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS), ["fsd", "--no"]])
def test_help_and_usage_errors_do_not_import_torch(arguments):
    program = (
        "import sys\nfrom fsdtool.cli import main\nmain(sys.argv[1:])\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'h5py', 'jinja2', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = python("-c", program, *arguments)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_does_not_import_torch():
    result = python("-c", "import sys, fsdtool; sys.exit('torch' in sys.modules)")
    assert result.returncode == 0


def test_version(shell):
    assert shell("--version") == (0, f"fsdtool {fsdtool.__version__}\n", "")


def test_module_and_command_agree():
    assert python("-m", "fsdtool", "--version").stdout == f"fsdtool {fsdtool.__version__}\n"


def test_load_opens_a_summary(calls):
    assert fsdtool.load("a.h5").task.name == "classification"
    assert calls["load"] == (("a.h5",), {})


def test_no_command_shows_the_help_on_stderr(shell):
    code, out, err = shell()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: fsdtool")


# Wrong usage: one line, exit code 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fsd", "--unknown"], "No such option: --unknown; see 'fsdtool fsd --help'"),
        (["unknown"], "No such command 'unknown'; see 'fsdtool --help'"),
        (["inspect"], "Missing argument"),
        (["fsd", "s.h5"], "Missing option '--checkpoint'"),
        (["find-mislabeled", "s.h5", "--top", "0"], "Invalid value for '--top'"),
        (["find-mislabeled", "s.h5", "--format", "xml"], "Invalid value for '--format'"),
        (
            ["find-mislabeled", "s.h5", "--top", "3", "--all"],
            "--top 3 and --all exclude each other; give one",
        ),
        (
            ["influence", "s.h5"],
            "either --queries or --self is needed and neither is given; give one of them",
        ),
        (
            ["influence", "s.h5", "--self", "--queries", "q.npz"],
            "needed and both are given; give one of them",
        ),
        (
            ["influence", "s.h5", "--self", "--mean", "--matrix", "m.npy"],
            "--mean, --matrix has no meaning with --self",
        ),
        (
            ["influence", "s.h5", "--self", "--solver", "cg"],
            "--solver has no meaning with --self",
        ),
        (
            ["influence", "s.h5", "--queries", "q", "--model", "m:f"],
            "--model is given without --checkpoint; give both",
        ),
        (
            ["influence", "s.h5", "--queries", "q", "--checkpoint", "m"],
            "--checkpoint is given without --model",
        ),
        (
            ["influence", "s.h5", "--queries", "q", "--model-arg", "a=1"],
            "--model-arg a=1 is given without --model",
        ),
        (
            ["influence", "s.h5", "--queries", "q", "--matrix", "m.csv"],
            "--matrix 'm.csv' does not end in .npy",
        ),
        (["fsd", "s.h5", "--checkpoint", "c", "--max-distance", "nan"], "--max-distance nan is no distance"),
        (["fsd", "s.h5", "--checkpoint", "c", "--max-distance=-1"], "--max-distance -1 is no distance"),
    ],
)
def test_wrong_usage_is_one_line(shell, calls, arguments, message):
    code, out, err = shell(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not calls


SUMMARIZE = ["summarize", "--model", "m.py:mlp", "--checkpoint", "c.pt", "--data", "d.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-o", "no/such/s.h5"],
            "--output 'no/such/s.h5' cannot be written: 'no/such' does not exist; create it",
        ),
        (["-o", "."], "--output '.' is a folder; give the name of a file in it"),
        (["-o", "s.h5", "--model-arg", "width"], "--model-arg 'width' is not of the form key=value"),
        (
            ["-o", "s.h5", "--model-arg", "a=1", "--model-arg", "a=2"],
            "--model-arg a is given twice, as '1' and '2'",
        ),
        (
            ["-o", "s.h5", "--mean", "0.5;0.5"],
            "--mean '0.5;0.5' is not a list of numbers; write for example 0.5",
        ),
        (["-o", "s.h5", "--layout", "as is"], "Invalid value for '--layout'"),
    ],
)
def test_summarize_refuses_before_anything_is_computed(shell, calls, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = shell(*SUMMARIZE, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not calls


def test_output_that_is_an_input_is_refused(tmp_path):
    data = tmp_path / "train.npz"
    data.touch()
    with pytest.raises(FsdtoolError, match="is also an input and would be overwritten"):
        arguments_module.check_output(tmp_path / "." / "train.npz", "--output", inputs=("m.py:f", str(data)))


def test_output_whose_parent_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FsdtoolError, match="is not a folder"):
        arguments_module.check_output(tmp_path / "file" / "s.h5", "--output")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FsdtoolError, match="permission denied"):
        arguments_module.check_output(tmp_path / "s.h5", "--output")


# The commands


def test_summarize_passes_everything_on_and_writes_to_stderr_only(shell, calls, tmp_path):
    output = tmp_path / "s.h5"
    code, out, err = shell(
        *SUMMARIZE, "-o", str(output), "--model-arg", "width=64", "--components", "3", "--mean", "0.5,0.25",
        "--layout", "channels-first", "--statistics-budget", "1.5", "--no-records", "--x-key", "images",
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert err == (f"note: c.pt: wrapper undone\nwrote {output}\n  examples: 3\n  size:     1.2 MB\n")
    assert calls["load_model"] == (("m.py:mlp", {"width": "64"}, {"width": 3}, Path()), {})
    assert calls["choose_device"] == (("auto",), {})
    assert calls["Preprocessing"][1] == {
        "mean": (0.5, 0.25), "std": None, "image_size": None, "layout": "channels first", "channels": None,
        "transform": None,
    }  # fmt: skip
    assert calls["load_dataset"] == (
        ("d.npz",),
        {
            "task": None,
            "preprocessing": "preprocessing",
            "x_key": "images",
            "y_key": None,
            "id_key": None,
            "split": None,
            "labels": None,
            "ids": None,
            "skip_bad": False,
            "missing": None,
            "workers": 0,
        },
    )
    _, given = calls["summarize"]
    assert_tracks(given)
    assert given.pop("checkpoint").path == "c.pt"
    assert given.pop("command_line").startswith("fsdtool summarize --model m.py:mlp ")
    assert given == {
        "model": "network",
        "earlier": [],
        "data": "source",
        "output": output,
        "model_spec": "m.py:mlp",
        "model_arguments": {"width": "64"},
        "components": 3,
        "device": "cpu device",
        "batch_size": None,
        "workers": 0,
        "seed": 0,
        "records": False,
        "record_bytes": 1024,
        "statistics_budget": 1_500_000,
        "curvature": None,
        "input_rank": None,
        "frozen": (),
        "output_name": "",
        "keep_weights": True,
    }


@pytest.mark.parametrize("arguments", [["-q", *SUMMARIZE], [*SUMMARIZE, "--quiet"]])
def test_quiet_before_or_after_the_command_says_nothing(shell, tmp_path, arguments):
    assert shell(*arguments, "-o", str(tmp_path / "s.h5")) == (0, "", "")


def test_find_mislabeled_csv(shell, calls):
    code, out, err = shell("find-mislabeled", "s.h5", "--top", "2")
    assert code == 0
    assert out == ("id,given_label,suggested_label,score,confidence,rank\n7,3,5,4.25,0.98,1\n2,'=8,1,0.1,,2\n")
    assert err == ("note: 2 of 100 labels are flagged (score above 0.5)\nnote: estimated share of wrong labels: 3.0%\n")
    assert calls["open_catalogue"] == ((Path("s.h5"),), {})
    assert "load" not in calls
    assert calls["find_mislabeled"][1] == {"top": 2, "everything": False, "threshold": 0.5, "mask": None}


def test_find_mislabeled_json(shell, calls):
    code, out, _ = shell("find-mislabeled", "s.h5", "--all", "--format", "json")
    assert code == 0
    assert json.loads(out) == [{key: row[key] for key in find_mislabeled.MISLABELED_COLUMNS} for row in MISLABELED]
    assert calls["find_mislabeled"][1] == {"top": None, "everything": True, "threshold": 0.5, "mask": None}


def test_find_mislabeled_table(shell):
    assert shell("find-mislabeled", "s.h5", "--format", "table", "-q")[1].splitlines() == [
        "id  given_label  suggested_label  score  confidence  rank",
        " 7  3            5                 4.25        0.98     1",
        " 2  =8           1                  0.1                 2",
    ]


@pytest.mark.parametrize(("limit", "expected"), [(2, 0), (1, 1), (0, 1)])
def test_find_mislabeled_exits_with_1_over_the_limit(shell, limit, expected):
    code, out, err = shell("find-mislabeled", "s.h5", "--max-flagged", str(limit), "-q")
    assert code == expected
    assert out.startswith("id,given_label")
    assert err == (f"warning: 2 labels are flagged, more than --max-flagged {limit}\n" if expected else "")


def test_influence_csv(shell, calls):
    code, out, err = shell("influence", "s.h5", "--queries", "q.npz", "--misclassified", "--top", "1")
    assert (code, err) == (0, "")
    assert out == (
        "query_id,kind,rank,id,label,loss_change_if_removed,query_label,query_prediction\n"
        "4,proponent,1,9,3,2.5e-05,7,1\n4,opponent,1,1,5,-1e-05,7,1\n"
    )
    assert calls["load_dataset"] == (
        ("q.npz",),
        {
            "task": task_of("classification"),
            "preprocessing": SimpleNamespace(transform=None, runs_code=False),
            "x_key": None,
            "y_key": None,
            "id_key": None,
            "split": None,
            "skip_bad": False,
            "class_names": ["3", "5"],
            "prepared": True,
        },
    )
    (summary, queries), given = calls["influence"]
    assert_tracks(given)
    assert (summary.task.name, queries) == ("classification", "source")
    assert given == {
        "top": 1,
        "mean": False,
        "misclassified": True,
        "matrix": None,
        "data": None,
        "solver": "kronecker",
        "model": None,
        "device": "cpu device",
        "batch_size": 256,
        "among": None,
    }


def test_influence_with_a_model_and_a_matrix(shell, calls, tmp_path):
    matrix = tmp_path / "m.npy"
    code, _, err = shell(
        "influence",
        "s.h5",
        "--queries",
        "q.npz",
        "--model",
        "m.py:mlp",
        "--checkpoint",
        "c.pt",
        "--matrix",
        str(matrix),
    )
    assert code == 0
    assert err == "note: c.pt: wrapper undone\nnote: c.pt: prefix removed\n"
    assert calls["influence"][1]["model"] == "network"
    assert calls["influence"][1]["matrix"] == matrix
    assert calls["influence"][1]["top"] == 10


def test_influence_refuses_a_checkpoint_that_was_not_summarized(shell):
    code, out, err = shell(
        "influence", "s.h5", "--queries", "q.npz", "--model", "m.py:mlp", "--checkpoint", "other.pt", "-q"
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: 'other.pt' is not the checkpoint that was summarized (c.pt, SHA-256 ")
    assert err.count("\n") == 1


def test_matrix_in_a_missing_folder_is_refused_before_anything_is_computed(shell, calls):
    code, _, err = shell("influence", "s.h5", "--queries", "q.npz", "--matrix", "no/such/m.npy")
    assert code == 2
    assert err == (
        "error: --matrix 'no/such/m.npy' cannot be written: 'no/such' does not exist; create it or give another path\n"
    )
    assert not calls


def test_self_influence_of_all_and_of_the_largest(shell, calls):
    header = "id,label,self_influence\n"
    assert shell("influence", "s.h5", "--self") == (0, header + "0,a,2\n1,a,1\n2,a,0.5\n", "")
    assert shell("influence", "s.h5", "--self", "--top", "2") == (0, header + "0,a,2\n1,a,1\n", "")
    assert calls["recorded_self_influence"][1] == {"among": None}
    assert "load" not in calls


def test_self_influence_asks_for_a_device_only_to_refuse_one_that_is_not_there(shell, calls):
    assert shell("influence", "s.h5", "--self")[0] == 0
    assert "choose_device" not in calls
    assert shell("influence", "s.h5", "--self", "--device", "cuda")[0] == 0
    assert calls["choose_device"] == (("cuda",), {})


def test_influence_of_streamed_data(shell, calls):
    assert shell("influence", "s.h5", "--queries", "q.npz", "--data", "t.npz", "--solver", "pbo")[0] == 0
    assert calls["influence"][1]["solver"] == "pbo"
    assert calls["influence"][1]["data"] == "source"
    assert shell("influence", "s.h5", "--self", "--data", "t.npz", "--model", "m.py:f", "--checkpoint", "c.pt")[0] == 0
    assert calls["self_influence"][1]["data"] == "source"
    assert calls["self_influence"][1]["model"] == "network"


def test_fsd_csv(shell, calls):
    code, out, err = shell("fsd", "s.h5", "--checkpoint", "a.pt", "--checkpoint", "b.pt", "-q")
    assert (code, err) == (0, "")
    assert out == (
        "checkpoint,distance,standard_error,model_error,metric,form\n"
        "a.pt,0.25,,,kl,closed\nb.pt,1.5,0.01,0.1,kl,sampled\n"
    )
    (_, checkpoints), given = calls["distances"]
    assert_tracks(given)
    assert [checkpoint.path for checkpoint in checkpoints] == ["a.pt", "b.pt"]
    assert given == {
        "metric": None,
        "form": "auto",
        "gates": None,
        "samples": None,
        "seed": 0,
        "reference": None,
        "data": None,
        "model": None,
        "device": "cpu device",
        "batch_size": 256,
    }


def test_fsd_with_data_and_a_reference(shell, calls):
    code, out, err = shell(
        "fsd", "s.h5", "--checkpoint", "a.pt", "--reference", "r.pt", "--data", "d.npz", "--metric", "kl2",
        "--format", "jsonl",
    )  # fmt: skip
    assert code == 0
    assert out.splitlines()[0] == (
        '{"checkpoint": "a.pt", "distance": 0.25, "standard_error": null, "model_error": null, "metric": "kl", '
        '"form": "closed", "exact": 0.2}'
    )
    assert err == "note: a.pt: wrapper undone\nnote: r.pt: wrapper undone\n"
    given = calls["distances"][1]
    assert (given["reference"].path, given["data"], given["metric"]) == ("r.pt", "source", "kl2")


@pytest.mark.parametrize(("limit", "expected"), [("1.5", 0), ("1", 1), ("0", 1)])
def test_fsd_exits_with_1_over_the_limit(shell, limit, expected):
    code, out, _ = shell("fsd", "s.h5", "--checkpoint", "a.pt", "--max-distance", limit)
    assert code == expected
    assert out.startswith("checkpoint,")


def test_fsd_counts_a_distance_that_is_no_number_as_over_the_limit(shell, install, calls):
    install("fsd.drift", distances=calls.answer("distances", rows_of([], distances=[float("nan")])))
    code, _, err = shell("fsd", "s.h5", "--checkpoint", "a.pt", "--max-distance", "1", "-q")
    assert (code, err) == (1, "warning: 1 of 1 distances are over --max-distance 1\n")


def test_inspect(shell):
    assert shell("inspect", "s.h5") == (
        0,
        "part,bytes,bytes_per_example,description\n/records,1000,10,what is kept of each\n",
        "s.h5\n  examples: 100\n",
    )


def test_demo(shell, calls, monkeypatch):
    monkeypatch.setattr(demo, "run", calls.answer("run", None))
    assert shell("demo") == (0, "", "")
    assert calls["run"][0][0] == Path("fsdtool-demo")
    shell("demo", "here")
    assert calls["run"][0][0] == Path("here")


# From an exception to an exit code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            FsdtoolError("'s.h5' does not exist;\ngive a summary"),
            2,
            "error: 's.h5' does not exist; give a summary",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (
            MemoryError(),
            3,
            "error: out of memory; give a smaller --batch-size or use a machine with more memory",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            3,
            "error: out of memory; give a smaller --batch-size or use a machine with more memory",
        ),
        (
            ValueError("two\nlines"),
            3,
            "internal error: ValueError: two (run again with --debug for the traceback)",
        ),
        (
            OSError(28, "No space left on device"),
            3,
            "internal error: OSError: [Errno 28] No space left on device (run again with --debug for the traceback)",
        ),
    ],
)
def test_errors_are_one_line(shell, install, calls, error, code, line):
    install("summary.catalogue", open_catalogue=calls.answer("open_catalogue", error))
    install("summary.inspection", inspect_rows=calls.answer("inspect_rows", error))
    assert shell("inspect", "s.h5") == (code, "", f"{line}\n")
    assert shell("find-mislabeled", "s.h5", "-q") == (code, "", f"{line}\n")


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "s.h5"], ["inspect", "s.h5", "--debug"]])
def test_debug_shows_the_traceback(shell, install, calls, arguments):
    install("summary.inspection", inspect_rows=calls.answer("inspect_rows", ValueError("the cause")))
    code, out, err = shell(*arguments)
    assert (code, out) == (3, "")
    assert "Traceback (most recent call last)" in err
    assert err.endswith("\ninternal error: ValueError: the cause\n")


def test_debug_does_not_outlive_its_command_line(shell, install, calls):
    shell("--debug", "-q", "inspect", "s.h5")
    install("summary.inspection", inspect_rows=calls.answer("inspect_rows", ValueError("the cause")))
    assert "Traceback" not in shell("inspect", "s.h5")[2]


def test_quiet_does_not_outlive_its_command_line(shell):
    said = "note: 2 of 100 labels are flagged (score above 0.5)\nnote: estimated share of wrong labels: 3.0%\n"
    for _ in range(2):
        assert shell("find-mislabeled", "s.h5", "-q")[2] == ""
        assert shell("find-mislabeled", "s.h5")[2] == said


def test_a_quiet_command_line_inside_a_loud_one_disturbs_neither(shell, install, calls):
    def inspect_rows(path):
        logging.getLogger("fsdtool").info("outside")
        assert cli.main(["find-mislabeled", "s.h5", "-q"]) == 0
        logging.getLogger("fsdtool").info("outside again")
        return [], PARTS

    install("summary.inspection", inspect_rows=inspect_rows)
    assert shell("inspect", "s.h5")[2] == "note: outside\nnote: outside again\ns.h5\n"


@pytest.mark.parametrize("error", [None, FsdtoolError("x"), KeyboardInterrupt(), ValueError(), SystemExit(5)])
def test_a_command_line_leaves_the_logger_as_it_was(shell, install, calls, error):
    log = logging.getLogger("fsdtool")
    before = (list(log.handlers), log.level, log.propagate)
    install("summary.inspection", inspect_rows=calls.answer("inspect_rows", error or ([], PARTS)))
    with pytest.raises(SystemExit) if isinstance(error, SystemExit) else nullcontext():
        shell("inspect", "s.h5", "--debug")
    assert (list(log.handlers), log.level, log.propagate) == before


MANY_ROWS = """
import sys
from types import ModuleType, SimpleNamespace
from fsdtool.tasks.task import task_of

def rows():
    for number in range(200_000):
        yield {"id": number, "given_label": "a"}

catalogue, mislabel = ModuleType("fsdtool.summary.catalogue"), ModuleType("fsdtool.mislabel.find")
catalogue.open_catalogue = lambda path: SimpleNamespace(task=task_of("classification"), records=None, fit=None)
found = SimpleNamespace(rows=rows, flagged=5, judged=200_000, noise_rate=0.03, between=None)
mislabel.find_mislabeled = lambda *a, **k: found
sys.modules.update({"fsdtool.summary.catalogue": catalogue, "fsdtool.mislabel.find": mislabel})
from fsdtool.cli import main
sys.exit(main(["find-mislabeled", "s.h5", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize(("arguments", "expected"), [([], 0), (["--max-flagged", "1"], 1)])
def test_a_reader_that_stops_early_is_no_error(arguments, expected):
    with subprocess.Popen(
        [sys.executable, "-c", MANY_ROWS, "--quiet", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout.readline().startswith("id,given_label")
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == expected
    assert "Traceback" not in err
    assert "Broken" not in err


def test_names_that_the_encoding_lacks_do_not_end_the_program():
    program = MANY_ROWS.replace("200_000", "1").replace('"a"', '"\\u6f22"')
    result = python("-c", program, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert result.returncode == 0
    assert result.stdout.splitlines()[1] == "0,\\u6f22,,,,"


@pytest.mark.parametrize("missing", ["--model", "--checkpoint", "--data"])
def test_a_missing_file_is_one_line(tmp_path, missing):
    options = {
        "--model": "sample_data/model.py:mlp",
        "--checkpoint": "sample_data/mlp.pt",
        "--data": "sample_data/train.npz",
    }
    options[missing] = options[missing].replace("sample_data/", "no_such_folder/")
    words = [word for option in options.items() for word in option]
    result = python("-m", "fsdtool", "summarize", "-q", *words, "-o", str(tmp_path / "s.h5"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "no_such_folder/" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# The documents


def test_readme_shows_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"fsdtool {command}" not in text] == []


def test_ci_runs_what_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in README_COMMANDS:
        assert f"\n{command}\n" in readme
        assert f'"{command}"' in script


def test_every_command_is_tested_here():
    assert sorted(COMMANDS) == sorted(command.name for command in app.app.registered_commands)
