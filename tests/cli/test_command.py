"""A command is there because its module is: found by its name, in its place, and no more than one of a name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsdtool.cli.command import PACKAGE, find_commands

ROOT = Path(__file__).parents[2]
HELLO = """
from fsdtool.cli.command import Command

def hello(name: str, twice: bool = False) -> None:
    \"\"\"Greet.\"\"\"
    print(*[f"hello {name}"] * (2 if twice else 1), sep="\\n")

COMMAND = Command("hello", hello, "Greet somebody.", place=%d, findings="nobody answers")
"""
# A folder more in which the command line finds its modules, as if the file lay beside the others.
RUN = """
import sys
from importlib import import_module
from fsdtool.cli.command import PACKAGE
import_module(PACKAGE).__path__.append(sys.argv[1])
from fsdtool.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """Makes a package of modules with these texts and gives its name."""

    def make(package: str, **modules: str) -> str:
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return package

    return make


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_new_module_is_a_command(tmp_path):
    (tmp_path / "hello.py").write_text(HELLO % 15)
    assert run(tmp_path, "hello", "you", "--twice").stdout == "hello you\nhello you\n"
    listed = run(tmp_path, "--help").stdout.split("\nCommands:\n")[1]
    assert [line.split()[0] for line in listed.splitlines()[:3]] == ["summarize", "hello", "find-mislabeled"]
    assert "Greet somebody." in listed
    own = run(tmp_path, "hello", "--help").stdout
    assert "1    nobody answers" in own
    assert own.count("Exit codes:") == 1


def test_without_the_module_there_is_no_such_command(tmp_path):
    found = run(tmp_path, "hello", "you")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1


def test_commands_stand_in_their_places_and_equal_ones_by_name(strangers):
    modules = {f"v_{i}": HELLO.replace('"hello"', f'"{name}"') % place for i, (name, place) in enumerate(
        [("c", 20), ("b", 10), ("a", 20), ("d", 5)])}  # fmt: skip
    assert [command.name for command in find_commands(strangers("pkg_order", **modules))] == ["d", "b", "a", "c"]


def test_two_commands_of_one_name_are_refused(strangers):
    package = strangers("pkg_twice", v_one=HELLO % 1, v_two=HELLO % 2)
    with pytest.raises(ValueError, match="'hello' of v_two is the name of another command; rename one"):
        find_commands(package)


def test_every_command_has_a_line_for_the_list_and_a_help_text_with_an_example():
    commands = find_commands(PACKAGE)
    assert len({command.place for command in commands}) == len(commands)
    for command in commands:
        assert command.line.endswith(".")
        assert len(command.line) < 60
        assert "Example:" in command.run.__doc__
