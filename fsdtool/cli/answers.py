"""How every command answers: its talk on stderr, its rows on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from fsdtool.errors import FsdtoolError
from fsdtool.report import console
from fsdtool.report.formats.row_format import Checks
from fsdtool.report.talk import Talk


@dataclass(frozen=True)
class CommandLine:
    """One command line, which typer's context carries as `obj`.  text: as a shell takes it.  talk: how it talks."""

    text: str
    talk: Talk


def talk_of(context: typer.Context, quiet: bool, debug: bool) -> Talk:
    """The command line's talk; --quiet and --debug hold whether they stand before the command or after it."""
    if context.obj is None:  # started by typer's own runner
        context.obj = CommandLine("fsdtool", Talk())
    talk: Talk = context.obj.talk
    talk.quiet, talk.debug = quiet or talk.quiet, debug or talk.debug
    return talk


def check_ids_only(ids_only: bool, format: console.Format | None) -> None:
    """Refuse --ids-only together with --format."""
    if ids_only and format is not None:
        raise FsdtoolError(f"--ids-only and --format {format.value} exclude each other; give one of them")


def write(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: console.Format | None,
    ids_only: bool = False,
    checks: Checks | None = None,
) -> None:
    """Write the rows to stdout, or with `ids_only` their ids alone; `checks`: how they read in the formats for CI."""
    if ids_only:
        console.write_ids(rows, sys.stdout)
    else:
        console.render(rows, columns, console.resolve_format(format, sys.stdout), sys.stdout, checks=checks)
