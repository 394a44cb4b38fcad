"""What is written to stdout: rows, ids and documents.

An estimator returns rows (mappings from a column name to a number, a string or None) and never prints:
`render` turns them into one of the formats of fsdtool.report.formats.  Floats have seven significant digits in the
machine formats, about what float32 holds.  What is not a finite number is `nan`, `inf` or `-inf` in csv and null in
json.  What is said beside the rows is in fsdtool.report.talk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, TextIO

from fsdtool.errors import FsdtoolError
from fsdtool.report.formats.row_format import Checks, RowsToWrite, row_formats
from fsdtool.util.terminal import in_colour, one_line

# How rows are written.
Format = Enum("Format", {name: name for name in row_formats()}, type=str)  # type: ignore[misc]  # no literal: modules


# Rows


def resolve_format(format: Format | None, stream: TextIO) -> Format:
    """The format asked for, or else a table on a terminal and csv in a pipe or a file."""
    return format or (Format("table") if stream.isatty() else Format("csv"))


def render(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: Format,
    stream: TextIO,
    title: str | None = None,
    checks: Checks | None = None,
) -> None:
    """Write `columns` of every row to `stream`; a column that a row lacks is None.

    NumPy and torch scalars count as the numbers they hold. `title` stands above a table and nowhere else; `checks`
    says how rows read in the formats for CI.
    A reader who has seen enough (`| head`) ends the rows without an error; the exit code stays the caller's.
    """
    values = ([_plain(row.get(column)) for column in columns] for row in rows)
    with while_read(stream):
        row_formats()[format.value].write(RowsToWrite(values, columns, title, checks or Checks("fsdtool")), stream)


def _plain(value: Any) -> str | int | float | bool | None:
    """The value as a Python scalar, floats rounded to seven digits and without a negative zero."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(format(value, ".7g")) + 0.0
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_ids(rows: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """The `id` of every row, each once, one a line as `one_line` gives it."""
    seen: set[str] = set()
    with while_read(stream):
        for row in rows:
            text = one_line(row["id"])
            if text not in seen:
                seen.add(text)
                stream.write(f"{text}\n")


def write_markdown(text: str, stream: TextIO) -> None:
    """Markdown as it is, or formatted where `stream` is a terminal."""
    with while_read(stream):
        if not stream.isatty():
            stream.write(text)
            return
        from rich.console import Console
        from rich.markdown import Markdown

        Console(file=stream, color_system="auto" if in_colour(stream) else None).print(Markdown(text))


# Streams


def abandon(stream: TextIO) -> None:
    """Send what is still written to `stream` nowhere: whoever read it has gone.

    Without this, Python's own flush at exit would fail again and turn the exit code into 120.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def while_read(stream: TextIO) -> Iterator[None]:
    """Write to `stream` within it: that its reader has gone is no error.

    Raises FsdtoolError where stdout cannot be written for another reason, such as a full disk.
    """
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        abandon(stream)
    except OSError as error:
        if stream not in (sys.stdout, sys.stderr):  # the rows' own source failed, or a file did
            raise
        abandon(stream)
        if stream is sys.stdout:  # of stderr nobody can be told
            raise FsdtoolError(
                f"the output cannot be written ({error.strerror or error}); free some space or send it elsewhere"
            ) from error
