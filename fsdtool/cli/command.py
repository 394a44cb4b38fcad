"""A command, and how the commands are found.

A command is one module of `fsdtool.cli.commands` with a `COMMAND`. Nothing lists these modules: a new one is in the
help, in the completion and on the command line by being there. All are imported for every command
line, so a command imports its estimator inside its function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fsdtool.cli.groups import flat
from fsdtool.util.discovery import modules_of

PACKAGE = "fsdtool.cli.commands"


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    name: as it is typed.  run: the function of its options, in typer's annotations, or of groups of them; its docstring
    is the help.
    line: what the list of commands says of it.  place: smaller ones stand first in that list.
    findings: what exit code 1 means, for a command that has a limit.  columns: those of its rows, by what stands
    after the name in the README's table.
    """

    name: str
    run: Callable[..., None]
    line: str
    place: int
    findings: str | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def callback(self) -> Callable[..., None]:
        """`run` as typer takes it: a parameter for each option of its groups."""
        return flat(self.run)


def find_commands(package: str = PACKAGE) -> list[Command]:
    """The commands of a package, in the order of the help.

    Raises ValueError where two modules have a command of the same name.
    """
    found: dict[str, Command] = {}
    for module in modules_of(package):
        command = module.COMMAND
        if command.name in found:
            raise ValueError(
                f"'{command.name}' of {module.__name__.rpartition('.')[2]} is the name of another command; rename one"
            )
        found[command.name] = command
    return sorted(found.values(), key=lambda command: (command.place, command.name))
