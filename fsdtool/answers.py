"""How every command talks and answers: its flags for stderr, its rows on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fsdtool import report
from fsdtool.checks import Checks
from fsdtool.errors import FsdtoolError


def talk(quiet: bool, debug: bool) -> None:
    """--quiet and --debug hold whether they stand before the command or after it."""
    report.configure(quiet=quiet or report.talk.quiet, debug=debug or report.talk.debug)


def check_ids_only(ids_only: bool, format: report.Format | None) -> None:
    if ids_only and format is not None:
        raise FsdtoolError(f"--ids-only and --format {format.value} exclude each other; give one of them")


def write(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: report.Format | None,
    ids_only: bool = False,
    checks: Checks | None = None,
) -> None:
    if ids_only:
        report.write_ids(rows, sys.stdout)
    else:
        report.render(rows, columns, report.resolve_format(format, sys.stdout), sys.stdout, checks=checks)
