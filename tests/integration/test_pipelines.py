"""The commands as parts of a pipeline: ids in and out, formats for CI, encodings, exit codes of real processes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fsdtool import cli
from fsdtool.report import console
from fsdtool.report.console import Format, render
from fsdtool.report.formats.row_format import Checks
from fsdtool.report.talk import say
from tests.conftest import SAMPLE, gaussian_classes, perceptron

ROOT = Path(__file__).parents[2]
JSON_LINES = (ROOT / "fsdtool" / "docs" / "json-lines.md").read_text(encoding="utf-8")
NASTY = "50%,a:b\r\n::error::<&\"'>\x1b[31m日本\ud800]]>"
ODD_IDS = ["ä.png", "a b", "c\nd", "\\n", "=1+1", "007", "日本", ",", '"', "-5"]


@pytest.fixture
def named(summarized):
    """A summary of 60 examples, the first of which have ids that are hard to write down."""
    x, y = gaussian_classes(60, 4, 3)
    y[:6] = (y[:6] + 1) % 3
    return summarized(perceptron(4, 8, 3), x, y)


@pytest.fixture
def odd(tmp_path, summarized, monkeypatch):
    x, y = gaussian_classes(60, 4, 3)
    y[:6] = (y[:6] + 1) % 3
    ids = np.array([*ODD_IDS, *(f"{i}.png" for i in range(60 - len(ODD_IDS)))])
    original = np.savez

    def with_ids(path, **arrays):
        original(path, **arrays, ids=ids)

    monkeypatch.setattr(np, "savez", with_ids)
    return summarized(perceptron(4, 8, 3), x, y)


@pytest.fixture
def shell(capsys, monkeypatch):
    """Runs a command line with this stdin; returns (exit code, stdout, stderr)."""

    def shell(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return shell


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


# Ids out and in


def test_ids_go_from_one_command_to_the_next(odd, shell):
    code, ids, _ = shell("find-mislabeled", odd.path, "--all", "--ids-only", "-q")
    assert code == 0
    assert ids.count("\n") == 60
    assert "\nc\\nd\n" in f"\n{ids}"
    code, out, _ = shell("influence", odd.path, "--self", "--ids", "-", "--format", "jsonl", stdin=ids)
    assert code == 0
    assert sorted(row["id"] for row in rows(out)) == sorted(odd.records.ids.tolist())
    assert shell("influence", odd.path, "--self", "--ids-only")[1].splitlines() == [
        console.one_line(row["id"]) for row in rows(out)
    ]


def test_find_mislabeled_of_some_ids_ranks_and_counts_these_alone(named, shell):
    _, out, _ = shell("find-mislabeled", named.path, "--all", "--format", "jsonl", "-q")
    everything = rows(out)
    asked = [row["id"] for row in everything[1::7]]
    lines = "\ufeff" + "\r\n".join(str(identifier) for identifier in reversed(asked)) + "\n\n"
    code, out, _ = shell("find-mislabeled", named.path, "--all", "--ids", "-", "--format", "jsonl", "-q", stdin=lines)
    assert code == 0
    assert rows(out) == [row | {"rank": i} for i, row in enumerate(everything[1::7], 1)]
    flagged = sum(row["score"] > 0.5 for row in everything[1::7])
    code, out, err = shell("find-mislabeled", named.path, "--ids", "-", "--max-flagged", flagged, stdin=lines)
    assert code == 0
    assert len(out.splitlines()) == flagged + 1
    assert f"{flagged} of {len(asked)} labels are flagged" in err
    top = shell("find-mislabeled", named.path, "--top", "2", "--ids", "-", "--ids-only", "-q", stdin=lines)[1]
    assert top.splitlines() == [str(identifier) for identifier in asked[:2]]


def test_influence_of_some_ids_has_the_same_values(named, shell, tmp_path):
    queries = ("--queries", named.identity.data_spec, "--mean", "--top", "60", "--format", "jsonl")
    everything = rows(shell("influence", named.path, *queries, "-q")[1])
    asked = {row["id"] for row in everything[::5]}
    (tmp_path / "ids").write_text("\n".join(map(str, asked)))
    code, out, _ = shell("influence", named.path, *queries, "--ids", tmp_path / "ids", "-q")
    assert code == 0
    values = {row["id"]: row["loss_change_if_removed"] for row in everything}
    assert {row["id"]: row["loss_change_if_removed"] for row in rows(out)} == {i: values[i] for i in asked}
    for kind in ("proponent", "opponent"):
        ranks = [row["rank"] for row in rows(out) if row["kind"] == kind]
        assert ranks == list(range(1, len(ranks) + 1))


def test_no_ids_are_no_rows_and_no_error(named, shell):
    assert shell("find-mislabeled", named.path, "--ids", "-", "-q")[:2] == (
        0,
        "id,given_label,suggested_label,score,confidence,rank\n",
    )
    assert shell("influence", named.path, "--self", "--ids", "-")[:2] == (0, "id,label,self_influence\n")


def test_ids_that_are_unknown_or_unreadable_are_refused(named, shell, tmp_path):
    code, out, err = shell("influence", named.path, "--self", "--ids", "-", stdin="3\nnope\n99\n")
    assert (code, out) == (2, "")
    assert err == (
        f"error: 2 of the 3 ids in '-' are not in '{named.path}', '99' first; "
        "give ids of its training examples, one a line\n"
    )
    code, out, err = shell("find-mislabeled", named.path, "--ids", tmp_path / "none")
    assert (code, out) == (2, "")
    assert "cannot be read (FileNotFoundError: " in err
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    assert shell("find-mislabeled", named.path, "--ids", tmp_path / "bytes")[0] == 2
    code, _, err = shell("find-mislabeled", named.path, "--ids-only", "--format", "csv")
    assert (code, err) == (2, "error: --ids-only and --format csv exclude each other; give one of them\n")


@pytest.mark.parametrize(("command", "flag"), [("summarize", "--output"), ("influence", "--matrix")])
def test_a_dash_for_a_file_that_cannot_be_a_stream_is_refused(shell, command, flag):
    words = {
        "summarize": ["--model", "m.py:f", "--checkpoint", "c.pt", "--data", "d.npz"],
        "influence": ["s.h5", "--queries", "q.npz"],
    }[command]
    code, out, err = shell(command, *words, flag, "-")
    assert (code, out) == (2, "")
    assert "- asks for stdout, but only a file can hold it" in err or "does not end in" in err


# CI


def checks(**more) -> Checks:
    return Checks(suite="a, suite: 100%", message=lambda row: f"of {row['id']}", **more)


def test_github_annotations_escape_what_github_would_read():
    stream = io.StringIO()
    hostile = checks(file=lambda row: row["id"], level=lambda row: "warning")
    render([{"id": NASTY}, {"id": "plain"}], ["id"], Format.github, stream, checks=hostile)
    assert stream.getvalue().splitlines() == [
        "::warning file=50%25%2Ca%3Ab%0D%0A%3A%3Aerror%3A%3A<&\"'> [31m日本\ud800]]>,title=a%2C suite%3A 100%25"
        "::of 50%25,a:b%0D%0A::error::<&\"'> [31m日本\ud800]]>",
        "::warning file=plain,title=a%2C suite%3A 100%25::of plain",
    ]


def test_junit_is_xml_whatever_the_names_hold():
    stream = io.StringIO()
    level = {"plain": "notice"}
    everything = [{"id": NASTY}, {"id": "plain"}, {"id": "".join(map(chr, range(0x300)))}, {"id": "\ufffe\uffff"}]
    judged = checks(level=lambda row: level.get(row["id"], "warning"))
    render(everything, ["id"], Format.junit, stream, checks=judged)
    text = stream.getvalue()
    assert text.isascii()
    root = ElementTree.fromstring(text)
    suite = root.find("testsuite")
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("a, suite: 100%", "4", "3")
    cases = suite.findall("testcase")
    assert cases[0].get("name") == "50%,a:b ::error::<&\"'> [31m日本 ]]>"
    assert cases[0].find("failure").text == f"of {cases[0].get('name')}"
    assert cases[1].get("name") == "plain"
    assert cases[1].find("failure") is None


def test_flagged_labels_are_warnings_about_their_files(odd, shell):
    _, out, _ = shell("find-mislabeled", odd.path, "--all", "--format", "github", "-q")
    flagged = rows(shell("find-mislabeled", odd.path, "--format", "jsonl", "-q")[1])
    warnings = [line for line in out.splitlines() if line.startswith("::warning ")]
    assert (len(warnings), len(out.splitlines())) == (len(flagged), 60)
    assert "file=c%0Ad,title=fsdtool find-mislabeled::the label " in out
    _, out, _ = shell("find-mislabeled", odd.path, "--all", "--format", "junit", "-q")
    suite = ElementTree.fromstring(out).find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("60", str(len(flagged)))


def test_a_distance_over_the_limit_is_an_error(named, shell, tmp_path):
    other = ("--checkpoint", tmp_path / "summary.h5.pt", "--format", "github", "-q")
    code, out, _ = shell("fsd", named.path, *other, "--max-distance", "1")
    assert code == 0
    assert re.fullmatch(r"::notice file=\S+summary.h5.pt,title=fsdtool fsd::distance 0 of \S+ \(kl, examples\)\n", out)
    code, out, _ = shell("inspect", named.path, "--format", "junit", "-q")
    assert code == 0
    assert ElementTree.fromstring(out).find("testsuite").get("failures") == "0"


# JSON lines as their document has them

TYPES = {
    "integer": int,
    "number": (int, float),
    "text": str,
    "integer or text": (int, str),
    "number or text": (int, float, str),
}


def schema() -> dict[str, str]:
    """Column -> type, of the table of columns."""
    found = re.findall(r"^\| ((?:`[\w:]+`(?:, )?)+) \| ([\w ]+) \|", JSON_LINES, re.MULTILINE)
    return {column: kind for columns, kind in found for column in re.findall(r"`([\w:]+)`", columns)}


def test_json_lines_have_the_columns_and_types_of_their_document(named, summarized, shell, tmp_path):
    x, _ = gaussian_classes(60, 4, 3)
    regression = summarized(perceptron(4, 6, 2), x, x[:, :2], task="regression", name="regression.h5")
    weights = ("--checkpoint", tmp_path / "summary.h5.pt")
    queries = ("--queries", named.identity.data_spec)
    commands = [
        ("find-mislabeled", named.path, "--all", "--by-layer"),
        ("influence", named.path, *queries, "--top", "2"),
        ("influence", named.path, *queries, "--mean"),
        ("influence", named.path, "--self"),
        ("fsd", named.path, *weights, "--data", named.identity.data_spec),
        ("fsd", named.path, *weights, "--form", "closed", "--metric", "kl2"),
        ("fsd", named.path, *weights, "--by-component"),
        ("inspect", named.path),
        ("docs",),
        ("find-mislabeled", regression.path, "--all"),
    ]
    types, seen = schema(), set()
    for command in commands:
        code, out, _ = shell(*command, "--format", "jsonl", "-q")
        assert code == 0
        for row in rows(out):
            for name, value in row.items():
                column = re.sub("(?<=^margin:).*", "LAYER", name)
                seen.add(column)
                kind = types[column]
                assert (
                    value is None
                    if value is None and "null" in kind
                    else isinstance(value, TYPES[kind.removesuffix(" or null")])
                ), (command, column, value)
    assert seen == set(types)


# Encodings and terminals


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_rows_are_well_formed_in_every_encoding(format, encoding):
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding, errors="backslashreplace", newline="\n")
    names = ["é", "日本", "\U0001f600", "\udce9", "plain"]
    render([{"id": name} for name in names], ["id"], format, stream)
    text = content.getvalue().decode(encoding)
    if format is Format.json:
        assert [row["id"] for row in json.loads(text)] == names
    elif format is Format.jsonl:
        assert [row["id"] for row in rows(text)] == names
    elif format is Format.junit:
        assert len(ElementTree.fromstring(text.encode(encoding)).findall("testsuite/testcase")) == 5
    elif format is Format.csv:
        assert len(list(csv.reader(io.StringIO(text)))) == 6
    else:
        assert "plain" in text


def test_talk_is_coloured_as_the_environment_asks(monkeypatch, capsys):
    def said() -> bool:
        say("error", "x")
        return "\x1b[" in capsys.readouterr().err

    for variable in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS"):
        monkeypatch.delenv(variable, raising=False)
    assert not said()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert not said()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert said()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not said()


def test_a_terminal_of_twenty_columns_shows_every_name(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    render([{"id": "abcdefghijklmnopqrstuvwxyz", "label": "0123456789"}], ["id", "label"], Format.table, stream)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 20
    assert "\x1b" not in stream.getvalue()
    assert set("abcdefghijklmnopqrstuvwxyz0123456789") <= set("".join(lines[1:]))


# Real processes

# One process imports torch; each command line is a fork of it, with a process's own exit code.
FORKS = """
import json, os, sys
import torch
from rich.console import Console
from fsdtool.fsd import drift
from fsdtool.influence import scores
from fsdtool.summary import inspection
from fsdtool.mislabel import find
from fsdtool.fitting import run
from fsdtool.cli import main
torch.set_num_threads(1)
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        # As the shell would hand them over: bytes, whatever the locale.
        sys.exit(main([os.fsdecode(word.encode()) for word in arguments]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_exit_codes_of_real_processes_where_names_are_no_ascii(odd, tmp_path):
    model = ["--model", f"{SAMPLE}/model.py:mlp", "--checkpoint", f"{SAMPLE}/mlp.pt"]
    data = ["--data", f"{SAMPLE}/train.npz"]
    weights = str(tmp_path / "summary.h5.pt")
    torch.save(perceptron(4, 8, 3, seed=1).state_dict(), tmp_path / "other.pt")
    path, queries = str(odd.path), ["--queries", odd.identity.data_spec]
    expected: list[tuple[int, list[str]]] = [
        (0, ["summarize", *model, *data, "--no-records", "-o", f"{tmp_path}/é.h5"]),
        (2, ["summarize", *model, "--data", f"{tmp_path}/none.npz", "-o", f"{tmp_path}/b.h5"]),
        (2, ["summarize", *model]),
        *[(0, ["find-mislabeled", path, "--all", "--format", format]) for format in ("table", "csv", "json", "junit")],
        (1, ["find-mislabeled", path, "--max-flagged", "0"]),
        (2, ["find-mislabeled", weights]),
        (0, ["influence", path, *queries]),
        (0, ["influence", path, "--self", "--format", "github"]),
        (2, ["influence", path, "--queries", "no such.npz"]),
        (0, ["fsd", path, "--checkpoint", weights, "--max-distance", "0"]),
        (1, ["fsd", path, "--checkpoint", f"{tmp_path}/other.pt", "--max-distance", "0"]),
        (2, ["fsd", path, "--checkpoint", path]),
        (0, ["inspect", path]),
        (2, ["inspect", f"{tmp_path}/日本.h5"]),
        (0, ["--version"]),
        (2, []),
        (2, ["no-such-command"]),
    ]
    result = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps([words for _, words in expected])],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    codes = [int(code) for code in result.stdout.split()]
    assert list(zip(codes, (words for _, words in expected), strict=True)) == expected, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert sum(line.startswith(b"error: ") for line in result.stderr.splitlines()) == 7


def test_the_shell_completes_commands_and_options():
    def complete(line: str) -> list[str]:
        environment = {"_FSDTOOL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        command = [sys.executable, "-c", "import sys\nfrom fsdtool.cli import main\nsys.exit(main())"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.split()

    assert complete("fsdtool find") == ["find-mislabeled"]
    assert set(complete("fsdtool find-mislabeled --ids")) == {"--ids", "--ids-only"}


def test_completion_can_be_shown():
    result = subprocess.run(
        [sys.executable, "-m", "fsdtool", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert result.returncode == 0
    assert "_FSDTOOL_COMPLETE=complete_bash" in result.stdout
