"""How every command talks and answers: its flags for stderr, its rows on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fsdtool.cli.wording import as_options
from fsdtool.errors import FsdtoolError
from fsdtool.report import console
from fsdtool.report.formats.row_format import Checks


def talk(quiet: bool, debug: bool) -> None:
    """--quiet and --debug hold whether they stand before the command or after it."""
    console.configure(quiet=quiet or console.talk.quiet, debug=debug or console.talk.debug, words=as_options)


def check_ids_only(ids_only: bool, format: console.Format | None) -> None:
    if ids_only and format is not None:
        raise FsdtoolError(f"--ids-only and --format {format.value} exclude each other; give one of them")


def write(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: console.Format | None,
    ids_only: bool = False,
    checks: Checks | None = None,
) -> None:
    if ids_only:
        console.write_ids(rows, sys.stdout)
    else:
        console.render(rows, columns, console.resolve_format(format, sys.stdout), sys.stdout, checks=checks)
