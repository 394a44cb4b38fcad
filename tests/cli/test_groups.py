"""A group of options is one parameter of a command, and one option for each field on the command line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fsdtool.cli.command import find_commands
from fsdtool.cli.groups import flat


@dataclass(frozen=True)
class Size:
    """How large."""

    width: Annotated[int, typer.Option(help="How wide.")] = 3
    height: Annotated[int | None, typer.Option("--tall", help="How tall.")] = None


def draw(name: str, *, before: bool = False, size: Size, after: bool = False) -> None:
    """Draw it."""
    print(name, before, size, after)


def test_options_of_a_group_stand_in_its_place():
    assert list(inspect.signature(flat(draw)).parameters) == ["name", "before", "width", "height", "after"]
    assert flat(draw).__doc__ == "Draw it."


@pytest.mark.parametrize(
    ("arguments", "size"), [([], Size()), (["--width", "5"], Size(5)), (["--tall", "2", "--width", "4"], Size(4, 2))]
)
def test_a_command_is_given_the_group(arguments, size):
    app = typer.Typer()
    app.command()(flat(draw))
    result = CliRunner().invoke(app, ["it", "--after", *arguments])
    assert (result.exit_code, result.output) == (0, f"it False {size} True\n")


def test_no_option_of_a_command_is_in_two_of_its_groups():
    for command in find_commands():
        assert len(inspect.signature(command.callback).parameters) >= len(inspect.signature(command.run).parameters)
