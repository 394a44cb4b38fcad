"""What a format of rows is, and how the formats are found.

A format is given the rows as they come, each a list of plain Python values in the order of the columns: text, whole
numbers, floats of seven significant digits (about what float32 holds), booleans or None.  One for CI is given `Checks`
as well: a row becomes one check with a name, a message and, where the row is about a file, its path; a row over the
user's threshold is a failed check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from fsdtool.util.discovery import modules_of

PACKAGE = "fsdtool.report.formats"
Value = str | int | float | bool | None
Row = Mapping[str, Any]


def _pairs(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if value is not None)


@dataclass(frozen=True)
class Checks:
    """How the rows of a command read as checks.

    suite: what they belong to.  name, message, file: text of a row (file: None for a row about no file).
    level: 'notice', 'warning' or 'error'; the last two are failed checks.
    """

    suite: str
    name: Callable[[Row], str] = lambda row: str(next(iter(row.values())))
    message: Callable[[Row], str] = _pairs
    file: Callable[[Row], str | None] = lambda row: None
    level: Callable[[Row], str] = lambda row: "notice"


@dataclass(frozen=True)
class RowsToWrite:
    """values: rows under the `columns`.  title: stands above a table.  checks: how rows read as checks."""

    values: Iterable[list[Value]]
    columns: Sequence[str]
    title: str | None
    checks: Checks

    def mappings(self) -> Iterator[Row]:
        """Each row by column."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.values)


@dataclass(frozen=True)
class RowFormat:
    """name: as it is typed.  write: to a stream.  place: smaller ones stand first in the help."""

    name: str
    write: Callable[[RowsToWrite, TextIO], None]
    place: int


def row_formats() -> dict[str, RowFormat]:
    """The formats by name, in the order of the help: FORMATS of every module of the package."""
    found = [one for module in modules_of(PACKAGE) for one in getattr(module, "FORMATS", ())]
    return {one.name: one for one in sorted(found, key=lambda one: one.place)}


def in_text(value: Value, digits: int) -> str:
    """A value as people read it, floats of so many digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, f".{digits}g") if isinstance(value, float) else str(value)
