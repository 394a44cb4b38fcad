"""From the library's words to those of the command line.

The library says in its errors and remarks which argument would help as Python writes it, in backticks:
`task="regression"`, `skip_bad=True`, `records=False` or the name alone.  Here these become the options of the command
line: --task regression, --skip-bad, --no-records, --skip-bad.  What is no option of any command stays as it is.
"""

from __future__ import annotations

import functools
import re

import typer

from fsdtool.cli.command import find_commands

_RENAMED = {"keep_weights": "weights", "margins": "by_layer"}
_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")


def as_options(message: str) -> str:
    """The message with every argument of the library in backticks worded as an option."""
    return _ARGUMENT.sub(_worded, message)


def _worded(found: re.Match[str]) -> str:
    name, value = _RENAMED.get(found[1], found[1]), found[2]
    option = ("--no-" if value == "False" else "--") + name.replace("_", "-")
    if option not in _options():
        return found[0]
    return option if value in (None, "True", "False") else f"{option} {value.strip(chr(34))}"


@functools.cache
def _options() -> frozenset[str]:
    """Every long option of every command."""
    app = typer.Typer()
    for command in find_commands():
        app.command(command.name)(command.callback)
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return frozenset(
        option
        for command in group.commands.values()
        for part in command.params
        for option in (*part.opts, *part.secondary_opts)
    )
