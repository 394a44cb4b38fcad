"""How every command answers: its talk on stderr, its rows on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from fsdtool.cli.options import Debug, Ids, IdsOnly, OutputFormat, Quiet
from fsdtool.errors import FsdtoolError
from fsdtool.report import console
from fsdtool.report.formats.row_format import Checks
from fsdtool.report.talk import Talk


@dataclass(frozen=True)
class CommandLine:
    """One command line, which typer's context carries as `obj`.  text: as a shell takes it.  talk: how it talks."""

    text: str
    talk: Talk


@dataclass(frozen=True)
class TalkOptions:
    """How much is said on stderr: options of every command."""

    quiet: Quiet = False
    debug: Debug = False

    def talk(self, context: typer.Context) -> Talk:
        """The command line's talk; --quiet and --debug hold whether they stand before the command or after it."""
        if context.obj is None:  # started by typer's own runner
            context.obj = CommandLine("fsdtool", Talk())
        talk: Talk = context.obj.talk
        talk.quiet, talk.debug = self.quiet or talk.quiet, self.debug or talk.debug
        return talk


@dataclass(frozen=True)
class ExampleRowOptions:
    """Of which training examples there are rows, and how these are written."""

    ids: Ids = None
    ids_only: IdsOnly = False
    format: OutputFormat = None

    def check(self) -> None:
        """Refuse --ids-only together with --format."""
        if self.ids_only and self.format is not None:
            raise FsdtoolError(f"--ids-only and --format {self.format.value} exclude each other; give one of them")

    def write(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], checks: Checks | None = None) -> None:
        """Write the rows as `write` does, or with --ids-only their ids alone."""
        if self.ids_only:
            console.write_ids(rows, sys.stdout)
        else:
            write(rows, columns, self.format, checks)


def write(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: console.Format | None,
    checks: Checks | None = None,
) -> None:
    """Write the rows to stdout; `checks`: how they read in the formats for CI."""
    console.render(rows, columns, console.resolve_format(format, sys.stdout), sys.stdout, checks=checks)
